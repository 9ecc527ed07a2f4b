"""Reference of the budget rule's kept samples and weights (eq. 7 and 10): its steps, one after another."""

from __future__ import annotations

import torch

from stprune.reference import plan_weights
from stprune.reference.budget import inclusion_budget, num_kept
from stprune.reference.draw import draw
from stprune.reference.finite_stats import finite_stats, mean_of


def mean_weight(weights: torch.Tensor) -> torch.Tensor:
    """The mean of weights [K], exact where all are equal, as [1] float64."""
    return torch.tensor([mean_of(finite_stats(weights))], dtype=torch.float64, device=weights.device)


def plan_budget(
    scores: torch.Tensor,
    alpha: float,
    count: int,
    minimum: float,
    strata: torch.Tensor | None,
    sizes: torch.Tensor | None,
    seed: int,
    epoch: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Kept ids [K] int64, ascending, weights [K] float32 and their mean [1] float64; see stprune.ops.plan_budget."""
    probability = inclusion_budget(scores, alpha, float(count), minimum)
    indices = draw(probability, num_kept(scores, count, minimum), seed, epoch)
    weights = plan_weights.inverse_at(probability, indices)
    if strata is not None and sizes is not None:
        plan_weights.calibrate(weights, indices, strata, sizes)
    return indices, weights, mean_weight(weights)
