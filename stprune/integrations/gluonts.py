"""GluonTS on torch: the windows of its series as samples, its likelihoods as losses per sample."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from gluonts.itertools import select
from gluonts.transform import InstanceSampler
from torch.utils.data import DataLoader, Dataset

from stprune import PrunedMean, PruningSampler
from stprune.integrations.lightning import Pruning

_OP = "gluonts.pruned"


def num_windows(estimator: Any, dataset: Iterable[Any]) -> int:
    """How many windows an estimator can train on: the samples of a run.

    Args:
        estimator: a `PyTorchLightningEstimator`.
        dataset: the training data, as `estimator.train` takes it.
    """
    return int(_windows(estimator, dataset)[-1])


def pruned(estimator: Any, sampler: PruningSampler) -> Any:
    """An estimator that trains on a sampler's plans; it is like the given one in all else.

    A sample is a window: every place at which the estimator's `train_sampler` may cut a series. GluonTS draws places at
    random and without end; here an epoch is the plan, `num_batches_per_epoch` means nothing, and `trainer_kwargs` must give
    the sampler's epochs as `max_epochs`. The loss stays the estimator's own: the likelihood, or whatever its model's `loss`
    gives for each window, weighted by the plan. The predictor that comes out is the estimator's own, too.

    The transformed series are kept in memory, as with `cache_data=True`. GluonTS saves weights alone, so that a run cannot be
    resumed unless a `ModelCheckpoint` of your own is among the callbacks.

    Args:
        estimator: a `PyTorchLightningEstimator` whose model's `loss` gives a value for each window, as all of GluonTS 0.17
            but WaveNet. Not changed.
        sampler: the run's sampler, over `num_windows(estimator, dataset)` samples.

    Raises:
        ValueError, TypeError: in training: the sampler has another number of samples than the data windows, or the model
            gives no loss for each window. And as `stprune.integrations.lightning.Pruning`.
    """
    made = copy.copy(estimator)
    made.__class__ = _subclass(_Estimator, type(estimator))
    made.sampler = sampler
    callback = Pruning(sampler, batch_size=estimator.batch_size)
    made.trainer_kwargs = estimator.trainer_kwargs | {"callbacks": [callback, *estimator.trainer_kwargs.get("callbacks", [])]}
    return made


class _Estimator:
    """Before an estimator's class."""

    def create_training_data_loader(self: Any, data: Any, module: Any, **options: Any) -> Any:
        """The loader of the plan's windows."""
        windows = _WindowSet(self, list(data), module)
        if len(windows) != self.sampler.num_windows:
            raise ValueError(f"{_OP}: sampler must have the data's {len(windows)} windows, got {self.sampler.num_windows}")
        return DataLoader(windows, batch_size=self.batch_size, sampler=self.sampler, collate_fn=_as_it_is)

    def create_lightning_module(self: Any) -> Any:
        module = super().create_lightning_module()  # type: ignore[misc]
        if not hasattr(module, "inputs"):
            raise TypeError(f"{_OP}: the estimator's module must describe its inputs, got {type(module).__name__}")
        module.__class__ = _subclass(_Module, type(module))
        module.pruned_mean = PrunedMean(self.sampler)
        return module

    def create_predictor(self: Any, transformation: Any, module: Any) -> Any:
        module.__class__ = type(module).__mro__[2]  # its own, which can be saved by name
        del module.pruned_mean
        return super().create_predictor(transformation, module)  # type: ignore[misc]


class _Module:
    """Before a LightningModule's class: its step, with the weighted mean in place of `mean()`."""

    def training_step(self: Any, batch: Any, batch_idx: int) -> torch.Tensor:
        values = self.model.loss(
            **select(self.inputs, batch, ignore_missing=True),
            future_target=batch["future_target"],
            future_observed_values=batch["future_observed_values"],
        )
        loss: torch.Tensor = self.pruned_mean(values, batch["index"])
        self.log("train_loss", loss, on_epoch=True, on_step=False, prog_bar=True)
        return loss


class _WindowSet(Dataset[Any]):
    """Windows of series by their ids; whole batches are cut by the estimator's own loader."""

    def __init__(self, estimator: Any, entries: list[Any], module: Any) -> None:
        self.entries, self.module = entries, module
        self.estimator, self.ends = estimator, _windows(estimator, entries)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitems__(self, ids: Sequence[int]) -> Any:
        series = np.searchsorted(self.ends, ids, side="right")
        begins = np.concatenate(([0], self.ends))[series]
        estimator = copy.copy(self.estimator)
        estimator.train_sampler = _Planned(places=(np.asarray(ids) - begins + self.estimator.train_sampler.min_past).tolist())
        estimator.batch_size = len(ids)
        entries = [self.entries[at] for at in series]
        stock = super(_Estimator, estimator).create_training_data_loader(entries, self.module)  # type: ignore[misc]
        return next(iter(stock)) | {"index": torch.tensor(ids)}


class _Planned(InstanceSampler):  # type: ignore[misc]
    """Cuts each series it is asked about at the next place."""

    places: list[int]

    def __call__(self, ts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.array([self.places.pop(0)])


def _windows(estimator: Any, entries: Iterable[Any]) -> np.ndarray[Any, Any]:
    """[series] int64: the number of windows up to and with each series."""
    cuts = estimator.train_sampler
    sizes = [entry["target"].shape[cuts.axis] - cuts.min_future - cuts.min_past + 1 for entry in entries]
    return np.cumsum(np.maximum(sizes, 0))


def _subclass(first: type, cls: type) -> type:
    return type(f"Pruned{cls.__name__}", (first, cls), {})


def _as_it_is(batch: Any) -> Any:
    return batch
