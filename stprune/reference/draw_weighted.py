"""Reference of weighted sampling without replacement: priority sampling, and the exponential race."""

from __future__ import annotations

import torch

from stprune.reference.random import WEIGHTED, words

_LARGEST = torch.finfo(torch.float32).max
SMALLEST = 2.0**-149
_SQRT_HALF = 0.70710678118654752440
# log 2 in two parts: the high one has 32 trailing zero bits, so that its product with an exponent is exact.
_LOG2_HIGH = 6.93147180369123816490e-01
_LOG2_LOW = 1.90821492927058770002e-10


def logarithm(u: torch.Tensor) -> torch.Tensor:
    """log of normal positive float64 values by + - * / alone, so that every device and language gets the same bits.

    u = m * 2^e with m in [sqrt(1/2), sqrt(2)); log m = 2 atanh(s) with s = (m - 1) / (m + 1), |s| <= 0.172: the series to
    s^21 leaves less than 2^-55.
    """
    bits = u.view(torch.int64)
    exponent = (bits >> 52) - 1022
    m = ((bits & 0x000FFFFFFFFFFFFF) | 0x3FE0000000000000).view(torch.float64)
    low = m < _SQRT_HALF
    m = torch.where(low, m + m, m)
    e = torch.where(low, exponent - 1, exponent).double()
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    series = torch.full_like(z, 1.0 / 21.0)
    for divisor in (19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0):
        series = series * z + 1.0 / divisor
    tail = s * (z * series)
    return e * _LOG2_HIGH + (2.0 * s + (2.0 * tail + e * _LOG2_LOW))


def race_keys(weights: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
    """float32(-log u) / w in float32, u = (word + 0.5) / 2^32 in float64; +inf where w = 0, at most FLT_MAX elsewhere."""
    word = words(weights.numel(), seed=seed, epoch=epoch, stream=WEIGHTED, device=weights.device)
    u = (word.double() + 0.5) * 2.0**-32
    return _keys(-logarithm(u).float(), weights)


def priority_keys(weights: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
    """u / w in float32, u = (float32(word) + 0.5) * 2^-32; +inf where w = 0, at most FLT_MAX elsewhere."""
    return priority_of(words(weights.numel(), seed=seed, epoch=epoch, stream=WEIGHTED, device=weights.device), weights)


def priority_of(word: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The key of every weight, of any shape, with the random word of the same place."""
    return _keys((word.float() + 0.5) * 2.0**-32, weights)


def _keys(numerator: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    key = (numerator / weights).clamp(max=_LARGEST)
    return torch.where(weights > 0, key, torch.full_like(key, torch.inf))


def draw_weighted(weights: torch.Tensor, k: int, seed: int, epoch: int, race: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The k items with the smallest keys, ties to the smaller index, ascending; and their weights (none for the race)."""
    keys = race_keys(weights, seed, epoch) if race else priority_keys(weights, seed, epoch)
    ordered, order = torch.sort(keys, stable=True)
    indices = order[:k].sort().values
    if race:
        return indices, weights.new_empty(0)
    if k == weights.numel() or not bool(ordered[k] < torch.inf):
        return indices, torch.ones_like(weights[indices])
    # A threshold that underflowed to zero would make the weights infinite.
    tau = 1.0 / ordered[k].double().clamp(min=SMALLEST)
    return indices, (tau / weights[indices].double()).clamp(min=1.0).float()
