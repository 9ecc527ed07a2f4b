"""plan_budget: the kept samples of the budget rule and their weights in one call (eq. 7 and 10)."""

from __future__ import annotations

from typing import NamedTuple

import torch

from stprune.ops import _check
from stprune.ops._out import deliver
from stprune.ops._registry import define
from stprune.ops.budget import checked_budget
from stprune.ops.finite_mean import finite_stats
from stprune.ops.strata import Strata, calibrate
from stprune.reference import budget as reference_budget
from stprune.reference import draw as reference_draw
from stprune.reference.plan_budget import mean_weight

MOST = 1 << 30
"""Scores one call takes: the sum of so many fixed-point probabilities fits into int64."""


class Buffers(NamedTuple):
    """Memory for kept samples that the caller owns.

    Attributes:
        indices: int64, contiguous; its front is overwritten.
        weights: float32, contiguous, of the same size; its front is overwritten.
        scratch: int32, contiguous, of the same size; overwritten with nothing of use where there are strata.
    """

    indices: torch.Tensor
    weights: torch.Tensor
    scratch: torch.Tensor


class Budgeted(NamedTuple):
    """What `plan_budget` returns.

    Attributes:
        indices: [K] int64 kept samples, ascending.
        weights: [K] float32.
        mean_weight: the mean of `weights`, exact where all are equal.
    """

    indices: torch.Tensor
    weights: torch.Tensor
    mean_weight: float


def _composed(
    scores: torch.Tensor,
    alpha: float,
    count: int,
    minimum: float,
    strata: torch.Tensor | None,
    sizes: torch.Tensor | None,
    seed: int,
    epoch: int,
    *buffers: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    """The steps one after another, each by the kernel of the scores' device."""
    probability = torch.ops.stprune.inclusion_budget(scores, alpha, float(count), minimum)
    kept = reference_budget.num_kept(scores, count, minimum)
    # From some 2^25 samples on what rounding adds up to can be more than the op takes; the reference takes any.
    close = abs(finite_stats(probability).sum - kept) <= 0.5
    if close:
        indices, _ = torch.ops.stprune.draw(probability, kept, seed, epoch, None)
    else:
        indices = reference_draw.draw(probability, kept, seed, epoch)
    weights = torch.ops.stprune.inverse_at(probability, indices)
    if strata is not None and sizes is not None:
        calibrate(weights, indices, Strata(strata, sizes))
    totals = torch.tensor([indices.numel(), mean_weight(weights).item()], dtype=torch.float64)
    return *deliver([indices, weights], *buffers[:2]), totals


def _fake(scores: torch.Tensor, *others: torch.Tensor | float | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # The buffers are the last three arguments, all or none.
    size = torch.library.get_ctx().new_dynamic_size() if others[-1] is None else 0
    return (
        scores.new_empty((size,), dtype=torch.int64),
        scores.new_empty((size,), dtype=torch.float32),
        torch.empty(2, dtype=torch.float64),
    )


define(
    "plan_budget(Tensor scores, float alpha, int count, float minimum, Tensor? strata, Tensor? sizes, int seed, int epoch, "
    "Tensor(a!)? out_indices, Tensor(b!)? out_weights, Tensor(c!)? scratch) -> (Tensor, Tensor, Tensor)",
    _composed,
    _fake,
)


def plan_budget(
    scores: torch.Tensor,
    *,
    alpha: float,
    count: int,
    minimum: float,
    seed: int,
    epoch: int,
    strata: Strata | None = None,
    out: Buffers | None = None,
) -> Budgeted:
    """Draw samples with the probabilities of `inclusion_budget`, and weigh each by the inverse of its own.

    The same samples and weights as by `inclusion_budget`, `draw` with a count and `inverse_at` one after another, and with
    strata their calibration; but the probabilities are not stored: they are made of the scores twice, where a sum of them
    and where the draw asks for them.

    Args:
        scores: [n] float32 or float64, n at most 2^30; not modified. NaN and infinite ones are certain.
        alpha: power of the score, >= 0.
        count: how many samples, in [0, n]. Where the certain samples and the least that `minimum` allows of the others are
            more, that many.
        minimum: lower bound of every probability, in [0, 1].
        seed: in [0, 2^63).
        epoch: in [0, 2^32); another epoch is an independent draw.
        strata: the samples' strata, on the device of `scores`, each of which then gets its true share of the total weight
            (eq. 10); or None.
        out: buffers on the device of `scores`; n elements are always enough.

    Returns:
        The kept samples, their weights and the mean of these: with `out`, views of its fronts, which the next call with the
        same buffers overwrites. The same bits for any number of threads and any instruction set.

    Raises:
        TypeError: `scores` is neither float32 nor float64, a number is none, or `out` has another dtype.
        ValueError: `scores` is not one-dimensional or has over 2^30 elements, a number lies outside its range, or `out` is
            not contiguous, too small, on another device, or overlaps itself or `scores` (then nothing is written).

    Example:
        >>> import torch
        >>> from stprune.ops.plan_budget import plan_budget
        >>> scores = torch.tensor([1.0, 4.0, float("nan"), 9.0])
        >>> kept = plan_budget(scores, alpha=0.0, count=4, minimum=0.1, seed=0, epoch=0)
        >>> kept.indices, kept.mean_weight
        (tensor([0, 1, 2, 3]), 1.0)

    Source:
        Eq. 7 and 10, our definition.
    """
    op = "plan_budget"
    scores, alpha, minimum = checked_budget(op, scores, alpha, minimum)
    n = scores.numel()
    count = _check.integer(op, "count", count, 0, n)
    seed, epoch = _check.seed_and_epoch(op, seed, epoch)
    if n > MOST:
        raise ValueError(f"{op}: scores must have at most 2^30 elements, got {n}")
    if n == 0:
        return Budgeted(scores.new_empty(0, dtype=torch.int64), scores.new_empty(0, dtype=torch.float32), 1.0)
    labels, sizes = (None, None) if strata is None else (strata.labels.contiguous(), strata.sizes)
    arguments = (scores, alpha, count, minimum, labels, sizes, seed, epoch)
    if out is None:
        indices, weights, totals = torch.ops.stprune.plan_budget(*arguments, None, None, None)
        return Budgeted(indices, weights, float(totals[1]))
    indices = _check.buffer(op, "out indices", out.indices, torch.int64, scores)
    weights = _check.buffer(op, "out weights", out.weights, torch.float32, scores)
    scratch = _check.buffer(op, "out scratch", out.scratch, torch.int32, scores)
    for name, one, other in (("weights", weights, indices), ("scratch", scratch, indices), ("scratch", scratch, weights)):
        _check.apart(op, f"out {name}", one, other)
    room = min(indices.numel(), weights.numel(), scratch.numel())
    totals = torch.ops.stprune.plan_budget(*arguments, indices[:room], weights[:room], scratch[:room])[2]
    size, value = int(totals[0]), float(totals[1])
    if size > room:
        raise ValueError(f"{op}: out must have at least {size} elements, got {room}")
    return Budgeted(indices[:size], weights[:size], value)
