"""Engines that iterate `loader.get_iterator()` and call a loss of (prediction, target, null value): LargeST, Graph WaveNet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stprune import BatchQueue, PrunedLoss, PruningSampler, WindowLoader

Array = np.ndarray[Any, Any]


class EngineLoader:
    """The training loader of an engine: batches (x, y) of the sampler's windows, and the loss that goes with them.

    It has what such engines call: `shuffle`, `get_iterator`, `num_batch`. An epoch begins with `shuffle()`, as in their loops;
    the first one after a state was loaded into the sampler goes on where that was saved. Every batch is delivered, the last
    one with fewer windows: nothing is padded and no tail is dropped.

    Such a batch has no place for ids. The loader keeps the ids of every batch it delivered until the loss of that batch is
    asked for, in order, and refuses a loss whose number of windows is another one.

    Args:
        loader: yields (index, x, y) and holds the run's PruningSampler as `sampler`: a `WindowLoader`, which cuts the windows
            from the series, so that no window is stored.

    Raises:
        TypeError: `loader` has no PruningSampler.

    Example:
        README.md, "LargeST" and "Graph WaveNet"; examples/engine.py.
    """

    _settings: dict[str, Any] = {}
    """Of the engine's loss."""

    def __init__(self, loader: Any) -> None:
        self.sampler = getattr(loader, "sampler", None)
        if not isinstance(self.sampler, PruningSampler):
            raise TypeError(f"{type(self).__name__}: loader must have a PruningSampler, got {type(self.sampler).__name__}")
        self._loader = loader
        self._queue = BatchQueue(self.sampler, loader)
        self._begun = False

    @property
    def size(self) -> int:
        """Windows of the current epoch."""
        return len(self.sampler)

    @property
    def num_batch(self) -> int:
        """Batches of the current epoch."""
        return len(self._loader)

    def shuffle(self) -> None:
        """Begin the next epoch, if this one has begun: a new plan in a new order."""
        if self._begun:
            self.sampler.set_epoch(self.sampler.epoch + 1)
            self._begun = False

    def get_iterator(self) -> Iterator[tuple[Array, Array]]:
        """The epoch's batches x and y, float NumPy arrays in the layout of the engine."""
        for _, x, y in self._queue:
            self._begun = True
            yield x.cpu().numpy(), y.cpu().numpy()

    def loss(self, model: Any, **settings: Any) -> EngineLoss:
        """The engine's training loss, to be put in the place of its masked MAE.

        Args:
            model: the engine's model. Its flag `training` tells training from validation: these engines validate with
                gradients enabled.
            settings: of `PrunedLoss`, such as ``loss="mse"`` or ``null_value=None``; where not given, the engine's own.
        """
        return EngineLoss(self._queue, PrunedLoss(self.sampler, model=model, **{**self._settings, **settings}))


class EngineLoss:
    """The loss of an engine's batches; made by `EngineLoader.loss`.

    In training it gives the batch's ids to a `PrunedLoss`; in evaluation it is the plain masked loss.
    """

    def __init__(self, queue: BatchQueue, criterion: PrunedLoss) -> None:
        self.queue, self.criterion = queue, criterion

    def __call__(self, prediction: Tensor, target: Tensor, null_value: Any = None) -> Tensor:
        """The batch loss, a scalar.

        Args:
            prediction, target: as the engine gives them, in the series' unit.
            null_value: not used: the criterion's own holds for every batch.
        """
        index = self.queue.take(prediction.shape[0]) if self.criterion.trains(prediction) else None
        return self.criterion(prediction, target, index)


class LargeSTLoader(EngineLoader):
    """The training loader of LargeST's engines; it cuts the windows of LargeST's own loader from the same series.

    The loss leaves out targets of 0, up to the rounding of LargeST's scaling forth and back, in training and evaluation. LargeST
    itself leaves out the smallest value of every batch if that is below 1. That rule depends on which windows meet in a
    batch, so no sampler can keep it; on series with zeros in every batch it does the same.

    Args:
        loader: LargeST's training loader, not shuffled yet; padded copies at its end are left out.
        sampler: over its windows: ``PruningSampler(len(loader.idx), num_epochs=args.max_epochs)``.

    Raises:
        ValueError: the sampler has another number of samples, or the windows are not in their order.

    Source:
        LargeST b7c6ff5: src/utils/dataloader.py, src/base/engine.py.
    """

    # Zeros come back from (x - mean) / std in float32 with an error below 2^-22 of the mean: below this one for means up to 400.
    _settings = {"null_value": 0.0, "null_tolerance": 1e-4}

    def __init__(self, loader: Any, sampler: PruningSampler) -> None:
        idx = np.asarray(loader.idx)
        _check_padding("LargeSTLoader", idx, sampler, loader.bs)
        idx = idx[: sampler.num_windows]
        if (np.diff(idx) != 1).any():
            raise ValueError("LargeSTLoader: loader must hold neighbouring windows in their order: wrap it before it is shuffled")
        super().__init__(
            WindowLoader(
                loader.data,
                sampler,
                batch_size=loader.bs,
                history=loader.seq_len,
                horizon=loader.horizon,
                # LargeST names a window by the last row of its history.
                start=int(idx[0]) - (loader.seq_len - 1),
                stop=int(idx[-1]) + loader.horizon + 1,
                target_channels=0,
                dtype=torch.float32,
            )
        )


class GraphWaveNetLoader(EngineLoader):
    """The training loader of Graph WaveNet's loop, over the windows that its own loader holds.

    Its data set is stored as windows, so they are taken from there. With the series at hand,
    ``EngineLoader(WindowLoader(series, sampler, ...))`` needs a twenty-fourth of the memory.

    Args:
        loader: Graph WaveNet's training loader, not shuffled yet; padded copies at its end are left out.
        sampler: over its windows: ``PruningSampler(len(dataloader["x_train"]), num_epochs=args.epochs)``.

    Raises:
        ValueError: the sampler has another number of samples, or the loader was shuffled with its copies.

    Source:
        Graph WaveNet 6b162e8: util.py, engine.py, train.py.
    """

    _settings = {"null_value": 0.0, "dims": "BCNT"}

    def __init__(self, loader: Any, sampler: PruningSampler) -> None:
        for windows in (loader.xs, loader.ys):
            _check_padding("GraphWaveNetLoader", windows, sampler, loader.batch_size)
        super().__init__(_StoredWindows(loader.xs, loader.ys, sampler, loader.batch_size))


class _StoredWindows:
    """Batches (index, x, y) of windows that lie in two arrays."""

    def __init__(self, xs: Array, ys: Array, sampler: PruningSampler, batch_size: int) -> None:
        self.sampler = sampler
        self._windows = torch.from_numpy(xs), torch.from_numpy(ys)
        self._ids = sampler.batches(batch_size)

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for ids in self._ids:
            index = torch.from_numpy(ids.copy())
            x, y = (windows[index] for windows in self._windows)
            yield index, x, y


def _check_padding(op: str, windows: Array, sampler: PruningSampler, batch_size: int) -> None:
    """Refuse windows that are not the sampler's, followed by copies of the last one up to a whole batch or by nothing."""
    count, padded = sampler.num_windows, len(windows)
    if padded not in (count, -(-count // batch_size) * batch_size):
        raise ValueError(f"{op}: sampler must have one sample for each of the loader's windows (at most {padded}), got {count}")
    copies = np.broadcast_to(windows[count - 1], windows[count:].shape)
    if not np.array_equal(windows[count:], copies, equal_nan=True):
        raise ValueError(f"{op}: loader must hold copies of its last window after {count} windows: wrap it before it is shuffled")
