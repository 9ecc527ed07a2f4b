"""Plan: which samples an epoch trains on, in what order, at what weight."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from stprune.methods import Method, resolve
from stprune.ops import _check, permute, shuffle
from stprune.ops.finite_mean import finite_mean
from stprune.ops.order_positions import order_positions
from stprune.ops.plan_budget import Budgeted, Buffers
from stprune.ops.plan_lookup import rows_of
from stprune.ops.strata import Strata, calibrate, checked_strata
from stprune.quota import Quota, checked_quota, kept_by_quota


class Plan(Protocol):
    """The kept samples of one epoch, listed (`EpochPlan`) or made when they are asked for (`UniformPlan`).

    Attributes:
        epoch, seed: what the order is keyed by.
        num_samples: size of the training set.
        mean_weight: mean of `weights`; dividing by it gives the `per_step` convention.
    """

    @property
    def epoch(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def num_samples(self) -> int: ...
    @property
    def mean_weight(self) -> float: ...
    @property
    def indices(self) -> torch.Tensor:
        """[K] int64 kept ids, ascending."""

    @property
    def weights(self) -> torch.Tensor:
        """[K] float32, aligned with `indices`."""

    def __len__(self) -> int: ...
    def order(self, start: int, stop: int, device: torch.device | None = None) -> torch.Tensor:
        """Ids at positions [start, stop) of the epoch's shuffled order, [stop - start] int64; None: where the plan lies."""

    def share(self, start: int, number: int, rank: int, num_replicas: int, device: torch.device | None = None) -> torch.Tensor:
        """A rank's ids from position `start` of that order on, [number] int64: every num_replicas-th one.

        Past the order's end they are its first ids again: padding.
        """

    @property
    def local(self) -> torch.Tensor | None:
        """[m] int64 ids, ascending, that the rows of this rank's table stand for; None where row i is sample i."""

    def positions(self, index: torch.Tensor) -> torch.Tensor:
        """[B] int64: where the kept ids [B] stand in that order."""

    def lookup(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights [B] of sample ids [B], and whether each id is in the plan [B] bool (the weight is 0 where not)."""

    def columns(self) -> tuple[torch.Tensor | None, torch.Tensor]:
        """What a training step looks weights up in: kept ids, or None where every id may come, and weights [K] or [1]."""

    def renumbered(self, before: int, after: int) -> Plan:
        """The plan for windows of `after` nodes instead of `before`: the same pairs where it lists them."""


def share_of(
    order: Callable[[int, int], torch.Tensor], count: int, start: int, number: int, rank: int, num_replicas: int
) -> torch.Tensor:
    """`Plan.share` of an order of `count` ids, of which `order` gives any stretch."""
    end = start + number * num_replicas
    parts = [order(min(start, count), min(end, count))]
    # Padding may have to go round more than once on tiny epochs.
    parts += [order(at % count, at % count + 1) for at in range(max(start, count), end)]
    return torch.cat(parts)[rank::num_replicas].contiguous()


def weights_in(ids: torch.Tensor, weights: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`Plan.lookup` in a list of ids [K], ascending, and their weights [K]."""
    rows, known = rows_of(ids, index)
    found = weights.new_zeros(index.shape)
    found[known] = weights[rows[known]]
    return found, known


class _Whole:
    """What plans have in common of which every rank knows the whole order."""

    local = None

    def __len__(self) -> int:
        raise NotImplementedError

    def order(self, start: int, stop: int, device: torch.device | None = None) -> torch.Tensor:
        raise NotImplementedError

    def share(self, start: int, number: int, rank: int, num_replicas: int, device: torch.device | None = None) -> torch.Tensor:
        """A rank's ids from position `start` of the order on, [number] int64; past the end its first ids again."""
        order = functools.partial(self.order, device=device)
        return share_of(order, len(self), start, number, rank, num_replicas)


@dataclass(frozen=True)
class EpochPlan(_Whole):
    """The kept samples of one epoch, as a list.

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

    @functools.cached_property
    def _on_host(self) -> EpochPlan:
        """The same plan on the host: from another device it comes over once."""
        return self.to("cpu")

    def order(self, start: int, stop: int, device: torch.device | None = None) -> torch.Tensor:
        """Ids at positions [start, stop) of the epoch's shuffled order, [stop - start] int64; None: where `indices` lie.

        The order is a counter-based permutation: any stretch costs only its own length, and every rank and device sees the
        same one.
        """
        device = self.indices.device if device is None else device
        if self.is_full:
            return permute(len(self), start, stop, seed=self.seed, epoch=self.epoch, device=device)
        ids = self._on_host.indices if device.type == "cpu" else self.indices
        if start == 0 and stop == len(self):
            return shuffle(ids, seed=self.seed, epoch=self.epoch).to(device)
        positions = permute(len(self), start, stop, seed=self.seed, epoch=self.epoch, device=ids.device)
        # Several times as fast as indexing by a tensor.
        return ids.index_select(0, positions).to(device)

    def positions(self, index: torch.Tensor) -> torch.Tensor:
        """[B] int64: where the kept ids [B] stand in that order."""
        rank = index if self.is_full else torch.searchsorted(self.indices, index.contiguous().to(self.indices.device))
        return order_positions(rank, len(self), seed=self.seed, epoch=self.epoch)

    def lookup(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights [B] of sample ids [B], and whether each id is in the plan [B] bool (the weight is 0 where not).

        Ids on the host are looked up there.
        """
        plan = self._on_host if index.is_cpu else self
        return weights_in(plan.indices, plan.weights, index)

    def columns(self) -> tuple[torch.Tensor | None, torch.Tensor]:
        """What a training step looks weights up in: kept ids, or None where every id is kept, and weights [K] or [1]."""
        constant = self.is_full and self.weights.numel() > 0 and self.weights.stride(0) == 0
        return None if self.is_full else self.indices, self.weights[:1] if constant else self.weights

    def renumbered(self, before: int, after: int) -> EpochPlan:
        """The plan for windows of `after` nodes instead of `before`: the same pairs, by their new numbers."""
        indices = torch.div(self.indices, before, rounding_mode="floor") * after + self.indices % before
        return replace(self, indices=indices, num_samples=self.num_samples // before * after)

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
        mean = finite_mean(weights) if size else 1.0
        return replace(self, indices=self.indices[kept], weights=weights, mean_weight=mean)

    def to(self, device: torch.device | str) -> EpochPlan:
        """The same plan with its tensors on `device`."""
        return replace(self, indices=self.indices.to(device), weights=self.weights.to(device))


@dataclass(frozen=True)
class UniformPlan(_Whole):
    """The first `count` samples of the epoch's counter-based permutation: an exact uniform draw without a list of it.

    `indices` is made when somebody asks, of `count` elements; training does not.

    Attributes:
        epoch: the epoch it was made for.
        count: kept samples.
        num_samples: size of the training set.
        seed: what the permutation is keyed by, together with the epoch.
    """

    epoch: int
    count: int
    num_samples: int
    seed: int

    def __len__(self) -> int:
        return self.count

    @property
    def mean_weight(self) -> float:
        """num_samples / count: the weight of every kept sample, 1 / probability."""
        return self.num_samples / self.count if self.count else 1.0

    @functools.cached_property
    def indices(self) -> torch.Tensor:
        """[count] int64 kept ids, ascending; made now."""
        return self.order(0, self.count).sort().values

    @property
    def weights(self) -> torch.Tensor:
        """[count] float32, one value expanded."""
        return torch.full((1,), self.mean_weight, dtype=torch.float32).expand(self.count)

    def order(self, start: int, stop: int, device: torch.device | None = None) -> torch.Tensor:
        """Ids at positions [start, stop) of the epoch's shuffled order, [stop - start] int64; None: on the host."""
        return permute(self.num_samples, start, stop, seed=self.seed, epoch=self.epoch, device=device)

    def positions(self, index: torch.Tensor) -> torch.Tensor:
        """[B] int64: where the ids [B] stand in that order; from `count` on they are not kept."""
        return order_positions(index, self.num_samples, seed=self.seed, epoch=self.epoch)

    def lookup(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights [B] of ids [B], 0 where an id is not in the plan, and whether it is."""
        inside = (index >= 0) & (index < self.num_samples)
        known = inside & (self.positions(torch.where(inside, index, 0)) < self.count) if self.num_samples else inside
        return torch.where(known, self.mean_weight, 0.0), known

    def columns(self) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Every id may come, at one weight: which ids the plan holds is not stored, so a step checks their range alone."""
        return None, torch.full((1,), self.mean_weight, dtype=torch.float32)

    def renumbered(self, before: int, after: int) -> UniformPlan:
        """As large a plan for windows of `after` nodes instead of `before`: another draw, as nothing is listed."""
        return replace(self, num_samples=self.num_samples // before * after)


def plan_epoch(
    scores: torch.Tensor,
    *,
    method: str | Method = "st-prune",
    keep_ratio: float,
    epoch: int,
    seed: int,
    strata: torch.Tensor | None = None,
    min_per_stratum: int | Sequence[int] | torch.Tensor | None = None,
) -> EpochPlan:
    """Choose the samples of an epoch. A pure function: the same arguments give the same plan on every rank and device.

    Args:
        scores: [num_samples] floating, from earlier epochs; +inf (never scored) and NaN are kept. Not modified.
        method: a name from `stprune.METHODS` or a method object.
        keep_ratio: share of the samples to keep, in (0, 1]; 1 keeps all with weight 1, whatever the method.
        epoch: in [0, 2^32).
        seed: in [0, 2^63).
        strata: [num_samples] int64 labels >= 0, or None. Unbiased weights are calibrated, so that a stratum of which at
            least 30 samples are kept has its exact share of the total weight (eq. 10). Smaller ones are merged with their
            neighbours in the order of the labels until 30 are kept together: such a group has its exact share, and inside
            it the weights are 1 / probability up to one factor. `min_per_stratum=30` gives every stratum its exact share.
        min_per_stratum: quota: at least so many samples of every stratum are kept (all of it, if it has fewer), out of the
            same total; needs `strata` and a method with an exact count. One number >= 1 for all strata; or, as a sequence or
            [strata] int64 tensor, one >= 0 for each stratum that has samples, in the order of the labels. Numbers that add up
            to the asked total, or to more, are kept exactly, unless scores are unknown.

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
    rule = resolve(op, method)
    labels = None if strata is None else checked_strata(op, strata, scores.numel()).to(scores.device)
    quota = checked_quota(op, min_per_stratum, labels, rule)
    return make_plan(scores, rule, keep_ratio=keep_ratio, epoch=epoch, seed=seed, strata=labels, min_per_stratum=quota)


def make_plan(
    scores: torch.Tensor,
    method: Method,
    *,
    keep_ratio: float,
    epoch: int,
    seed: int,
    strata: Strata | None = None,
    min_per_stratum: Quota = 0,
    out: Buffers | None = None,
) -> EpochPlan:
    """`plan_epoch` of arguments that were checked, into buffers of the caller's where the method can use them.

    Args:
        scores, keep_ratio, epoch, seed: as in `plan_epoch`.
        method: the method.
        strata: the samples' strata, on the device of `scores`; or None.
        min_per_stratum: the quota; 0 is none.
        out: see `stprune.ops.plan_budget`; num_samples elements on the device of `scores`. The plan may be views of them.
    """
    n = scores.numel()
    keep_ratio = method.ratio(keep_ratio)
    if keep_ratio == 1.0 or n == 0:
        everything = torch.arange(n, device=scores.device) if out is None else torch.arange(n, out=out.indices)
        return EpochPlan(epoch, everything, torch.ones(1, dtype=torch.float32, device=scores.device).expand(n), n, seed, 1.0)
    if strata is not None and min_per_stratum:
        indices, weights = kept_by_quota(
            scores.float(), method, strata, min_per_stratum, keep_ratio=keep_ratio, seed=seed, epoch=epoch
        )
        if method.unbiased:
            weights = calibrate(weights, indices, strata)
        kept = Budgeted(indices, weights, finite_mean(weights))
    else:
        kept = method.kept(scores.float(), keep_ratio=keep_ratio, seed=seed, epoch=epoch, strata=strata, out=out)
    return EpochPlan(epoch, kept.indices, kept.weights, n, seed, kept.mean_weight)
