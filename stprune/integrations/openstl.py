"""OpenSTL: ids in its batches, its criterion weighted; epochs of one length, as its schedules need them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

import stprune
from stprune import PruningSampler
from stprune.integrations.lightning import BatchPruning
from stprune.integrations.requirements import require_constant_length


class Pruning(BatchPruning):
    """The callback of a pruned run of OpenSTL, its training loader and its criterion.

    For methods whose training step calls `self.criterion(prediction, target)` once, as SimVP's does. Terms that a method adds
    outside of it (TAU's divergence) are not weighted.

    OpenSTL takes `len(train_loader)` for the steps of each epoch when it builds its schedule.

    Args:
        sampler: the run's sampler, over the clips of the training set, with epochs of one length.
        batch_size: of the training loader, on each rank.

    Raises:
        ValueError: the sampler's epochs may differ in length. And as `stprune.integrations.lightning.Pruning`.
    """

    def __init__(self, sampler: PruningSampler, *, batch_size: int) -> None:
        super().__init__(sampler, batch_size=batch_size)
        require_constant_length("Pruning", sampler, "OpenSTL builds its schedule from the first epoch's length")

    def loader(self, dataset: Any, **options: Any) -> DataLoader[Any]:
        """The training loader for `BaseExperiment(args, dataloaders=(loader, val_loader, test_loader))`.

        Args:
            dataset: the training set, of pairs of clips [T, C, H, W].
            **options: of the DataLoader, such as num_workers.
        """
        indexed = stprune.IndexedDataset(dataset)
        return DataLoader(
            indexed, batch_size=self.batch_size, sampler=self.sampler, collate_fn=_Collate(stprune.indexed()), **options
        )

    def criterion(self, criterion: torch.nn.Module) -> torch.nn.Module:
        """The experiment's criterion, weighted in training: `exp.method.criterion = pruning.criterion(exp.method.criterion)`.

        Args:
            criterion: a loss with a `reduction`, such as `torch.nn.MSELoss()`; not changed.
        """
        return _Criterion(self, criterion)


class _Criterion(torch.nn.Module):
    def __init__(self, pruning: Pruning, criterion: Any) -> None:
        super().__init__()
        self.pruning, self.plain, self.unreduced = pruning, criterion, copy.copy(criterion)
        self.unreduced.reduction = "none"

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The mean over a batch of clips [B, T, C, H, W]."""
        if not self.pruning.trains(prediction):
            loss: torch.Tensor = self.plain(prediction, target)
            return loss
        weighted: torch.Tensor = self.pruning.mean(self.unreduced(prediction, target), self.pruning.batch.index)
        return weighted


class _Batch:
    """A pair of clips that unpacks as OpenSTL's steps unpack it, and its ids [B]."""

    def __init__(self, index: torch.Tensor, clips: list[torch.Tensor]) -> None:
        self.index, self.clips = index, clips

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self.clips)

    def to(self, *where: Any, **options: Any) -> _Batch:
        """Lightning moves batches by it. The ids stay on the host, where they are looked up."""
        return _Batch(self.index, [clip.to(*where, **options) for clip in self.clips])

    def pin_memory(self) -> _Batch:
        """A DataLoader pins batches by it."""
        return _Batch(self.index, [clip.pin_memory() for clip in self.clips])


class _Collate:
    def __init__(self, collate_fn: Callable[[Any], Any]) -> None:
        self.collate_fn = collate_fn

    def __call__(self, items: Any) -> _Batch:
        return _Batch(*self.collate_fn(items))
