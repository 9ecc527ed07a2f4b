"""inclusion_budget and budget_probability: clipped probabilities that add up to a count (eq. 7)."""

from __future__ import annotations

import math

import torch

from stprune.ops import _check
from stprune.ops._registry import define
from stprune.reference import budget as reference

# Powers the kernels know; others are taken in float64 before.
_POWERS = (0.0, 0.5, 1.0)


def _fake(scores: torch.Tensor, alpha: float, count: float, minimum: float) -> torch.Tensor:
    return scores.new_empty(scores.shape, dtype=torch.float32)


define("inclusion_budget(Tensor scores, float alpha, float count, float minimum) -> Tensor", reference.inclusion_budget, _fake)


def inclusion_budget(scores: torch.Tensor, *, alpha: float, count: float, minimum: float) -> torch.Tensor:
    """Probabilities clip(c * max(score, 0)^alpha, minimum, 1) that add up to `count`.

    Scores that are NaN or infinite (never scored) are certain: probability 1. The others share what those leave of
    `count`, or, where that is less, the least their minimum allows: ceil(minimum * known). Where no known score is
    positive all are equal; where fewer than asked are, those are certain and the zeros share the rest.

    c is exact up to rounding: |c * sum(middle) + clipped - count| <= 2^-43 * count for the sizes as they are, and the
    sum of the probabilities, each rounded to float32 in the end, differs from `count` by at most 2^-24 of it. The result
    depends on neither the thread count nor the instruction set, nor, for alpha 0, 0.5 and 1, on the device.

    Cost: one pass over the scores and one that writes. A sample of 2^16 scores brackets c to about 1 %; whatever is
    clipped, or not, all over the bracket is counted and summed in the pass, and only the other scores (a few percent) are
    looked at again, by Newton's method on the piecewise linear sum. A sample that misleads costs more passes, four or so,
    and changes no result by more than rounding.

    Args:
        scores: [n] float32 or float64; not modified.
        alpha: power of the score, >= 0.
        count: what the probabilities add up to, in [0, n].
        minimum: lower bound of every probability, in [0, 1].

    Returns:
        [n] float32 in [minimum, 1].

    Raises:
        TypeError: `scores` is neither float32 nor float64, or a number is none.
        ValueError: `scores` is not one-dimensional, or a number lies outside its range.

    Example:
        >>> import torch
        >>> from stprune.ops.budget import inclusion_budget
        >>> inclusion_budget(torch.tensor([1.0, 4.0, float("nan"), 9.0]), alpha=0.5, count=2.5, minimum=0.1)
        tensor([0.2500, 0.5000, 1.0000, 0.7500])

    Source:
        Eq. 7, our definition.
    """
    op = "inclusion_budget"
    scores, alpha, minimum = checked_budget(op, scores, alpha, minimum)
    count = _check.real(op, "count", count, 0.0, float(scores.numel()))
    return torch.ops.stprune.inclusion_budget(scores, alpha, count, minimum)  # type: ignore[no-any-return]


def checked_budget(op: str, scores: torch.Tensor, alpha: float, minimum: float) -> tuple[torch.Tensor, float, float]:
    """Scores and power as the kernels take them: a power they do not know is taken here, in float64; and the lower bound.

    Args:
        op: who asks, for the message of an error.
        scores, alpha, minimum: see `inclusion_budget`.

    Returns:
        [n] contiguous scores, a power of 0, 0.5 or 1, and `minimum`.

    Raises:
        TypeError, ValueError: see `inclusion_budget`.

    Example:
        >>> import torch
        >>> from stprune.ops.budget import checked_budget
        >>> checked_budget("example", torch.tensor([2.0]), 2, 0.5)
        (tensor([4.], dtype=torch.float64), 1.0, 0.5)
    """
    scores = _check.vector(op, "scores", _check.tensor(op, "scores", scores)).detach()
    if scores.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{op}: scores must be float32 or float64, got {scores.dtype}")
    alpha = _check.real(op, "alpha", alpha, 0.0, math.inf)
    minimum = _check.real(op, "minimum", minimum, 0.0, 1.0)
    if alpha not in _POWERS:
        power = scores.double().clamp_min(0.0).pow(alpha).clamp_max(torch.finfo(torch.float64).max)
        scores, alpha = torch.where(torch.isfinite(scores), power, torch.nan), 1.0
    return scores.contiguous(), alpha, minimum


def budget_probability(size: torch.Tensor, count: float, minimum: float) -> torch.Tensor:
    """Probabilities clip(c * size, minimum, 1) whose sum is `count`: `inclusion_budget` of sizes as they are.

    Args:
        size: [n] float32 or float64, finite and >= 0 (what is not finite gets probability 1); not modified.
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
        Eq. 7, our definition.
    """
    return inclusion_budget(size, alpha=1.0, count=count, minimum=minimum)
