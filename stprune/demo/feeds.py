"""Where a training run's batches come from: a plain shuffle, or stprune's sampler and loss."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import stprune

IntArray = NDArray[np.int64]


def masked_mae(prediction: Tensor, target: Tensor, *, complete: bool) -> Tensor:
    """The usual loss of the field: mean absolute error over the targets that are not missing.

    Args:
        prediction: [B, T, N, C] float, not modified.
        target: the same shape; NaN where missing.
        complete: True when no target is missing, which saves the mask.

    Returns:
        Scalar in the target's unit; 0 when every target is missing.
    """
    if complete:
        return (prediction - target).abs().mean()
    valid = torch.isfinite(target)
    error = torch.where(valid, prediction - target, 0.0).abs().sum()
    return error / valid.sum().clamp_min(1)


class Feed(Protocol):
    """A run's source of batches.

    Attributes:
        num_epochs: epochs of the run.
        plan_seconds: time spent so far on deciding what to train on.
    """

    num_epochs: int
    plan_seconds: float

    def start(self, epoch: int) -> int:
        """Plan an epoch; return its number of optimizer steps."""

    def batches(self) -> Iterator[IntArray]:
        """Window ids of the planned epoch's batches."""

    def nodes(self, index: Tensor) -> Tensor | None:
        """[B, m] int64 drawn nodes of a batch, or None for all nodes."""

    def loss(self, prediction: Tensor, target: Tensor, index: Tensor, node: Tensor | None) -> Tensor:
        """The training loss of a batch, a scalar."""

    def steps_after(self, epoch: int) -> int:
        """Optimizer steps that are still to come when `epoch` is over, an estimate where the method decides later."""


@dataclass
class PlainFeed:
    """Training without stprune: a fresh permutation each epoch and the plain masked loss.

    Attributes:
        num_samples: windows of the training part.
        batch_size: windows per step.
        num_epochs: epochs; the last one is cut short when `max_steps` says so.
        seed: of the permutations.
        complete: no target is missing.
        max_steps: steps of the whole run, or None for `num_epochs` whole epochs.
    """

    num_samples: int
    batch_size: int
    num_epochs: int
    seed: int
    complete: bool
    max_steps: int | None = None
    plan_seconds: float = 0.0
    _epoch: int = field(default=0, repr=False)

    @classmethod
    def of_steps(cls, num_samples: int, batch_size: int, *, max_steps: int, seed: int, complete: bool) -> PlainFeed:
        """A feed that stops after `max_steps` optimizer steps."""
        per_epoch = math.ceil(num_samples / batch_size)
        return cls(num_samples, batch_size, math.ceil(max_steps / per_epoch), seed, complete, max_steps)

    def _steps(self, epoch: int) -> int:
        whole = math.ceil(self.num_samples / self.batch_size)
        return whole if self.max_steps is None else min(whole, self.max_steps - epoch * whole)

    def start(self, epoch: int) -> int:
        """See `Feed`."""
        self._epoch = epoch
        return self._steps(epoch)

    def batches(self) -> Iterator[IntArray]:
        """See `Feed`."""
        started = time.perf_counter()
        order = np.random.default_rng([self.seed, self._epoch]).permutation(self.num_samples)
        self.plan_seconds += time.perf_counter() - started
        for step in range(self._steps(self._epoch)):
            yield order[step * self.batch_size : (step + 1) * self.batch_size]

    def nodes(self, index: Tensor) -> Tensor | None:
        """See `Feed`."""
        return None

    def loss(self, prediction: Tensor, target: Tensor, index: Tensor, node: Tensor | None) -> Tensor:
        """See `Feed`."""
        return masked_mae(prediction, target, complete=self.complete)

    def steps_after(self, epoch: int) -> int:
        """See `Feed`."""
        return sum(self._steps(later) for later in range(epoch + 1, self.num_epochs))


