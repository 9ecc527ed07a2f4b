"""Reference of draw_spaced: whole-vector torch, one step at a time."""

from __future__ import annotations

import torch

from stprune.reference.random import words_at

# Stream of the phases; see stprune/reference/random.py for the streams of the other draws.
SPACED = 9


def draw_spaced(scores: torch.Tensor, spacing: int, threshold: float, seed: int, epoch: int) -> torch.Tensor:
    """Kept windows, ascending int64: the high ones, and every `spacing`-th of each run of low ones far from all high."""
    n = scores.numel()
    place = torch.arange(n, dtype=torch.int64, device=scores.device)
    high = (scores.double() >= threshold) | scores.isnan()
    far = torch.full_like(place, -spacing), torch.full_like(place, n - 1 + spacing)
    before = torch.where(high, place, far[0]).cummax(0).values
    after = torch.where(high, place, far[1]).flip(0).cummin(0).values.flip(0)
    free = (place - before >= spacing) & (after - place >= spacing)

    starts = free.clone()
    starts[1:] &= ~free[:-1]
    first = place[starts]
    run = starts.cumsum(0)[free] - 1
    length = torch.bincount(run, minlength=first.numel())
    word = words_at(first, seed=seed, epoch=epoch, stream=SPACED)
    phase = (word * length.clamp(max=spacing)) >> 32
    offset = place[free] - first[run] - phase[run]
    kept = high
    kept[free] = (offset >= 0) & (offset % spacing == 0)
    return kept.nonzero().flatten()
