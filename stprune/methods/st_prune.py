"""ST-Prune: the budget rule (eq. 7)."""

from __future__ import annotations

import math

import torch

from stprune.methods.base import Method, asked_count
from stprune.ops import _check
from stprune.ops.budget import inclusion_budget
from stprune.ops.plan_budget import MOST, Budgeted, Buffers, plan_budget
from stprune.ops.strata import Strata


class STPrune(Method):
    """Probability proportional to a power of the score, clipped, with the asked number of samples exactly (eq. 7).

    Samples never scored, or scored NaN or infinite, are kept with weight 1; when they alone exceed the budget the epoch
    is larger than asked (the first epoch is full).

    Args:
        alpha: power of the score, >= 0; 0 is soft random.
        weight_cap: bound on how many times its fair share a sample can weigh, >= 1: no probability falls below
            keep_ratio / weight_cap.

    Source:
        Eq. 7 and 10, our definition of the sampler of ST-Prune (arXiv 2602.19113), which publishes no formula.
    """

    name = "st-prune"
    unbiased = True
    beta = 0.5
    decay = 0.97

    def __init__(self, *, alpha: float = 0.5, weight_cap: float = 5.0) -> None:
        self.alpha = _check.real("STPrune", "alpha", alpha, 0.0, math.inf)
        self.weight_cap = _check.real("STPrune", "weight_cap", weight_cap, 1.0, math.inf)

    def planned(
        self,
        scores: torch.Tensor,
        *,
        keep_ratio: float,
        seed: int,
        epoch: int,
        strata: Strata | None = None,
        out: Buffers | None = None,
    ) -> Budgeted:
        if not self._keeps(STPrune, "inclusion", "choose", "draw", "weights") or scores.numel() > MOST:
            return super().planned(scores, keep_ratio=keep_ratio, seed=seed, epoch=epoch, strata=strata, out=out)
        return plan_budget(
            scores,
            alpha=self.alpha,
            count=asked_count(keep_ratio, scores.numel()),
            minimum=keep_ratio / self.weight_cap,
            seed=seed,
            epoch=epoch,
            strata=strata,
            out=out,
        )

    def inclusion(self, scores: torch.Tensor, *, keep_ratio: float, seed: int, epoch: int) -> torch.Tensor:
        # Losses are not negative; a score of one's own may be, and then teaches nothing.
        return inclusion_budget(
            scores,
            alpha=self.alpha,
            count=asked_count(keep_ratio, scores.numel()),
            minimum=keep_ratio / self.weight_cap,
        )
