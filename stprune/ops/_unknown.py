"""Weights of +inf: nothing is known of these items yet, and draws take them before all others."""

from __future__ import annotations

import math

import torch

from stprune.ops._range import in_range

_LARGEST = torch.finfo(torch.float32).max
_SMALLEST = torch.finfo(torch.float32).tiny
# Known weights are below 4 beside it. A key is a random number in [2^-33, 24] divided by the weight: that of an unknown item is
# at most 24 / 2^48, that of a known one at least 2^-33 / 4.
_FIRST = 2.0**48


def checked(op: str, rule: str, weights: torch.Tensor) -> tuple[int, bool]:
    """How many weights [n] float32 are positive, and whether one is +inf.

    Raises ValueError with the first weight that is negative or NaN.
    """
    first, positive, _ = torch.ops.stprune.check_range(weights, _LARGEST, False).tolist()
    return (int(positive), False) if first < 0 else (in_range(op, "weights", rule, weights, math.inf)[0], True)


def finite(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Finite weights [..., n] float32 that put the items of +inf first in each row, and how many there are, [..., 1] int64.

    The others are scaled by a power of two, which changes neither their draw nor what they count for, except where they are
    less than 10^-37 of the largest.
    """
    unknown = weights == torch.inf
    known = torch.where(unknown, 0.0, weights)
    exponent = (known.amax(-1, keepdim=True).view(torch.int32) >> 23).clamp(27, 253)
    scaled = known * ((254 - exponent) << 23).view(torch.float32)  # 2^-exponent, from its bits
    scaled = torch.where(known > 0, scaled.clamp_min(_SMALLEST), 0.0).masked_fill(unknown, _FIRST)
    number = unknown.sum(-1, keepdim=True)
    return torch.where(number > 0, scaled, weights), number


def weigh(drawn: torch.Tensor, number: torch.Tensor, count: int) -> None:
    """Correct what the drawn items of each row count for, [..., count], in place, where not all unknown ones were drawn."""
    drawn.copy_(torch.where(number > count, number / max(1, count), drawn))
