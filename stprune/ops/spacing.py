"""draw_spaced: windows far enough apart, except where both matter."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch

from stprune.ops import _check
from stprune.ops._registry import define
from stprune.reference import spacing as reference

# spacing * 2^32 must fit into 63 bits.
_WIDEST = (1 << 31) - 1


def _fake(scores: torch.Tensor, spacing: int, threshold: float, seed: int, epoch: int) -> torch.Tensor:
    return scores.new_empty((torch.library.get_ctx().new_dynamic_size(),), dtype=torch.int64)


define(
    "draw_spaced(Tensor scores, int spacing, float threshold, int seed, int epoch) -> Tensor",
    reference.draw_spaced,
    _fake,
)


def draw_spaced(scores: torch.Tensor, *, spacing: int, threshold: float, seed: int, epoch: int) -> torch.Tensor:
    """Windows of which no two are closer than `spacing`, unless both score at least `threshold`.

    Neighbouring windows share all but a few rows, so keeping both is worth little unless both are hard. The rule: a window
    is high when its score is at least `threshold` (+inf and NaN: unknown), else low. Every high window is kept. A low
    one is free when it lies at least `spacing` from every high one; of each run of consecutive free windows every
    `spacing`-th is kept, from a random one of the first min(spacing, length of the run) on, uniform and new in every
    epoch. The result

    - has no two windows closer than `spacing` of which one is low;
    - is maximal: no window can be added without breaking that;
    - keeps each window of a run with probability 1 / min(spacing, length of the run) (to 2^-32), so over the epochs all
      free windows are seen; those near high windows never are, which is why no weights are returned and no estimate from
      this draw is unbiased.

    A function of (scores, spacing, threshold, seed, epoch) on every device; O(n); no global generator is read or written.

    Args:
        scores: [num_windows] floating, window i being the i-th in time; not modified.
        spacing: least distance of a low window from any other, in windows, at least 1; 1 keeps all. In rows it is
            `spacing` times the stride; history + horizon of them make low windows share nothing.
        threshold: score from which on windows are high; infinity makes only NaN and infinite scores high, minus infinity
            all.
        seed: in [0, 2^63).
        epoch: in [0, 2^32).

    Returns:
        [number kept] int64, ascending, on the device of `scores`.

    Raises:
        TypeError: `scores` is no floating tensor, `threshold` no number or an integer argument is none.
        ValueError: `scores` is not one-dimensional, `threshold` is NaN or an integer is out of range.

    Example:
        >>> import torch
        >>> from stprune.ops import draw_spaced
        >>> scores = torch.tensor([0.0, 0.0, 9.0, 9.0, 0.0, 0.0, 0.0, 0.0])
        >>> kept = draw_spaced(scores, spacing=3, threshold=5.0, seed=0, epoch=0).tolist()
        >>> kept in ([2, 3, 6], [2, 3, 7])
        True

    Source:
        Our definition; a run's windows are a systematic sample with a random start (Cochran, Sampling Techniques, chapter 8).
    """
    op = "draw_spaced"
    scores = _check.vector(op, "scores", _check.floating(op, "scores", scores)).detach()
    spacing = _check.integer(op, "spacing", spacing, 1, _WIDEST)
    threshold = _threshold(op, threshold)
    seed, epoch = _check.seed_and_epoch(op, seed, epoch)
    if scores.dtype in (torch.bfloat16, torch.float16):
        scores = scores.float()
    return torch.ops.stprune.draw_spaced(scores.contiguous(), spacing, threshold, seed, epoch)  # type: ignore[no-any-return]


def _threshold(op: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{op}: threshold must be a number, got {value!r}")
    if math.isnan(value):
        raise ValueError(f"{op}: threshold must not be NaN, got {value!r}")
    return float(value)