class PrunedFeed:
    """Training with stprune: `PruningSampler` decides, `PrunedLoss` weighs and scores.

    Args:
        num_samples: windows of the training part.
        num_nodes: nodes of the series.
        method: name of the pruning method.
        num_epochs: epochs of the run.
        keep_ratio: share of the windows kept before the annealing.
        node_ratio: share of the nodes drawn in every window.
        batch_size: windows per step.
        seed: of the plans.
        complete: no target is missing.
        strata: [num_samples] int64 strata of the windows, or None.
    """

    def __init__(
        self,
        num_samples: int,
        num_nodes: int,
        *,
        method: str,
        num_epochs: int,
        keep_ratio: float,
        node_ratio: float,
        batch_size: int,
        seed: int,
        complete: bool,
        strata: Tensor | None = None,
    ) -> None:
        self.num_samples = num_samples
        self.complete = complete
        self.num_epochs = num_epochs
        self.batch_size = batch_size
        self.plan_seconds = 0.0
        self.extra_loss_seconds: list[float] = []
        self.node_ratio = node_ratio
        self.sampler = stprune.PruningSampler(
            num_samples,
            num_epochs=num_epochs,
            keep_ratio=keep_ratio,
            method=method,
            seed=seed,
            strata=strata,
            num_nodes=num_nodes,
            node_ratio=node_ratio,
        )
        # Only ST-Prune looks at where in a window the error sits; the others rank by the plain loss or not at all.
        spread = 0.5 if method == "st-prune" else 0.0
        self.criterion = stprune.PrunedLoss(
            self.sampler,
            loss="mae",
            null_value=None if complete else math.nan,
            spatial=spread,
            temporal=spread,
            rescale="epoch_sum" if method == "infobatch" else "per_step",
        )
        # InfoBatch and SeTa know an epoch's length only once the scores are in.
        self._adaptive = method in ("infobatch", "seta")
        self._length: dict[int, int] = {}

    def start(self, epoch: int) -> int:
        """See `Feed`."""
        started = time.perf_counter()
        self.sampler.set_epoch(epoch)
        self._length[epoch] = math.ceil(len(self.sampler) / self.batch_size)
        self.plan_seconds += time.perf_counter() - started
        return self._length[epoch]

    def batches(self) -> Iterator[IntArray]:
        """See `Feed`."""
        started = time.perf_counter()
        for index in self.sampler.batches(self.batch_size):
            self.plan_seconds += time.perf_counter() - started
            yield index
            started = time.perf_counter()
        self.plan_seconds += time.perf_counter() - started

    def nodes(self, index: Tensor) -> Tensor | None:
        """See `Feed`."""
        if self.node_ratio == 1.0:
            return None
        started = time.perf_counter()
        node = self.sampler.nodes(index)
        self.plan_seconds += time.perf_counter() - started
        return node

    def loss(self, prediction: Tensor, target: Tensor, index: Tensor, node: Tensor | None) -> Tensor:
        """See `Feed`."""
        loss: Tensor = self.criterion(prediction, target, index, node)
        return loss

    def steps_after(self, epoch: int) -> int:
        """See `Feed`."""
        total = 0
        pruned = [length for e, length in self._length.items() if e > 0 and self.sampler.keep_ratio_at(e) < 1]
        for later in range(epoch + 1, self.num_epochs):
            ratio = self.sampler.keep_ratio_at(later)
            if self._adaptive and ratio < 1 and pruned:
                total += pruned[-1]
            else:
                total += math.ceil(round(ratio * self.num_samples) / self.batch_size)
        return total

    def probe_loss(self, prediction: Tensor, target: Tensor, index: Tensor, node: Tensor | None) -> None:
        """Measure what the pruned loss costs beyond the plain one, on a real batch and without a trace in the scores.

        Forward and backward of both, alternating, five times; the difference of the medians is kept. To be called
        while the run's clock stands.

        Args:
            prediction: [B, T, N, C] of the batch just trained on; not modified.
            target: the same shape.
            index: [B] int64 window ids.
            node: [B, m] int64 or None.
        """
        criterion = copy.deepcopy(self.criterion)
        leaf = prediction.detach().requires_grad_()
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(5):
            for kind in (0, 1):
                synchronize(leaf.device)
                started = time.perf_counter()
                if kind:
                    loss = criterion(leaf, target, index, node)
                else:
                    loss = masked_mae(leaf, target, complete=self.complete)
                loss.backward()
                synchronize(leaf.device)
                seconds[kind].append(time.perf_counter() - started)
                leaf.grad = None
        self.extra_loss_seconds.append(statistics.median(seconds[1]) - statistics.median(seconds[0]))


def synchronize(device: torch.device) -> None:
    """Wait for the device's queue, so that a clock read next counts the work that was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
