"""Method: how scores become probabilities, a kept set, and weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from stprune.ops import _check, draw
from stprune.ops.finite_mean import finite_mean, finite_stats
from stprune.ops.plan_budget import Budgeted, Buffers
from stprune.ops.plan_weights import inverse_at
from stprune.ops.strata import Strata, calibrate

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
        """[K] float32 weight of each kept sample, from its probability [K]. Horvitz-Thompson: 1 / probability (eq. 10)."""
        return probability.reciprocal()

    def choose(self, scores: torch.Tensor, *, keep_ratio: float, seed: int, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Kept ids [K] int64, ascending, and their weights [K] float32: `inclusion`, `draw` and `weights` one after another.

        A method may do the three in one where that is faster. Both tensors are new: a plan overwrites the weights.
        """
        probability = self.inclusion(scores, keep_ratio=keep_ratio, seed=seed, epoch=epoch)
        total = _checked_total(self.name, probability, scores)
        if getattr(self.draw, "__func__", None) is Method.draw and probability.dtype == torch.float32:
            indices = _draw_exactly(probability, total, keep_ratio=keep_ratio, seed=seed, epoch=epoch)
        else:
            indices = self.draw(probability, keep_ratio=keep_ratio, seed=seed, epoch=epoch)
        if getattr(self.weights, "__func__", None) is Method.weights:
            return indices, inverse_at(probability, indices)
        # Copied, as a method of one's own may return a tensor that it keeps, or one value expanded.
        return indices, self.weights(probability[indices]).to(torch.float32, copy=True).contiguous()

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
        """What `plan_epoch` asks for: `choose`, the weights calibrated by stratum where they are unbiased, and their mean.

        A method that can do it in one, or in the buffers it is given, does.
        """
        indices, weights = self.choose(scores, keep_ratio=keep_ratio, seed=seed, epoch=epoch)
        return self._weighed(indices, weights, strata)

    def _weighed(self, indices: torch.Tensor, weights: torch.Tensor, strata: Strata | None) -> Budgeted:
        if strata is not None and self.unbiased:
            weights = calibrate(weights, indices, strata)
        # Exact for equal weights, so that dividing by it gives exactly 1.
        return Budgeted(indices, weights, finite_mean(weights) if weights.numel() else 1.0)

    def _keeps(self, own: type[Method], *steps: str) -> bool:
        """Whether no subclass of `own` replaced one of these functions."""
        return all(getattr(type(self), step) is getattr(own, step) for step in steps)

    def draw(self, probability: torch.Tensor, *, keep_ratio: float, seed: int, epoch: int) -> torch.Tensor:
        """[K] int64 ascending: the kept set. Systematic sampling with exact count unless a method says otherwise."""
        total = _checked_total(self.name, probability, probability)
        return _draw_exactly(probability, total, keep_ratio=keep_ratio, seed=seed, epoch=epoch)

    def scores_of(self, table: ScoreTable) -> torch.Tensor:
        """What the method ranks samples by; the table's scores unless a method adds to them."""
        return table.scores


def asked_count(keep_ratio: float, num_samples: int) -> int:
    """How many samples a keep ratio asks for; at least one, as an empty epoch trains nothing."""
    return max(1, round(keep_ratio * num_samples)) if num_samples else 0


def _checked_total(name: str, probability: torch.Tensor, scores: torch.Tensor) -> float:
    """Sum of the probabilities; what a user's own method returned is as bad an input as any other."""
    op = f"method {name}"
    probability = _check.floating(op, "inclusion", probability)
    if probability.shape != scores.shape:
        raise ValueError(
            f"{op}: inclusion must return one probability for each of {scores.numel()} samples, "
            f"got shape {tuple(probability.shape)}"
        )
    stats = finite_stats(probability)
    if stats.count < probability.numel() or stats.least < 0.0 or stats.largest > 1.0:
        low, high = (float(bound) for bound in torch.aminmax(probability))
        raise ValueError(f"{op}: inclusion must return probabilities in [0, 1], got values in [{low:g}, {high:g}]")
    return stats.sum


def _draw_exactly(probability: torch.Tensor, total: float, *, keep_ratio: float, seed: int, epoch: int) -> torch.Tensor:
    """Systematic sampling of probabilities that were checked and have this sum."""
    n = probability.numel()
    asked = asked_count(keep_ratio, n)
    # Rounding the probabilities to float32 moves their sum by up to 2^-24 of it; that is no other count.
    count = asked if abs(total - asked) <= 0.5 + asked * 2.0**-24 else round(total)
    if probability.dtype != torch.float32 or n > 2**30:
        return draw(probability, seed=seed, epoch=epoch, count=count)
    if abs(total - count) > 0.5:
        # From some 2^25 samples on the rounding can add up to more than a draw takes: undone in float64.
        certain = probability >= 1.0
        num_certain = int(certain.sum())
        share = (count - num_certain) / (total - num_certain)
        return draw(
            torch.where(certain, 1.0, (probability.double() * share).clamp_max(1.0)), seed=seed, epoch=epoch, count=count
        )
    # Past the door of `draw`, whose checks would read all probabilities once more.
    return torch.ops.stprune.draw(probability.contiguous(), count, seed, epoch)  # type: ignore[no-any-return]


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
