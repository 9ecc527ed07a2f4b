"""Reference of the weights of a plan: inverse probabilities, and their totals by stratum (eq. 10)."""

from __future__ import annotations

import torch

# Samples of a part are summed one after the other; a multiple of the block of every kernel.
CHUNK = 1 << 14
# Parts at most, and how many totals all parts together may have: bounds the scratch to 32 MB.
MOST_PARTS = 64
MOST_TOTALS = 1 << 20
LANES = 4
MIN_STRATUM = 30
"""A stratum with fewer kept samples than this merges with its neighbour (methods/README.md, eq. 10)."""


def inverse_at(probability: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """float32(1 / probability[indices]), [K]."""
    return probability[indices].reciprocal().to(torch.float32)


def part_size(num_samples: int, num_strata: int) -> int:
    """Samples a part of the sums has: a function of the sizes alone, so that no thread count changes a total."""
    chunks = -(-num_samples // CHUNK)
    parts = max(1, min(MOST_PARTS, chunks, MOST_TOTALS // max(1, num_strata)))
    return max(1, -(-chunks // parts)) * CHUNK


def compact_strata(strata: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels [num_samples] int64 >= 0 as uint8 if that holds them, else as int32, and how many have each, [largest + 1]."""
    if strata.numel() > 0 and not 0 <= int(strata.min()) <= int(strata.max()) < 2**31:
        raise RuntimeError("compact_strata: strata must lie in [0, 2^31)")
    sizes = torch.bincount(strata)
    return strata.to(torch.uint8 if sizes.numel() <= 256 else torch.int32), sizes


def stratum_totals(
    strata: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor, num_strata: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Kept samples and total weight of every stratum, and the stratum of every kept sample.

    The j-th kept sample adds to lane j % 4 of its stratum in the part its index lies in, in the order of j; lanes are added
    as (0 + 1) + (2 + 3), parts one after the other.

    Args:
        strata: [num_samples] uint8 or int32 in [0, num_strata).
        indices: [K] int64, ascending.
        weights: [K] float32.
        num_strata: how many.

    Returns:
        kept [num_strata] int64, totals [num_strata] float64, members [K] of the dtype of `strata`.
    """
    label = strata[indices].long()
    kept = torch.bincount(label, minlength=num_strata)
    part = part_size(strata.numel(), num_strata)
    parts = max(1, -(-strata.numel() // part))
    lane = torch.arange(indices.numel(), device=indices.device) % LANES
    place = ((indices // part) * num_strata + label) * LANES + lane
    # On the host: a GPU adds up in whatever order its threads come.
    sums = torch.bincount(place.cpu(), weights=weights.double().cpu(), minlength=parts * num_strata * LANES).double()
    sums = sums.view(parts, num_strata, LANES).to(strata.device)
    by_part = (sums[..., 0] + sums[..., 1]) + (sums[..., 2] + sums[..., 3])
    totals = torch.zeros(num_strata, dtype=torch.float64, device=strata.device)
    for one in by_part:
        totals = totals + one
    return kept, totals, label.to(strata.dtype)


def merged(kept: list[int]) -> list[int]:
    """Group number of every stratum, neighbours joined until each group has MIN_STRATUM kept samples (or is the only one)."""
    group: list[int] = []
    current, members = 0, 0
    for count in kept:
        group.append(current)
        members += count
        if members >= MIN_STRATUM:
            current, members = current + 1, 0
    # What is left over at the end joins the last complete group.
    return [min(number, max(0, current - 1)) for number in group]


def stratum_factors(sizes: torch.Tensor, kept: torch.Tensor, totals: torch.Tensor) -> torch.Tensor:
    """What brings the total of every stratum, or of its group, to its true size: [num_strata] float64."""
    group = torch.tensor(merged(kept.tolist()), dtype=torch.int64)
    nothing = torch.zeros(int(group.max()) + 1, dtype=torch.float64)
    # On the host, in the order of the strata.
    true, total = (nothing.index_add(0, group, values.double().cpu()) for values in (sizes, totals))
    # A group without kept samples cannot be represented; merging leaves none unless nothing at all was kept.
    return (true / total)[group].to(sizes.device)


def scale_by_stratum(weights: torch.Tensor, members: torch.Tensor, factor: torch.Tensor) -> None:
    """Multiply weights [K] float32 in place by the factor [num_strata] of their stratum, in float64."""
    weights.copy_((weights.double() * factor[members.long()]).to(torch.float32))


def calibrate(weights: torch.Tensor, indices: torch.Tensor, strata: torch.Tensor, sizes: torch.Tensor) -> None:
    """Scale weights [K] float32 of the samples `indices` [K] in place to the true sizes [num_strata] of their strata."""
    kept, totals, members = stratum_totals(strata, indices, weights, sizes.numel())
    scale_by_stratum(weights, members, stratum_factors(sizes, kept, totals))
