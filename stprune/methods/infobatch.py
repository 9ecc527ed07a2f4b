"""InfoBatch: the threshold rule (eq. 6)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from stprune.methods.base import Method
from stprune.ops import draw, draw_threshold, permute
from stprune.ops.finite_mean import finite_mean
from stprune.ops.plan_budget import Budgeted, Buffers
from stprune.ops.strata import Strata


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

    name = "infobatch"
    unbiased = True
    exact_count = False

    def __init__(self, *, permutation: Callable[[int, int, int], torch.Tensor] | None = None) -> None:
        self.permutation = permutation

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
        if out is None or not self._in_one() or not self._keeps(InfoBatch, "choose"):
            return super().planned(scores, keep_ratio=keep_ratio, seed=seed, epoch=epoch, strata=strata, out=out)
        pair = (out.indices, out.weights)
        indices, weights = draw_threshold(scores, keep_ratio, seed=seed, epoch=epoch, exact_count=True, out=pair)
        return self._weighed(indices, weights, strata)

    def choose(self, scores: torch.Tensor, *, keep_ratio: float, seed: int, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self._in_one():
            return draw_threshold(scores, keep_ratio, seed=seed, epoch=epoch, exact_count=True)
        return super().choose(scores, keep_ratio=keep_ratio, seed=seed, epoch=epoch)

    def _in_one(self) -> bool:
        return self.permutation is None and self._keeps(InfoBatch, "inclusion", "draw", "weights")

    def inclusion(self, scores: torch.Tensor, *, keep_ratio: float, seed: int, epoch: int) -> torch.Tensor:
        # float32(mean) as in the original, from a sum that no thread count changes. NaN < x is False: kept.
        mean = torch.tensor(finite_mean(scores), dtype=torch.float32)
        below = scores.float() < mean.to(scores.device)
        return torch.where(below, keep_ratio, 1.0).to(torch.float32)

    def draw(self, probability: torch.Tensor, *, keep_ratio: float, seed: int, epoch: int) -> torch.Tensor:
        certain = probability >= 1.0
        pool = (~certain).nonzero().squeeze(1)
        if pool.numel() == 0:
            return torch.arange(probability.numel(), device=probability.device)
        if self.permutation is None:
            order = permute(pool.numel(), 0, pool.numel(), seed=seed, epoch=epoch)
        else:
            order = self.permutation(pool.numel(), seed, epoch)
        count = int(keep_ratio * pool.numel())
        if count == 0:
            chance = torch.tensor([keep_ratio * pool.numel()], dtype=torch.float64)
            count = draw(chance, seed=seed, epoch=epoch).numel()
        kept = certain.clone()
        kept[pool[order[:count].to(pool.device)]] = True
        return kept.nonzero().squeeze(1)
