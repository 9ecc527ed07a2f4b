"""Method: how scores become probabilities, a kept set, and weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from stprune.ops import draw
from stprune.ops.finite_mean import finite_mean

if TYPE_CHECKING:
    from stprune.table import ScoreTable


class Method:
    """Base of every method: how scores become probabilities, a kept set, and weights.

    Attributes:
        name: what `PruningSampler(method=...)` and saved states call it.
        unbiased: the weighted gradient sum over the kept set has the full gradient sum as its expectation.
        needs_scores: the first epoch must see every sample, because nothing is known yet.
        exact_count: every epoch keeps exactly round(keep_ratio * num_samples) samples.
        beta, decay, track_variance: the `ScoreTable` settings the method was published with.
    """

    name = "custom"
    unbiased = False
    needs_scores = True
    exact_count = True
    beta = 0.0
    decay = 1.0
    track_variance = False

    def inclusion(self, scores: torch.Tensor, *, keep_ratio: float, seed: int, epoch: int) -> torch.Tensor:
        """[num_samples] float32 probability of keeping each sample, from the scores of earlier epochs."""
        raise NotImplementedError

    def weights(self, probability: torch.Tensor) -> torch.Tensor:
        """[K] float32 weight of each kept sample, from its probability [K]. Horvitz-Thompson: 1 / probability (eq. 9)."""
        return probability.reciprocal()

    def draw(self, probability: torch.Tensor, *, keep_ratio: float, seed: int, epoch: int) -> torch.Tensor:
        """[K] int64 ascending: the kept set. Systematic sampling with exact count unless a method says otherwise."""
        total = finite_mean(probability) * probability.numel() if probability.numel() else 0.0
        asked = asked_count(keep_ratio, probability.numel())
        # Rounding the probabilities to float32 moves their sum by up to 2^-24 of it; that is no other count.
        count = asked if abs(total - asked) <= 0.5 + asked * 2.0**-24 else round(total)
        return draw(probability, seed=seed, epoch=epoch, count=count)

    def scores_of(self, table: ScoreTable) -> torch.Tensor:
        """What the method ranks samples by; the table's scores unless a method adds to them."""
        return table.scores


def asked_count(keep_ratio: float, num_samples: int) -> int:
    """How many samples a keep ratio asks for; at least one, as an empty epoch trains nothing."""
    return max(1, round(keep_ratio * num_samples)) if num_samples else 0


class _Adapted(Method):
    """A user's object with the two functions but without the base class."""

    def __init__(self, inner: object) -> None:
        self.inner = inner
        self.name = str(getattr(inner, "name", type(inner).__name__))
        self.unbiased = bool(getattr(inner, "unbiased", False))
        for attribute in ("needs_scores", "exact_count", "beta", "decay", "track_variance"):
            setattr(self, attribute, getattr(inner, attribute, getattr(Method, attribute)))
        self.inclusion = inner.inclusion  # type: ignore[attr-defined,method-assign]
        self.weights = inner.weights  # type: ignore[attr-defined,method-assign]
        for function in ("draw", "scores_of"):
            if hasattr(inner, function):
                setattr(self, function, getattr(inner, function))


def adapt(inner: object) -> Method:
    """A `Method` around an object that has the two functions but not the base class."""
    return _Adapted(inner)
