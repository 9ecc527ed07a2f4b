"""EpochPlan: which samples an epoch trains on, in what order, at what weight."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from stprune.methods import Full, Method, resolve
from stprune.ops import _check, permute, shuffle
from stprune.ops.finite_mean import finite_mean
from stprune.ops.plan_budget import Buffers
from stprune.ops.strata import Strata, checked_strata


@dataclass(frozen=True)
class EpochPlan:
    """The kept samples of one epoch.

    Attributes:
        epoch: the epoch it was made for.
        indices: [K] int64 kept ids, ascending.
        weights: [K] float32, aligned with `indices`; for an unbiased method their sum over the kept set estimates
            num_samples.
        num_samples: size of the training set.
        seed: what the order is keyed by, together with the epoch.
        mean_weight: mean of `weights`; dividing by it gives the `per_step` convention.
    """

    epoch: int
    indices: torch.Tensor
    weights: torch.Tensor
    num_samples: int
    seed: int
    mean_weight: float

    def __len__(self) -> int:
        return self.indices.numel()

    @property
    def is_full(self) -> bool:
        """Whether every sample is kept."""
        return len(self) == self.num_samples

    def order(self, start: int, stop: int) -> torch.Tensor:
        """Ids at positions [start, stop) of the epoch's shuffled order, [stop - start] int64.

        The order is a counter-based permutation: any stretch costs only its own length, and every rank and device sees the
        same one.
        """
        if not self.is_full and start == 0 and stop == len(self):
            return shuffle(self.indices, seed=self.seed, epoch=self.epoch)
        positions = permute(len(self), start, stop, seed=self.seed, epoch=self.epoch)
        # Several times as fast as indexing by a tensor.
        return positions if self.is_full else self.indices.index_select(0, positions.to(self.indices.device))

    def lookup(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights [B] of sample ids [B], and whether each id is in the plan [B] bool (the weight is 0 where not)."""
        if len(self) == 0:
            return torch.zeros(index.shape, device=index.device), torch.zeros_like(index, dtype=torch.bool)
        if self.is_full:
            position = index.clamp(0, self.num_samples - 1)
        else:
            position = torch.searchsorted(self.indices, index.contiguous()).clamp_max(len(self) - 1)
        known = self.indices[position] == index
        return torch.where(known, self.weights[position], 0.0), known

    def shard(self, rank: int, num_replicas: int) -> EpochPlan:
        """This rank's share: every num_replicas-th sample of the order. Shares are disjoint and of equal size.

        The last K mod num_replicas samples of the order go to nobody, as shares could not be equal otherwise.

        Raises:
            ValueError: rank lies outside [0, num_replicas - 1].
        """
        num_replicas = _check.integer("EpochPlan.shard", "num_replicas", num_replicas, 1)
        rank = _check.integer("EpochPlan.shard", "rank", rank, 0, num_replicas - 1)
        size = len(self) // num_replicas
        positions = permute(len(self), 0, size * num_replicas, seed=self.seed, epoch=self.epoch)[rank::num_replicas]
        kept = positions.sort().values.to(self.indices.device)
        weights = self.weights[kept]
        return replace(self, indices=self.indices[kept], weights=weights, mean_weight=_mean(weights))

    def to(self, device: torch.device | str) -> EpochPlan:
        """The same plan with its tensors on `device`."""
        return replace(self, indices=self.indices.to(device), weights=self.weights.to(device))

    def copied_into(self, out: Buffers) -> EpochPlan:
        """The same plan in buffers of another device."""
        indices = out.indices[: len(self)].copy_(self.indices)
        weights = out.weights[: len(self)].copy_(self.weights)
        return replace(self, indices=indices, weights=weights)


