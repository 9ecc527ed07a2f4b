"""Gradient variance of two-stage draws: windows, then nodes in them (eq. 12-14)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stprune.headroom.gradients import Array, GradientStats, Numbers


@dataclass(frozen=True)
class Moments:
    """Second moments of the gradients, each summed over the parameters, i.e. traces of covariance matrices.

    Attributes:
        between: variance over windows of the window's gradient (over all nodes).
        within: mean over windows of the variance of the pair gradients inside, with divisor N - 1.
        signal: squared length of the mean gradient; unbiased, so that it may be slightly negative.
        num_nodes: N.
        num_windows: windows measured.
    """

    between: float
    within: float
    signal: float
    num_nodes: int
    num_windows: int

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

    def noise(self, batch_size: Numbers, num_drawn: Numbers) -> Array:
        """Variance of a step's gradient by its squared mean: `variance(m) / B` over `signal`.

        A signal below `between / num_windows` cannot be told from 0 with so many windows, and counts as that.
        """
        signal = max(self.signal, self.between / self.num_windows)
        return np.maximum(self.variance(num_drawn), 0.0) / np.asarray(batch_size, dtype=np.float64) / signal


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
    return Moments(between, within, squares - between, stats.num_nodes, size)


def least_by_windows(stats: GradientStats) -> float:
    """The least share of a plain draw's variance that any probabilities of windows reach: those by gradient length.

    Returns:
        ((mean g)^2 - signal) / (mean(g^2) - signal) of the windows' gradient lengths g, in [0, 1].

    Source:
        Importance sampling by gradient length (Zhao and Zhang, ICML 2015).
    """
    squares, found = np.diagonal(stats.gram), moments(stats)
    return float(np.clip((np.sqrt(squares).mean() ** 2 - found.signal) / (squares.mean() - found.signal), 0.0, 1.0))
