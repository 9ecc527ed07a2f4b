"""Method: how scores become probabilities, a kept set, and weights."""

from __future__ import annotations

import numbers
from typing import Any

import torch

from stprune.ops import _check
from stprune.ops.finite_mean import finite_mean, finite_stats
from stprune.ops.plan_budget import MOST, Budgeted, Buffers
from stprune.ops.strata import Strata, calibrate


class Method:
    """Base of every method: a value that says how scores become probabilities, a kept set, and weights.

    A method of one's own is a subclass with the two functions `inclusion` and `weights`. The methods of this package are
    frozen dataclasses; those that do all of it in one op define `kept`, and cannot be subclassed, as `kept` would ignore
    what the subclass changes.

    Attributes:
        name: what `PruningSampler(method=...)` and saved states call it.
        unbiased: the weighted gradient sum over the kept set has the full gradient sum as its expectation.
        needs_scores: the first epoch must see every sample, because nothing is known yet.
        exact_count: every epoch keeps exactly round(keep_ratio * num_samples) samples.
        uniform: every sample is as likely as any other, whatever its score.
        weighs: kept samples have weights of their own; False: all weigh 1.
        beta, decay, track_variance: the `ScoreTable` settings the method was published with.
    """

    name = "custom"
    unbiased = False
    needs_scores = True
    exact_count = True
    uniform = False
    weighs = True
    beta = 0.0
    decay = 1.0
    track_variance = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for base in cls.__mro__[1:-1]:
            if base is not Method and "kept" in vars(base) and "kept" not in vars(cls):
                raise TypeError(
                    f"{cls.__name__}: base class must be stprune.Method, got {base.__name__}, which chooses samples in one op "
                    "that would not call the functions of a subclass"
                )

    def inclusion(self, scores: torch.Tensor, *, keep_ratio: float, seed: int, epoch: int) -> torch.Tensor:
        """[num_samples] floating probability of keeping each sample, from the scores [num_samples] of earlier epochs."""
        raise NotImplementedError(f"method {self.name}: inclusion must be defined, got a method without it")

    def weights(self, probability: torch.Tensor) -> torch.Tensor:
        """[K] weight of each kept sample, from its probability [K]. Horvitz-Thompson: 1 / probability (eq. 10)."""
        return probability.reciprocal() if self.weighs else torch.ones_like(probability)

    def ratio(self, keep_ratio: float) -> float:
        """The share of the samples that is kept when `keep_ratio` is asked for: just that."""
        return keep_ratio

    def scores_of(self, scores: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """What samples are ranked by, from the table's scores and variances [num_samples]: the scores themselves."""
        return scores

    def settings(self) -> dict[str, Any]:
        """What must be the same in a saved state: the method's name, its parameters and its settings of the table."""
        return {"name": self.name, "beta": self.beta, "decay": self.decay, "track_variance": self.track_variance} | parameters(
            self
        )

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
        """The kept samples of an epoch, their weights and the mean of these: what the planner calls.

        Args:
            scores: [num_samples] float32; not modified.
            keep_ratio, seed, epoch: as in `stprune.plan_epoch`.
            strata: the samples' strata, on the device of `scores`; unbiased weights are calibrated by them (eq. 10).
            out: memory that a method may use for its results; num_samples elements on the device of `scores`.
        """
        probability = self.inclusion(scores, keep_ratio=keep_ratio, seed=seed, epoch=epoch)
        total = _checked_total(self.name, probability, scores)
        indices = _draw_exactly(probability, total, keep_ratio=keep_ratio, seed=seed, epoch=epoch)
        if self._all_one:
            weights = torch.ones(indices.numel(), dtype=torch.float32, device=indices.device)
        else:
            # Copied, as a method of one's own may return a tensor that it keeps, or one value expanded.
            weights = self.weights(probability.index_select(0, indices)).to(torch.float32, copy=True).contiguous()
        return self.weighed(indices, weights, strata)

    def weighed(self, indices: torch.Tensor, weights: torch.Tensor, strata: Strata | None) -> Budgeted:
        """Kept samples and weights [K], the latter calibrated in place by stratum where they are unbiased."""
        if strata is not None and self.unbiased:
            weights = calibrate(weights, indices, strata)
        # The mean waits for a GPU. It is exact for equal weights, so that dividing by it gives exactly 1.
        return Budgeted(indices, weights, 1.0 if self._all_one or not weights.numel() else finite_mean(weights))

    @property
    def _all_one(self) -> bool:
        # A subclass may weigh what its base does not.
        return not self.weighs and type(self).weights is Method.weights


class UserMethod(Method):
    """The method of an object that has `inclusion` and `weights` but not the base class.

    Args:
        inner: the object; attributes of `Method` that it lacks take their defaults.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.name = str(getattr(inner, "name", type(inner).__name__))
        for attribute in ("unbiased", "needs_scores", "exact_count", "beta", "decay", "track_variance"):
            setattr(self, attribute, getattr(inner, attribute, getattr(Method, attribute)))

    def inclusion(self, scores: torch.Tensor, *, keep_ratio: float, seed: int, epoch: int) -> torch.Tensor:
        return self.inner.inclusion(scores, keep_ratio=keep_ratio, seed=seed, epoch=epoch)  # type: ignore[no-any-return]

    def weights(self, probability: torch.Tensor) -> torch.Tensor:
        return self.inner.weights(probability)  # type: ignore[no-any-return]

    def settings(self) -> dict[str, Any]:
        return super().settings() | parameters(self.inner)


def parameters(value: object) -> dict[str, Any]:
    """The attributes of an object that a saved state can compare: numbers, words and None; a function counts by its name."""
    found: dict[str, Any] = {}
    for name, entry in getattr(value, "__dict__", {}).items():
        if isinstance(entry, bool | str | None):
            found[name] = entry
        elif isinstance(entry, numbers.Real):  # NumPy's too, which a state could not be loaded with
            found[name] = int(entry) if isinstance(entry, numbers.Integral) else float(entry)
        elif callable(entry):
            found[name] = getattr(entry, "__qualname__", type(entry).__qualname__)
    return found


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
    if n > MOST:
        raise ValueError(f"draw: probability must have at most 2^30 elements when count is given, got {n}")
    asked = asked_count(keep_ratio, n)
    # Rounding the probabilities to float32 moves their sum by up to 2^-24 of it; that is no other count.
    rounding = asked * 2.0**-24 if probability.dtype == torch.float32 else 0.0
    count = asked if abs(total - asked) <= 0.5 + rounding else round(total)
    if probability.dtype == torch.float32 and abs(total - count) > 0.5:
        # From some 2^25 samples on the rounding can add up to more than a draw takes: undone in float64.
        certain = probability >= 1.0
        num_certain = int(certain.sum())
        share = (count - num_certain) / (total - num_certain)
        probability = torch.where(certain, 1.0, (probability.double() * share).clamp_max(1.0))
    # `stprune.draw` would look at the probabilities a second time, and wait for a GPU.
    return torch.ops.stprune.draw(probability.contiguous(), count, seed, epoch, None)[0]  # type: ignore[no-any-return]
