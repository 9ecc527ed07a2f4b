"""Reference of the threshold rule (eq. 6): what is at or above the mean is kept, of the rest a share."""

from __future__ import annotations

import torch

from stprune.reference.draw import ONE
from stprune.reference.finite_stats import finite_stats, mean_of
from stprune.reference.random import DRAW, SHUFFLE, words
from stprune.reference.shuffle import permute


def below_mean(scores: torch.Tensor) -> torch.Tensor:
    """Where scores [n] lie below the mean of the finite ones, rounded to their dtype; NaN never does."""
    return scores < torch.tensor(mean_of(finite_stats(scores)), dtype=scores.dtype, device=scores.device)


def head_size(pool: int, keep: float, seed: int, epoch: int) -> int:
    """int(keep * pool), as the original has it; where that is 0, one with the probability that makes it right on average."""
    count = int(keep * pool)
    if count == 0 and pool > 0:
        count = int(float(words(1, seed=seed, epoch=epoch, stream=DRAW)[0]) < keep * pool * ONE)
    return count


def draw_threshold(
    scores: torch.Tensor, keep: float, exact_count: bool, seed: int, epoch: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Kept indices [K] int64, ascending, and their weights [K] float32."""
    n, device = scores.numel(), scores.device
    below = below_mean(scores)
    kept = ~below
    if exact_count:
        pool = below.nonzero().flatten()
        order = torch.empty(pool.numel(), dtype=torch.int64, device=device)
        permute(order, pool.numel(), 0, seed, epoch, SHUFFLE)
        kept[pool[order[: head_size(pool.numel(), keep, seed, epoch)]]] = True
    else:
        kept |= words(n, seed=seed, epoch=epoch, stream=DRAW, device=device).double() < keep * ONE
    indices = kept.nonzero().flatten()
    weight = torch.tensor(keep, dtype=torch.float32, device=device).reciprocal()
    return indices, torch.where(below[indices], weight, 1.0)