class PlanWeights:
    """A plan's ids and weights beside the scores, for training steps to look up.

    Args:
        plan: the epoch's plan, on the host.
        device: the training device.
    """

    def __init__(self, plan: EpochPlan, device: torch.device) -> None:
        self._plan = plan
        self._indices, self._weights = plan.indices.to(device), plan.weights.to(device)
        # A tensor: a number would be a constant of a compiled step, which would be compiled again every epoch.
        self._mean = torch.tensor(plan.mean_weight, dtype=torch.float32, device=device)
        self._full = plan.is_full

    def arguments(self, *, per_step: bool) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor | None, int]:
        """What `pruned_step` takes of a plan."""
        ids = None if self._full else self._indices
        return ids, self._weights, self._mean if per_step else None, self._plan.num_samples


def plan_epoch(
    scores: torch.Tensor,
    *,
    method: str | Method = "st-prune",
    keep_ratio: float,
    epoch: int,
    seed: int,
    strata: torch.Tensor | None = None,
) -> EpochPlan:
    """Choose the samples of an epoch. A pure function: the same arguments give the same plan on every rank and device.

    Args:
        scores: [num_samples] floating, from earlier epochs; +inf (never scored) and NaN are kept. Not modified.
        method: a name from `stprune.METHODS` or a method object.
        keep_ratio: share of the samples to keep, in (0, 1]; 1 keeps all with weight 1, whatever the method.
        epoch: in [0, 2^32).
        seed: in [0, 2^63).
        strata: [num_samples] int64 labels >= 0, or None. With strata every stratum keeps its exact share of the total
            weight (eq. 10).

    Returns:
        The plan; `indices` are ascending.

    Raises:
        TypeError, ValueError: an argument breaks its rule; the message names it.

    Example:
        >>> import torch, stprune
        >>> plan = stprune.plan_epoch(torch.ones(10), method="soft-random", keep_ratio=0.3, epoch=0, seed=0)
        >>> len(plan), float(plan.weights.sum())
        (3, 10.0)

    Source:
        Eq. 6-10.
    """
    op = "plan_epoch"
    scores = _check.vector(op, "scores", _check.floating(op, "scores", scores)).detach()
    keep_ratio = _check.real(op, "keep_ratio", keep_ratio, 0.0, 1.0, low_open=True)
    seed, epoch = _check.seed_and_epoch(op, seed, epoch)
    rule = resolve(method)
    num_samples = scores.numel()
    labels = None if strata is None else checked_strata(op, strata, num_samples).to(scores.device)
    return planned(scores, rule, keep_ratio=keep_ratio, epoch=epoch, seed=seed, strata=labels)


def planned(
    scores: torch.Tensor,
    rule: Method,
    *,
    keep_ratio: float,
    epoch: int,
    seed: int,
    strata: Strata | None = None,
    out: Buffers | None = None,
) -> EpochPlan:
    """`plan_epoch` of arguments that were checked, into buffers of the caller's where the method can use them.

    Args:
        scores, keep_ratio, epoch, seed: as in `plan_epoch`.
        rule: the method.
        strata: the samples' strata, on the device of `scores`; or None.
        out: see `stprune.ops.plan_budget`; num_samples elements on the device of `scores`. The plan may be views of them.
    """
    num_samples = scores.numel()
    if keep_ratio == 1.0 or num_samples == 0 or type(rule) is Full:
        everything = (
            torch.arange(num_samples, device=scores.device) if out is None else torch.arange(num_samples, out=out.indices)
        )
        weights = torch.ones(1, device=scores.device).expand(num_samples)
        return EpochPlan(epoch, everything, weights, num_samples, seed, 1.0)
    kept = rule.planned(scores.float(), keep_ratio=keep_ratio, seed=seed, epoch=epoch, strata=strata, out=out)
    return EpochPlan(epoch, kept.indices, kept.weights, num_samples, seed, kept.mean_weight)


def _mean(weights: torch.Tensor) -> float:
    # Exact for equal weights, so that dividing by it gives exactly 1.
    return finite_mean(weights) if weights.numel() else 1.0
