"""Gradient variance of two-stage draws: windows, then nodes in them (eq. 12-14)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stprune.headroom.gradients import Array, GradientStats, Numbers

WEIGHT_CAP = 5.0
"""Largest ratio of the keep ratio to a window's probability, as in the sampler's budget rule (eq. 7)."""
_RATIOS = np.arange(2, 101, 2) / 100
_NEAR = 0.01


@dataclass(frozen=True)
class Moments:
    """Second moments of the gradients, each summed over the parameters, i.e. traces of covariance matrices.

    Attributes:
        between: variance over windows of the window's gradient (over all nodes).
        within: mean over windows of the variance of the pair gradients inside, with divisor N - 1.
        signal: squared length of the mean gradient; unbiased, so that it may be slightly negative.
        num_nodes: N.
    """

    between: float
    within: float
    signal: float
    num_nodes: int

    @property
    def component(self) -> float:
        """The variance component of the windows: what remains however many nodes are drawn (ANOVA; may be negative)."""
        return self.between - self.within / self.num_nodes

    @property
    def r(self) -> float:
        """Intraclass correlation of the pair gradients inside a window (trace form)."""
        return self.component / (self.component + self.within)

    def variance(self, num_drawn: Numbers) -> Array:
        """s^2 (r + (1 - r) / m): the gradient's variance from one window and m nodes of it, exact for draws without
        replacement from all N."""
        return np.asarray(self.component + self.within / np.asarray(num_drawn, dtype=np.float64))


def moments(stats: GradientStats, counts: NDArray[np.int64] | None = None) -> Moments:
    """One-way random-effects ANOVA of the gradients, windows being the groups.

    The window part is that of the windows' full gradients less what their N pairs contribute to it; with all pairs of every
    window measured this is the classical estimator.

    Args:
        stats: products of the gradients of W windows.
        counts: [W] int64 summing to W, how often a bootstrap sample holds each window; None for the sample itself.

    Returns:
        The moments. Those of a bootstrap sample are free of the bias that repeated windows bring.

    Raises:
        ValueError: gradients are not finite, or the same in every window.

    Source:
        Cochran, Sampling Techniques, two-stage cluster sampling; methods/README.md, eq. 14.
    """
    size = len(stats.gram)
    weight = np.ones(size) if counts is None else counts.astype(np.float64)
    diagonal = np.diagonal(stats.gram)
    squares = float(weight @ diagonal) / size
    mean_square = float(weight @ stats.gram @ weight) / size**2
    between = max(squares - mean_square, 0.0) * size / (size - 1)
    if counts is not None:
        between *= size / (size - 1)
    within = float(weight @ stats.within) / size
    if not np.isfinite(squares + within):
        raise ValueError("headroom: gradients must be finite, got values that are not")
    # Rounding leaves equal gradients a variance of about 1e-14 of their squares.
    if between <= 1e-12 * squares:
        raise ValueError("headroom: gradients must differ between windows, got the same for all")
    return Moments(between, within, squares - between, stats.num_nodes)


def second_moments(stats: GradientStats, num_drawn: int) -> Array:
    """[W] expected squared length of the gradient of each window from `num_drawn` of its nodes."""
    extra = stats.within * (1 / num_drawn - 1 / stats.num_nodes)
    return np.diagonal(stats.gram) + extra


def importance_variance(squares: Array, probability: Array, signal: float, counts: NDArray[np.int64] | None = None) -> Array:
    """Variance of one window's weighted gradient when windows come with unequal probabilities.

    Args:
        squares: [W] from `second_moments`.
        probability: [..., W] up to a common factor, positive.
        signal: squared length of the mean gradient.
        counts: as in `moments`.

    Returns:
        [...] the variance; with equal probabilities that of a plain draw.
    """
    weight = np.ones(len(squares)) if counts is None else counts
    mean = probability @ weight / len(squares)
    return np.asarray((squares / probability) @ weight * mean / len(squares) - signal)


def inclusion(key: Array, keep_ratio: Numbers) -> Array:
    """Probabilities of the budget rule (eq. 7, alpha = 1): clip(c key, keep_ratio / 5, 1) with mean keep_ratio.

    Args:
        key: [W], not negative.
        keep_ratio: in (0, 1], one or [K].

    Returns:
        [W] or [K, W].
    """
    ratio = np.asarray(keep_ratio, dtype=np.float64)[..., None]
    positive = key[key > 0]
    if not len(positive):
        return np.broadcast_to(ratio, (*ratio.shape[:-1], len(key))).copy()
    floor = ratio / WEIGHT_CAP
    low, high = np.zeros_like(ratio), np.full_like(ratio, 1.0 / positive.min())
    for _ in range(80):
        middle = 0.5 * (low + high)
        short = np.clip(middle * key, floor, 1.0).mean(axis=-1, keepdims=True) < ratio
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return np.clip(high * key, floor, 1.0)


def best_keep_ratio(squares: Array, signal: float) -> float:
    """The largest keep ratio at which choosing windows by their true gradient lengths is worth most.

    A keep ratio near 1 leaves no choice, since no probability exceeds 1. Windows not kept in one epoch come in others, so
    that a smaller ratio costs epochs, not windows: at equal variance only the variance counts.

    Args:
        squares: [W] from `second_moments`.
        signal: squared length of the mean gradient.

    Returns:
        In (0, 1]: variance within 1% of the least any ratio gives; 1 where none gives less than a plain draw's.
    """
    variances = importance_variance(squares, inclusion(np.sqrt(np.maximum(squares, 0.0)), _RATIOS), signal)
    least = variances.min()
    return float(_RATIOS[variances <= least + _NEAR * abs(least)].max())
