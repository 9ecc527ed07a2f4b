"""Methods that keep the largest scores: epsilon-greedy, top-k, ucb (eq. 8)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from stprune.methods.base import Method, asked_count
from stprune.ops import _check, select
from stprune.ops.finite_mean import finite_stats


@dataclass(frozen=True, kw_only=True)
class EpsilonGreedy(Method):
    """The (1 - epsilon) * K samples of largest score, and a uniform draw from the others (eq. 8). Biased: weights are 1.

    Args:
        epsilon: share of the budget spent on uniform draws, in [0, 1].

    Source:
        Raju et al., "Accelerating Deep Learning with Dynamic Data Pruning", 2021.
    """

    epsilon: float = 0.1

    name = "epsilon-greedy"
    weighs = False
    beta = 0.5

    def __post_init__(self) -> None:
        _check.real("EpsilonGreedy", "epsilon", self.epsilon, 0.0, 1.0)

    def inclusion(self, scores: torch.Tensor, *, keep_ratio: float, seed: int, epoch: int) -> torch.Tensor:
        n = scores.numel()
        unknown = n - finite_stats(scores).count
        count = max(asked_count(keep_ratio, n), unknown)
        top = max(round((1.0 - self.epsilon) * count), unknown)
        other = (count - top) / (n - top) if n > top else 0.0
        probability = torch.full_like(scores, other, dtype=torch.float32)
        return probability.index_fill_(0, select(scores, top), 1.0)


@dataclass(frozen=True)
class TopK(Method):
    """The K samples of largest score. Biased: weights are 1, and easy samples are never seen again until they age."""

    name = "top-k"
    weighs = False

    def inclusion(self, scores: torch.Tensor, *, keep_ratio: float, seed: int, epoch: int) -> torch.Tensor:
        unknown = scores.numel() - finite_stats(scores).count
        probability = torch.zeros_like(scores, dtype=torch.float32)
        return probability.index_fill_(0, select(scores, max(asked_count(keep_ratio, scores.numel()), unknown)), 1.0)


@dataclass(frozen=True, kw_only=True)
class UCB(TopK):
    """Top-k of the smoothed score plus `bonus` times its running variance. Biased: weights are 1.

    Args:
        bonus: weight of the variance, >= 0.

    Source:
        Raju et al., "Accelerating Deep Learning with Dynamic Data Pruning", 2021.
    """

    bonus: float = 1.0

    name = "ucb"
    beta = 0.5
    track_variance = True

    def __post_init__(self) -> None:
        _check.real("UCB", "bonus", self.bonus, 0.0, math.inf)

    def scores_of(self, scores: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        return scores + self.bonus * variance
