"""Spaced: hard windows as they are, easy ones only far apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stprune.methods.base import Method, asked_count
from stprune.ops import _check, draw_spaced, select
from stprune.ops.finite_mean import finite_stats
from stprune.ops.plan_budget import Budgeted, Buffers
from stprune.ops.strata import Strata


@dataclass(frozen=True, kw_only=True)
class Spaced(Method):
    """The hardest windows, and of the easy stretches between them every `spacing`-th window. Biased: weights are 1.

    Neighbouring windows share all but a few rows: two easy ones close together teach little more than one of them. Windows
    must be numbered by time, as `WindowDataset` and `split_windows` do. The number h of hard windows solves
    h + (num_samples - h) / spacing = keep_ratio * num_samples. As no easy window near a hard one is kept either, an epoch keeps
    at least the hard ones and at most keep_ratio * num_samples; but about num_samples / spacing where that is more, and
    always every window that has not been scored yet.

    Args:
        spacing: least distance of an easy window from any other kept one, in windows, at least 2; history + horizon steps
            of them share no row (24 windows of stride 1 for 12 steps to 12 steps, the default).

    Source:
        `stprune.draw_spaced`; our definition.
    """

    spacing: int = 24

    name = "spaced"
    weighs = False
    exact_count = False

    def __post_init__(self) -> None:
        _check.integer("Spaced", "spacing", self.spacing, 2, (1 << 31) - 1)

    def kept(
        self,
        scores: torch.Tensor,
        *,
        keep_ratio: float,
        seed: int,
        epoch: int,
        strata: Strata | None = None,
        out: Buffers | None = None,
    ) -> Budgeted:
        n = scores.numel()
        unknown = n - finite_stats(scores).count
        # hard + (n - hard) / spacing = asked
        num_hard = round((asked_count(keep_ratio, n) * self.spacing - n) / (self.spacing - 1))
        # Marked one by one and not by a threshold, which ties would carry far beyond the number asked for.
        hard = torch.zeros_like(scores)
        hard.index_fill_(0, select(scores, min(n, max(num_hard, unknown, 0))), 1.0)
        indices = draw_spaced(hard, spacing=self.spacing, threshold=0.5, seed=seed, epoch=epoch)
        return self.weighed(indices, torch.ones(indices.numel(), dtype=torch.float32, device=scores.device), strata)
