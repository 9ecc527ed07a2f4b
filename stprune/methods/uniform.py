"""Methods that look at no score: full, soft-random, rs2."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stprune.methods.base import Method, asked_count
from stprune.ops import draw, permute
from stprune.ops.plan_budget import Budgeted, Buffers
from stprune.ops.strata import Strata

_EXACT = 1 << 24
"""Up to so many samples the float32 probabilities of a draw add up to its count within half a sample."""


@dataclass(frozen=True)
class Full(Method):
    """Every sample, every epoch, weight 1: training without pruning."""

    name = "full"
    unbiased = True
    needs_scores = False
    uniform = True

    def ratio(self, keep_ratio: float) -> float:
        return 1.0

    def inclusion(self, scores: torch.Tensor, *, keep_ratio: float, seed: int, epoch: int) -> torch.Tensor:
        return torch.ones_like(scores, dtype=torch.float32)


@dataclass(frozen=True)
class SoftRandom(Method):
    """A fresh uniformly random subset each epoch: the control that every claim about scores is tested against.

    All probabilities are equal, so all weights are, and under `rescale="per_step"` they are exactly 1.

    Source:
        Eq. 7 with alpha = 0.
    """

    name = "soft-random"
    unbiased = True
    needs_scores = False
    uniform = True

    def inclusion(self, scores: torch.Tensor, *, keep_ratio: float, seed: int, epoch: int) -> torch.Tensor:
        count = asked_count(keep_ratio, scores.numel())
        return torch.full_like(scores, count / max(1, scores.numel()), dtype=torch.float32)

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
        if out is None or not 0 < n <= _EXACT:
            return super().kept(scores, keep_ratio=keep_ratio, seed=seed, epoch=epoch, strata=strata)
        count = asked_count(keep_ratio, n)
        probability = out.scratch[:n].view(torch.float32).fill_(count / n)
        indices = draw(probability, seed=seed, epoch=epoch, count=count, out=out.indices)
        weight = probability[:1].reciprocal()
        return self.weighed(indices, out.weights[:count].copy_(weight.expand(count)), strata)


@dataclass(frozen=True)
class RS2(Method):
    """Walk one random permutation, a keep ratio's worth each epoch, so that no sample returns before all had their turn.

    At the end the walk goes on at the permutation's beginning; every ceil(n / K) epochs in a row cover all samples.
    Weights are 1: the choice does not depend on the samples.

    Source:
        Okanovic et al., "Repeated Random Sampling for Minimizing the Time-to-Accuracy", ICLR 2024, without replacement.
    """

    name = "rs2"
    needs_scores = False
    weighs = False

    def inclusion(self, scores: torch.Tensor, *, keep_ratio: float, seed: int, epoch: int) -> torch.Tensor:
        n = scores.numel()
        count = asked_count(keep_ratio, n)
        probability = torch.zeros_like(scores, dtype=torch.float32)
        start = (epoch * count) % n if n else 0
        # One permutation serves the whole run: it is keyed by the seed alone (epoch 0).
        head = permute(n, start, min(n, start + count), seed=seed, epoch=0, device=scores.device)
        tail = permute(n, 0, start + count - n, seed=seed, epoch=0, device=scores.device) if start + count > n else head[:0]
        return probability.index_fill_(0, torch.cat([head, tail]), 1.0)
