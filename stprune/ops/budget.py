"""budget_probability: the constant c of eq. 7, so that clipped probabilities add up to the asked count."""

from __future__ import annotations

import math

import torch

_ROW = 4096
_CHUNK = 1 << 22
_MAX_STEPS = 200


def budget_probability(size: torch.Tensor, count: float, minimum: float) -> torch.Tensor:
    """Probabilities clip(c * size, minimum, 1) whose sum is `count`.

    c is found by Newton steps on the piecewise linear sum, kept inside a shrinking bracket; each step is one pass in
    float64 over fixed blocks, so that every thread count finds the same c. Where every size is zero, or the sizes cannot
    tell the samples apart, all probabilities are equal.

    Args:
        size: [n] float32 or float64, finite and >= 0; not modified.
        count: what the probabilities add up to, in [minimum * n, n].
        minimum: lower bound of every probability, in [0, 1].

    Returns:
        [n] float32 in [minimum, 1].

    Example:
        >>> import torch
        >>> from stprune.ops.budget import budget_probability
        >>> budget_probability(torch.tensor([1.0, 1.0, 2.0]), 2.0, 0.1)
        tensor([0.5000, 0.5000, 1.0000])

    Source:
        Eq. 7, our definition. Cost: O(n) for each Newton step, usually fewer than ten.
    """
    n = size.numel()
    largest = float(size.max()) if n else 0.0
    if n == 0 or largest == 0.0:
        return torch.full((n,), count / n if n else 0.0, dtype=torch.float32, device=size.device)
    # At `high` even the smallest positive size reaches 1; the sum can stay below `count` only because of zero sizes,
    # which then share what is left evenly.
    positive = size > 0
    num_positive = int(positive.sum())
    if num_positive + minimum * (n - num_positive) <= count:
        rest = (count - num_positive) / (n - num_positive) if num_positive < n else 1.0
        return torch.where(positive, 1.0, min(rest, 1.0)).to(torch.float32)
    low, high = 0.0, 1.0 / float(size[positive].min())
    scale = min(max(count / max(_clipped_sum(size, 0.0, 0.0)[2], 1e-300), low), high)
    for _ in range(_MAX_STEPS):
        total, slope, _ = _clipped_sum(size, scale, minimum)
        gap = count - total
        if abs(gap) <= 1e-9 * max(count, 1.0):
            break
        if gap > 0:
            low = scale
        else:
            high = scale
        step = scale + gap / slope if slope > 0.0 else math.inf
        scale = step if low < step < high else 0.5 * (low + high)
        if scale in (low, high):
            break
    out = torch.empty(n, dtype=torch.float32, device=size.device)
    for source, target in zip(size.split(_CHUNK), out.split(_CHUNK), strict=True):
        target.copy_((source.double() * scale).clamp(minimum, 1.0))
    return out


def _clipped_sum(size: torch.Tensor, scale: float, minimum: float) -> tuple[float, float, float]:
    """Sum of clip(scale * size, minimum, 1), its slope in `scale`, and the sum of `size`."""
    totals: list[float] = []
    slopes: list[float] = []
    sizes: list[float] = []
    for chunk in size.split(_CHUNK):
        values = chunk.double()
        scaled = values * scale
        inside = torch.where((scaled > minimum) & (scaled < 1.0), values, 0.0)
        for data, sums in ((scaled.clamp(minimum, 1.0), totals), (inside, slopes), (values, sizes)):
            whole = data.numel() // _ROW * _ROW
            sums += data[:whole].view(-1, _ROW).sum(dim=1).tolist()
            sums.append(float(data[whole:].sum()))
    return math.fsum(totals), math.fsum(slopes), math.fsum(sizes)
