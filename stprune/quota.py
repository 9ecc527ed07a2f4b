"""A quota for every stratum: each is drawn on its own, with a count of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stprune.methods import Method
from stprune.ops import _check
from stprune.ops.strata import Strata

Quota = int | list[int]
"""A checked quota: one of all strata (0: none), or one of each stratum that has samples, in the order of the labels."""


def checked_quota(
    op: str, min_per_stratum: int | Sequence[int] | torch.Tensor | None, strata: Strata | None, method: Method
) -> Quota:
    """The quota of a user.

    Raises:
        TypeError, ValueError: it is neither a number of samples nor one for each stratum, or has no strata or no exact count to
            go with.
    """
    name, given = "min_per_stratum", min_per_stratum
    if given is None:
        return 0
    given = _check.index(op, name, given).tolist() if isinstance(given, torch.Tensor) else given
    quota: Quota
    if isinstance(given, Sequence) and not isinstance(given, str):
        quota = [_check.integer(op, name, each, 0) for each in given]
    else:
        quota = _check.integer(op, name, given, 1)
    if strata is None:
        raise ValueError(f"{op}: {name} must be None without strata, got {quota}")
    if not method.exact_count:
        raise ValueError(f"{op}: {name} must be None for a method without an exact count, got {method.name!r}")
    if isinstance(quota, list) and len(quota) != (number := int((strata.sizes > 0).sum())):
        raise ValueError(f"{op}: {name} must have one number for each of {number} strata, got {len(quota)}")
    return quota


def least_kept(strata: Strata, quota: Quota) -> torch.Tensor:
    """[number of strata] int64 on the host: samples that an epoch keeps of each stratum at least, all of a smaller one."""
    sizes = strata.sizes.cpu()
    if isinstance(quota, int):
        return sizes.clamp_max(quota)
    each = torch.zeros_like(sizes)
    each[sizes > 0] = torch.tensor(quota, dtype=torch.int64)
    return sizes.minimum(each)


def kept_by_quota(
    scores: torch.Tensor,
    method: Method,
    strata: Strata,
    min_per_stratum: Quota,
    *,
    keep_ratio: float,
    seed: int,
    epoch: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Kept samples and weights with at least `min_per_stratum` of every stratum (or all of it), and the asked total.

    A stratum's count is what the method would give it on average, raised to the quota where that is more; the others give
    in proportion. Inside a stratum the method draws, so that weights of an unbiased method stay unbiased.

    Args:
        scores: [num_samples] float32; not modified.
        method: a method with an exact count.
        strata: the samples' strata, on the device of `scores`.
        min_per_stratum: the quota, not 0.
        keep_ratio, seed, epoch: as in `stprune.plan_epoch`.

    Returns:
        indices [K] int64, ascending, and weights [K] float32, before any calibration. K is more than asked where the quotas
        or the samples that must be kept are.

    Example:
        >>> import torch
        >>> from stprune.methods import STPrune
        >>> from stprune.ops.strata import checked_strata
        >>> from stprune.quota import kept_by_quota
        >>> strata = checked_strata("example", (torch.arange(1000) >= 990).long(), 1000)
        >>> indices, _ = kept_by_quota(torch.ones(1000), STPrune(), strata, 8, keep_ratio=0.1, seed=0, epoch=1)
        >>> len(indices), int((indices >= 990).sum())
        (100, 8)

    Source:
        Stratified sampling with a minimum allocation (Cochran, Sampling Techniques, chapter 5).
    """
    labels, sizes = strata.labels.long(), strata.sizes.cpu()
    chance = method.inclusion(scores, keep_ratio=keep_ratio, seed=seed, epoch=epoch)
    expected = torch.bincount(labels.cpu(), weights=chance.double().cpu(), minlength=sizes.numel())
    counts = allocate(expected, least_kept(strata, min_per_stratum), sizes)
    members_of = labels.argsort(stable=True).split(sizes.tolist())
    indices, weights = [], []
    for stratum, (members, count) in enumerate(zip(members_of, counts, strict=True)):
        if count == 0:
            continue
        # A key of its own for each stratum: the draws of two strata are independent.
        key = (seed + (stratum + 1) * 0x9E3779B97F4A7C15) % 2**63
        kept = method.kept(scores[members], keep_ratio=count / members.numel(), seed=key, epoch=epoch)
        indices.append(members[kept.indices])
        weights.append(kept.weights)
    together = torch.cat(indices)
    order = together.argsort()
    return together[order], torch.cat(weights)[order]


def allocate(expected: torch.Tensor, least: torch.Tensor, most: torch.Tensor) -> list[int]:
    """Whole counts in proportion to `expected`, between `least` and `most` [number of strata] each.

    They add up to the sum of `expected`, rounded, or to the nearest sum that the bounds allow; rounding is by largest
    remainders, of equal ones the first.
    """
    total = min(max(round(float(expected.sum())), int(least.sum())), int(most.sum()))
    low, high = 0.0, float(most.max() / expected[expected > 0].min()) if bool((expected > 0).any()) else 0.0
    for _ in range(100):
        middle = (low + high) / 2
        reached = float((middle * expected).clamp(least, most).sum()) >= total
        low, high = (low, middle) if reached else (middle, high)
    share = (high * expected).clamp(least, most)
    counts = share.floor().long()
    by_remainder = (share - counts).argsort(descending=True, stable=True).tolist()
    counts_list, limits = counts.tolist(), most.tolist()
    while sum(counts_list) < total:
        for stratum in by_remainder:
            if sum(counts_list) < total and counts_list[stratum] < limits[stratum]:
                counts_list[stratum] += 1
    return counts_list
