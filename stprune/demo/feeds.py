"""Where a training run's batches come from: a plain shuffle, or stprune's sampler and loss."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

import stprune
from stprune.demo.windows import Batch, Problem


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

    def batches(self) -> Iterator[Batch]:
        """The planned epoch's batches."""

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """The training loss of a batch, a scalar."""

    def steps_after(self, epoch: int) -> int:
        """Optimizer steps that are still to come when `epoch` is over, an estimate where the method decides later."""


class Shuffle:
    """The sampler of plain training: a fresh permutation each epoch, cut short at the end of the run if asked.

    Args:
        num_samples: windows of the training part.
        seed: of the permutations.
        max_samples: windows of the whole run, repeats counted; None for no end.
    """

    def __init__(self, num_samples: int, seed: int, max_samples: int | None = None) -> None:
        self.num_samples = num_samples
        self.seed = seed
        self.max_samples = max_samples
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Windows of the epoch."""
        return self.count(self.epoch)

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_samples)
        return iter(order[: len(self)].tolist())

    def count(self, epoch: int) -> int:
        """Windows of a given epoch."""
        if self.max_samples is None:
            return self.num_samples
        return max(0, min(self.num_samples, self.max_samples - epoch * self.num_samples))


Delivery = Callable[[Problem, Shuffle, int], Iterator[Batch]]
"""Makes the batches of a problem's training part, of an order's current epoch and a size."""


def by_window_loader(problem: Problem, order: Shuffle, batch_size: int) -> Iterator[Batch]:
    """The demo's `Delivery`."""
    return problem.batches(problem.split.train, order, batch_size=batch_size)


class PlainFeed:
    """Training without stprune: a fresh permutation each epoch and the plain masked loss.

    Args:
        problem: series and split.
        batch_size: windows per step.
        num_epochs: epochs; None takes as many as `max_steps` needs, the last one cut short.
        seed: of the permutations.
        max_steps: steps of the whole run, or None for `num_epochs` whole epochs.
        delivery: who makes the batches.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        batch_size: int,
        seed: int,
        num_epochs: int | None = None,
        max_steps: int | None = None,
        delivery: Delivery = by_window_loader,
    ) -> None:
        self.problem = problem
        self.batch_size = batch_size
        self.plan_seconds = 0.0
        num_samples = len(problem.split.train)
        per_epoch = math.ceil(num_samples / batch_size)
        if num_epochs is None:
            if max_steps is None:
                raise ValueError("PlainFeed: num_epochs or max_steps must be given, got None")
            num_epochs = math.ceil(max_steps / per_epoch)
        self.num_epochs = num_epochs
        whole, rest = divmod(max_steps, per_epoch) if max_steps is not None else (num_epochs, 0)
        # A cut epoch ends with a full batch.
        self._order = Shuffle(num_samples, seed, whole * num_samples + rest * batch_size)
        self._delivery = delivery

    def _steps(self, epoch: int) -> int:
        return math.ceil(self._order.count(epoch) / self.batch_size)

    def start(self, epoch: int) -> int:
        """See `Feed`."""
        self._order.set_epoch(epoch)
        return self._steps(epoch)

    def batches(self) -> Iterator[Batch]:
        """See `Feed`."""
        return self._delivery(self.problem, self._order, self.batch_size)

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """See `Feed`."""
        return masked_mae(prediction, batch.y, complete=self.problem.complete)

    def steps_after(self, epoch: int) -> int:
        """See `Feed`."""
        return sum(self._steps(later) for later in range(epoch + 1, self.num_epochs))


class PrunedFeed:
    """Training with stprune: `PruningSampler` decides, `PrunedLoss` weighs and scores.

    Args:
        problem: series and split.
        method: name of the pruning method.
        num_epochs: epochs of the run.
        keep_ratio: share of the windows kept before the annealing.
        node_ratio: share of the nodes drawn in every window.
        node_sampler: "uniform", or "priority" for nodes by their error.
        batch_size: windows per step.
        seed: of the plans.
        strata: [num_samples] int64 strata of the windows, or None.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        method: str,
        num_epochs: int,
        keep_ratio: float,
        node_ratio: float,
        batch_size: int,
        seed: int,
        strata: Tensor | None = None,
        node_sampler: str = "uniform",
    ) -> None:
        self.problem = problem
        self.num_epochs = num_epochs
        self.batch_size = batch_size
        self.plan_seconds = 0.0
        self.extra_loss_seconds: list[float] = []
        self.node_ratio = node_ratio
        self.sampler = stprune.PruningSampler(
            len(problem.split.train),
            num_epochs=num_epochs,
            keep_ratio=keep_ratio,
            method=method,
            seed=seed,
            strata=strata,
            num_nodes=problem.num_nodes,
            node_ratio=node_ratio,
            node_sampler=node_sampler,
        )
        # Only ST-Prune looks at where in a window the error sits; the others rank by the plain loss or not at all.
        spread = 0.5 if method == "st-prune" else 0.0
        self.criterion = stprune.PrunedLoss(
            self.sampler,
            loss="mae",
            null_value=None if problem.complete else math.nan,
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

    def batches(self) -> Iterator[Batch]:
        """See `Feed`."""
        return self.problem.batches(self.problem.split.train, self.sampler, batch_size=self.batch_size)

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """See `Feed`."""
        loss: Tensor = self.criterion(prediction, batch.y, batch.index, batch.node)
        return loss

    def replay_draws(self) -> None:
        """Give out the epoch's ids and draw its nodes once more, and count the time as planning.

        Within the epoch the loader does this beside the training, where it has no clock of its own. To be called while the
        run's clock stands.
        """
        started = time.perf_counter()
        for ids in self.sampler.batches(self.batch_size):
            if self.node_ratio < 1.0:
                self.sampler.nodes(torch.from_numpy(ids).to(self.problem.device))
        synchronize(self.problem.device)
        self.plan_seconds += time.perf_counter() - started

    def steps_after(self, epoch: int) -> int:
        """See `Feed`."""
        total = 0
        pruned = [length for e, length in self._length.items() if e > 0 and self.sampler.keep_ratio_at(e) < 1]
        for later in range(epoch + 1, self.num_epochs):
            ratio = self.sampler.keep_ratio_at(later)
            if self._adaptive and ratio < 1 and pruned:
                total += pruned[-1]
            else:
                total += math.ceil(round(ratio * self.sampler.table.num_samples) / self.batch_size)
        return total

    def probe_loss(self, prediction: Tensor, batch: Batch) -> None:
        """Measure what the pruned loss costs beyond the plain one, on a real batch and without a trace in the scores.

        Forward and backward of both, alternating, five times; the difference of the medians is kept. To be called
        while the run's clock stands.

        Args:
            prediction: [B, T, N, C] of the batch just trained on; not modified.
            batch: that batch.
        """
        criterion = copy.deepcopy(self.criterion)
        leaf = prediction.detach().requires_grad_()
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(5):
            for kind in (0, 1):
                synchronize(leaf.device)
                started = time.perf_counter()
                if kind:
                    loss = criterion(leaf, batch.y, batch.index, batch.node)
                else:
                    loss = masked_mae(leaf, batch.y, complete=self.problem.complete)
                loss.backward()
                synchronize(leaf.device)
                seconds[kind].append(time.perf_counter() - started)
                leaf.grad = None
        self.extra_loss_seconds.append(statistics.median(seconds[1]) - statistics.median(seconds[0]))


def synchronize(device: torch.device) -> None:
    """Wait for the device's queue, so that a clock read next counts the work that was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
