"""draw_threshold: keep what lies at or above the mean, and a share of the rest, in one op."""

from __future__ import annotations

import torch

from stprune.ops import _check
from stprune.ops._out import deliver
from stprune.ops._registry import define
from stprune.reference import draw_threshold as reference


def _fake(
    scores: torch.Tensor,
    keep: float,
    exact_count: bool,
    seed: int,
    epoch: int,
    out_indices: torch.Tensor | None,
    out_weights: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    size = torch.library.get_ctx().new_dynamic_size() if out_indices is None else 0
    indices, weights = scores.new_empty((size,), dtype=torch.int64), scores.new_empty((size,), dtype=torch.float32)
    return indices, weights, torch.empty(1, dtype=torch.int64)


def _reference(
    scores: torch.Tensor,
    keep: float,
    exact_count: bool,
    seed: int,
    epoch: int,
    out_indices: torch.Tensor | None,
    out_weights: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    found = reference.draw_threshold(scores, keep, exact_count, seed, epoch)
    return *deliver(found, out_indices, out_weights), torch.tensor([found[0].numel()])


define(
    "draw_threshold(Tensor scores, float keep, bool exact_count, int seed, int epoch, Tensor(a!)? out_indices, "
    "Tensor(b!)? out_weights) -> (Tensor, Tensor, Tensor)",
    _reference,
    _fake,
)


def draw_threshold(
    scores: torch.Tensor,
    keep: float,
    *,
    seed: int,
    epoch: int,
    exact_count: bool = False,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The threshold rule: scores at or above the mean are kept, of those below it a share `keep`.

    The mean is that of the finite scores (see `finite_stats`), rounded to the scores' dtype; NaN and infinite scores are
    kept. What lies below is kept on its own with probability `keep`, or, with `exact_count`, as the head of a random
    order of all that lie below: int(keep * below) of them, and where that is 0, one with probability keep * below. A
    kept sample below the mean weighs 1 / keep, any other 1: the weighted sum is unbiased (with `exact_count` up to the
    rounding of the count).

    Args:
        scores: [n] float32, float64, bfloat16 or float16, n at most 2^40; not modified.
        keep: share of the scores below the mean that is kept, in (0, 1].
        seed: in [0, 2^63).
        epoch: in [0, 2^32).
        exact_count: keep an exact number of those below instead of each on its own.
        out: buffers for indices (int64) and weights (float32), contiguous, on the device of `scores`, n elements are
            always enough; overwritten. Half the time of a draw goes into fresh memory, which a second draw into the same
            buffers does not need.

    Returns:
        indices [K] int64, ascending, and weights [K] float32: with `out`, views of its front. Neither depends on device,
        thread count or instruction set.

    Raises:
        TypeError: `scores` is no floating tensor, or a number is none.
        ValueError: `scores` is not one-dimensional, a number lies outside its range, or `out` is not contiguous, too
            small, on another device, or overlaps itself or `scores` (then nothing is written).

    Example:
        >>> import torch
        >>> from stprune.ops import draw_threshold
        >>> scores = torch.tensor([1.0, 1.0, 1.0, 1.0, 9.0, float("inf")])
        >>> indices, weights = draw_threshold(scores, 0.5, seed=0, epoch=0, exact_count=True)
        >>> len(indices), float(weights.sum()), indices[2:].tolist()
        (4, 6.0, [4, 5])

    Source:
        Qin et al., "InfoBatch", ICLR 2024, Algorithm 1; eq. 6.
    """
    op = "draw_threshold"
    scores = _check.vector(op, "scores", _check.floating(op, "scores", scores)).detach()
    keep = _check.real(op, "keep", keep, 0.0, 1.0, low_open=True)
    seed, epoch = _check.seed_and_epoch(op, seed, epoch)
    # bfloat16 and float16 become float32, which is exact.
    scores = scores.contiguous() if scores.dtype in (torch.float32, torch.float64) else scores.float()
    arguments = (scores, keep, bool(exact_count), seed, epoch)
    if out is None:
        indices, weights, _ = torch.ops.stprune.draw_threshold(*arguments, None, None)
        return indices, weights
    indices = _check.buffer(op, "out indices", out[0], torch.int64, scores)
    weights = _check.buffer(op, "out weights", out[1], torch.float32, scores)
    _check.apart(op, "out weights", weights, indices)
    count = int(torch.ops.stprune.draw_threshold(*arguments, indices, weights)[2])
    if count > min(indices.numel(), weights.numel()):
        have = min(indices.numel(), weights.numel())
        raise ValueError(f"{op}: out must have at least {count} elements, got {have}")
    return indices[:count], weights[:count]
