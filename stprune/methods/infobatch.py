"""InfoBatch: the threshold rule (eq. 6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from stprune.methods.base import Method
from stprune.ops import draw, draw_threshold
from stprune.ops.finite_mean import finite_mean
from stprune.ops.plan_budget import Budgeted, Buffers
from stprune.ops.strata import Strata


@dataclass(frozen=True, kw_only=True)
class InfoBatch(Method):
    """Prune a share of the samples whose score lies below the mean; weigh the kept ones among them by 1 / (1 - r).

    `keep_ratio` is the share kept *of the samples below the mean* (the original's 1 - r), not of all samples. Given the
    same scores and the same random order of the pool, kept set and weights equal the original's. Two things differ on
    purpose: the mean ignores NaN and infinite scores, and where int(keep_ratio * pool) is zero one sample is kept with the
    probability that makes the expected count right, instead of never. The gradient sum is unbiased up to that rounding
    (exactly where keep_ratio * pool is whole). Train with `PrunedLoss(rescale="epoch_sum")` to follow the original.

    Args:
        permutation: (pool_size, seed, epoch) -> int64 order of the pool, of which the head is kept; the default is
            stprune's counter-based shuffle.

    Source:
        Qin et al., "InfoBatch", ICLR 2024, Algorithm 1; eq. 6.
    """

    permutation: Callable[[int, int, int], torch.Tensor] | None = None

    name = "infobatch"
    unbiased = True
    exact_count = False

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
        if self.permutation is None:
            pair = None if out is None else (out.indices, out.weights)
            kept = draw_threshold(scores, keep_ratio, seed=seed, epoch=epoch, exact_count=True, out=pair)
            return self.weighed(*kept, strata)
        certain = self.inclusion(scores, keep_ratio=keep_ratio, seed=seed, epoch=epoch) == 1.0
        pool = (~certain).nonzero().squeeze(1)
        count = int(keep_ratio * pool.numel())
        if count == 0:
            chance = torch.tensor([keep_ratio * pool.numel()], dtype=torch.float64)
            count = draw(chance, seed=seed, epoch=epoch).numel()
        chosen = certain.clone()
        chosen[pool[self.permutation(pool.numel(), seed, epoch)[:count].to(pool.device)]] = True
        weights = torch.where(certain[chosen], 1.0, 1.0 / keep_ratio)
        return self.weighed(chosen.nonzero().squeeze(1), weights, strata)

    def inclusion(self, scores: torch.Tensor, *, keep_ratio: float, seed: int, epoch: int) -> torch.Tensor:
        # float32(mean) as in the original, from a sum that no thread count changes. NaN < x is False: kept.
        mean = torch.tensor(finite_mean(scores), dtype=torch.float32)
        below = scores.float() < mean.to(scores.device)
        return torch.where(below, keep_ratio, 1.0).to(torch.float32)
