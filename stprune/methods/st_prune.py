"""ST-Prune: the budget rule (eq. 7)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from stprune.methods.base import Method, asked_count
from stprune.ops import _check
from stprune.ops.budget import inclusion_budget
from stprune.ops.plan_budget import MOST, Budgeted, Buffers, plan_budget
from stprune.ops.strata import Strata


@dataclass(frozen=True, kw_only=True)
class STPrune(Method):
    """Probability proportional to a power of the score, clipped, with the asked number of samples exactly (eq. 7).

    Samples never scored, or scored NaN or infinite, are kept with weight 1. If there are more of them than the budget,
    the epoch is larger than asked (the first epoch is full).

    Args:
        alpha: power of the score, >= 0; 0 is soft random.
        weight_cap: bound on how many times its fair share a sample can weigh, >= 1: no probability falls below
            keep_ratio / weight_cap.

    Source:
        Eq. 7 and 10, our definition of the sampler of ST-Prune (arXiv 2602.19113), which publishes no formula.
    """

    alpha: float = 0.5
    weight_cap: float = 5.0

    name = "st-prune"
    unbiased = True
    beta = 0.5
    decay = 0.97

    def __post_init__(self) -> None:
        _check.real("STPrune", "alpha", self.alpha, 0.0, math.inf)
        _check.real("STPrune", "weight_cap", self.weight_cap, 1.0, math.inf)

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
        if scores.numel() > MOST:
            return super().kept(scores, keep_ratio=keep_ratio, seed=seed, epoch=epoch, strata=strata)
        count, minimum = asked_count(keep_ratio, scores.numel()), keep_ratio / self.weight_cap
        return plan_budget(
            scores, alpha=self.alpha, count=count, minimum=minimum, seed=seed, epoch=epoch, strata=strata, out=out
        )

    def inclusion(self, scores: torch.Tensor, *, keep_ratio: float, seed: int, epoch: int) -> torch.Tensor:
        # Losses are not negative. A user's own score may be: it counts as 0.
        count, minimum = asked_count(keep_ratio, scores.numel()), keep_ratio / self.weight_cap
        return inclusion_budget(scores, alpha=self.alpha, count=count, minimum=minimum)
