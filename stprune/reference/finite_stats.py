"""Reference of sums that depend on the values only, not on threads or instruction sets: blocks, lanes and order are fixed."""

from __future__ import annotations

import torch

# 4,096 numbers are added up in 32 lanes of 128 numbers each: enough lanes to hide the latency of an addition on every
# instruction set, few enough to stay in registers.
BLOCK = 4096
LANES = 32
# Blocks at a time: bounds the float64 temporaries to some 32 MB.
_ROWS = 1024


def tree_sum(sums: torch.Tensor) -> torch.Tensor:
    """Sum of [m] float64 by adding neighbours until one is left; zero when there are none."""
    if sums.numel() == 0:
        return sums.new_zeros(())
    while sums.numel() > 1:
        if sums.numel() % 2:
            sums = torch.cat([sums, sums.new_zeros(1)])
        sums = sums[0::2] + sums[1::2]
    return sums[0]


def block_sums(values: torch.Tensor) -> torch.Tensor:
    """Float64 sums of the blocks of values [n] float64, [ceil(n / BLOCK)].

    Entry i of a block goes to lane i % LANES; the lanes are added in order of i, then the upper half of them to the lower
    half until one is left.
    """
    missing = -values.numel() % BLOCK
    rows = torch.cat([values, values.new_zeros(missing)]).view(-1, BLOCK // LANES, LANES)
    lanes = values.new_zeros(rows.shape[0], LANES)
    for row in range(BLOCK // LANES):
        lanes = lanes + rows[:, row]
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def sums_where(values: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """`block_sums` of the entries of values [n] floating where keep [n] bool; the others count as 0."""
    parts = [
        block_sums(torch.where(kept, chunk, 0.0).double())
        for chunk, kept in zip(values.split(_ROWS * BLOCK), keep.split(_ROWS * BLOCK), strict=True)
    ]
    return torch.cat(parts)


def blocked_sum(values: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Float64 sum of the entries of values [n] floating where keep [n] bool, as a scalar tensor."""
    return tree_sum(sums_where(values, keep))


def finite_stats(values: torch.Tensor) -> torch.Tensor:
    """Sum, number, least and largest of the finite entries of values [n] float32 or float64, as [4] float64."""
    if values.numel() == 0:
        return torch.tensor([0.0, 0.0, torch.inf, -torch.inf], dtype=torch.float64, device=values.device)
    finite = torch.isfinite(values)
    # Adding 0.0 makes one zero of the two.
    least = torch.where(finite, values, torch.inf).min().double() + 0.0
    largest = torch.where(finite, values, -torch.inf).max().double() + 0.0
    return torch.stack([blocked_sum(values, finite), finite.sum().double(), least, largest])


def mean_of(stats: torch.Tensor) -> float:
    """Mean of the finite entries from their `finite_stats`; NaN when there are none, exact when all are equal."""
    total, count, least, largest = stats.tolist()
    return float(least) if least == largest else total / count if count else float("nan")
