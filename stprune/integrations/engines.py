"""Engines that iterate `loader.get_iterator()` and call a loss of (prediction, target, null value): LargeST, Graph WaveNet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from stprune import PrunedLoss, PruningSampler, WindowLoader
from stprune.integrations.requirements import require_whole_windows, sampler_of

Array = np.ndarray[Any, Any]


class EngineLoader:
    """The training loader of an engine: batches (x, y) of the sampler's windows, and the loss that goes with them.

    It has what such engines call: `shuffle`, `get_iterator`, `num_batch`. An epoch begins with `shuffle()`, as in their loops;
    the first one after a state was loaded into the sampler goes on where that was saved. Every batch is delivered, the last
    one with fewer windows: nothing is padded and no tail is dropped.

    Such a batch has no place for ids: the loader hands them to its loss. Every batch has one training loss, before the next
    batch is asked for; anything else is refused.

    Args:
        loader: yields (index, x, y) and holds the run's PruningSampler as `sampler`: a `WindowLoader`, which cuts the windows
            from the series, so that no window is stored.

    Raises:
        TypeError: `loader` has no PruningSampler.
        ValueError: the sampler draws nodes.

    Example:
        README.md, "LargeST" and "Graph WaveNet"; examples/engine.py.
    """

    settings: ClassVar[dict[str, Any]] = {}
    """Of the engine's loss."""

    def __init__(self, loader: Any) -> None:
        self.sampler, self._loader = sampler_of(type(self).__name__, loader), loader
        require_whole_windows(type(self).__name__, self.sampler)
        self._index: Tensor | None = None  # of the batch that has had no loss yet
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
        """The epoch's batches x and y, float NumPy arrays in the layout of the engine.

        Raises:
            RuntimeError: a batch or the end is asked for, and the batch before had no training loss.
        """
        self._index = None
        for index, x, y in self._loader:
            self._index, self._begun = index, True
            yield x.cpu().numpy(), y.cpu().numpy()
            if self._index is not None:  # of the last batch, too
                raise RuntimeError(
                    f"{type(self).__name__}: every batch must have a training loss before the next is asked for, got none: a "
                    "loop that looks ahead, skips batches or evaluates on this loader cannot use it"
                )
        if self.sampler.epoch + 1 == self.sampler.num_epochs:
            self.sampler.finish()

    def take(self) -> Tensor:
        """The ids [B] int64 of the batch that was delivered last; its loss has come, and asks for them.

        Raises:
            RuntimeError: the batch had its loss already.
        """
        index, self._index = self._index, None
        if index is None:
            raise RuntimeError(
                f"{type(self).__name__}: a training loss must be the first one of a batch of this loader, got another: is it "
                "one of validation, and the model in training mode?"
            )
        return index

    def loss(self, model: Any, **settings: Any) -> EngineLoss:
        """The engine's training loss, to be put in the place of its masked MAE.

        Args:
            model: the engine's model. Its flag `training` tells training from validation: these engines validate with
                gradients enabled.
            settings: of `PrunedLoss`, such as ``loss="mse"`` or ``null_value=None``; where not given, the engine's own.
        """
        return EngineLoss(self, PrunedLoss(self.sampler, model=model, **{**self.settings, **settings}))


class EngineLoss:
    """The loss of an engine's batches; made by `EngineLoader.loss`.

    In training it gives the batch's ids to a `PrunedLoss`; in evaluation it is the plain masked loss.
    """

    def __init__(self, loader: EngineLoader, criterion: PrunedLoss) -> None:
        self.loader, self.criterion = loader, criterion

    def __call__(self, prediction: Tensor, target: Tensor, null_value: Any = None) -> Tensor:
        """The batch loss, a scalar.

        Args:
            prediction, target: as the engine gives them, in the series' unit.
            null_value: not used: the criterion's own holds for every batch.
        """
        return self.criterion(prediction, target, self.loader.take() if self.criterion.trains(prediction) else None)


class LargeSTLoader(EngineLoader):
    """The training loader of LargeST's engines; it cuts the windows of LargeST's own loader from the same series.

    The loss leaves out targets of 0, up to the rounding of LargeST's scaling forth and back, in training and evaluation.
    LargeST itself leaves out the smallest value of every batch if that is below 1. That rule depends on which windows meet in
    a batch, so no sampler can keep it; on series with zeros in every batch it does the same.

    Args:
        loader: LargeST's training loader, not shuffled yet; padded copies at its end are left out.
        sampler: over its windows: ``PruningSampler(len(loader.idx), num_epochs=args.max_epochs)``.

    Raises:
        ValueError: the sampler has another number of samples, or the windows are not in their order.

    Source:
        LargeST b7c6ff5: src/utils/dataloader.py, src/base/engine.py.
    """

    # A zero comes back from (x - mean) / std in float32 as less than 2^-22 of the mean: below this for means up to 400.
    settings: ClassVar = {"null_value": 0.0, "null_tolerance": 1e-4}

    def __init__(self, loader: Any, sampler: PruningSampler) -> None:
        idx = np.asarray(loader.idx)
        _check_padding("LargeSTLoader", idx, sampler, loader.bs)
        idx = idx[: sampler.num_windows]
        if (np.diff(idx) != 1).any():
            raise ValueError("LargeSTLoader: loader must hold neighbouring windows in their order, as before its first shuffle")
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

    Its data set is stored as windows, so they are taken from there. With the series at hand no window need be stored:
    ``loader = EngineLoader(WindowLoader(series, sampler, ...))``, ``loader.loss(model, **GraphWaveNetLoader.settings)``.

    Args:
        loader: Graph WaveNet's training loader, not shuffled yet; padded copies at its end are left out.
        sampler: over its windows: ``PruningSampler(len(dataloader["x_train"]), num_epochs=args.epochs)``.

    Raises:
        ValueError: the sampler has another number of samples, or the loader was shuffled with its copies.

    Source:
        Graph WaveNet 6b162e8: util.py, engine.py, train.py.
    """

    settings: ClassVar = {"null_value": 0.0, "dims": "BCNT"}

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
        raise ValueError(f"{op}: loader must hold copies of its last window after {count} windows, unshuffled")
