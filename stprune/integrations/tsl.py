"""tsl (Torch Spatiotemporal): ids in its batches, plan weights in its masked losses."""

from __future__ import annotations

from typing import Any

import torch
from tsl.data.loader import StaticGraphLoader
from tsl.metrics.torch import MaskedMetric

from stprune.integrations.lightning import BatchPruning


class Pruning(BatchPruning):
    """The callback of a pruned run of tsl, its training loader and its loss.

    `Predictor` and its other metrics stay as they are. The loss is the given `MaskedMetric`, whose values are multiplied by the
    plan's weights before it takes their masked mean; a sample's score is its own mean over its unmasked values.

    Args:
        sampler: the run's sampler, over the windows of the training set (a `SpatioTemporalDataset`, or the subset of one that a
            data module gives as `trainset`).
        batch_size: of the training loader, on each rank.

    Raises:
        As `stprune.integrations.lightning.Pruning`.
    """

    def loader(self, dataset: Any, **options: Any) -> StaticGraphLoader:
        """The training loader: a `StaticGraphLoader` with the sampler, whose batches hold their ids as `batch.sample`.

        Args:
            dataset: the training set.
            **options: of the loader, such as num_workers.
        """
        return StaticGraphLoader(_WithIds(dataset), batch_size=self.batch_size, sampler=self.sampler, **options)

    def loss(self, metric: MaskedMetric) -> MaskedMetric:
        """The metric as `Predictor(loss_fn=...)`: weighted in training, itself in evaluation.

        Args:
            metric: a `MaskedMetric`; not changed.
        """
        made = metric.clone()
        plain = made.metric_fn

        # A function: Predictor copies its loss, and with an object it would copy the sampler.
        def weighted(y_hat: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self._weighted(plain(y_hat, y), made)

        made.metric_fn = weighted
        return made

    def _weighted(self, values: torch.Tensor, metric: MaskedMetric) -> torch.Tensor:
        if not self.trains(values):
            return values
        index, mask = self.batch.sample, self.batch.get("mask")
        mask = None if mask is None else mask[:, metric.at]
        if metric.is_masked(mask):
            known = torch.ones_like(values, dtype=torch.bool) if mask is None else mask.bool()
            known = known & ~values.isnan() if metric.mask_nans else known
            mask = known & ~values.isinf() if metric.mask_inf else known
        self.mean(values, index, mask=mask)  # stores the scores: the mean is the metric's own
        weights = self.sampler.weights_of(index).to(values).view(-1, *[1] * (values.dim() - 1))
        # Of the values' own layout, so that sums of the product are made in the order in which the library makes them.
        return values * torch.empty_like(values, requires_grad=False).copy_(weights)


class _WithIds(torch.utils.data.Dataset[Any]):
    """A data set whose batches [B] hold the ids that they were asked for by."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, ids: list[int]) -> Any:
        batch = self.dataset[ids]
        batch.sample = torch.tensor(ids)  # PyTorch Geometric takes names with "index" for positions of nodes
        return batch
