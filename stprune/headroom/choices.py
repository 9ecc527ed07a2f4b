"""The best draws at equal variance, what they cost, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stprune.headroom.cost import StepCost, StepTimes, fit_cost, typical
from stprune.headroom.gradients import Array, GradientStats
from stprune.headroom.variance import (
    Moments,
    best_keep_ratio,
    importance_variance,
    inclusion,
    moments,
    second_moments,
)

PAYS_BELOW = 0.95
"""Saving less than this is within what a run differs by from chance: it does not count as paying."""
_SAMPLES = 400
# Numbers of nodes tried together with window draws: finer steps change the cost by less than 1%.
_GRID = 48


@dataclass(frozen=True)
class Choice:
    """A way to draw, against full training; costs and variances are ratios, below 1 is less than full training.

    Attributes:
        num_drawn: m, nodes drawn per window.
        node_ratio: m / N.
        keep_ratio: share of the windows kept.
        variance: of the gradient of a step with equally many windows; 1.2 needs 1.2 times the windows for equal variance.
        step_cost: of a step with equally many windows.
        cost: at equal variance, `variance * step_cost`.
        interval: 95% bootstrap interval of `cost`, over windows and timing rounds.
    """

    num_drawn: int
    node_ratio: float
    keep_ratio: float
    variance: float
    step_cost: float
    cost: float
    interval: tuple[float, float]

    @property
    def epochs(self) -> float:
        """Times as many epochs as full training takes that equal variance takes."""
        return self.variance / self.keep_ratio

    @property
    def pays(self) -> bool:
        """The cost is at most 0.95, and its interval lies below 1."""
        return self.cost <= PAYS_BELOW and self.interval[1] < 1.0


@dataclass(frozen=True)
class Draw:
    """Nodes per window, keep ratio and window probabilities (None for a plain draw)."""

    num_drawn: int
    keep_ratio: float
    probability: Array | None


@dataclass(frozen=True)
class Choices:
    """The four ways to draw, and the interval of r.

    Attributes:
        nodes: uniform node draws, the best m.
        windows: all nodes; windows by their true gradient lengths, which no score can beat.
        score: all nodes; windows by the root of their loss at the same keep ratio, which a sampler can have.
        both: nodes and windows drawn, the latter by their true gradient lengths.
        r_interval: 95% bootstrap interval of r, over windows.
    """

    nodes: Choice
    windows: Choice
    score: Choice
    both: Choice
    r_interval: tuple[float, float]


def best_draws(stats: GradientStats, cost: StepCost) -> dict[str, Draw]:
    """The draws of `Choices`, by name.

    Args:
        stats: of the gradients.
        cost: of a step.

    Returns:
        "nodes", "windows", "score", "both".
    """
    found = moments(stats)
    num_nodes = stats.num_nodes
    every = np.arange(1, num_nodes + 1)
    best = int(every[np.argmin(found.variance(every) * cost.at(every))])
    full = second_moments(stats, num_nodes)
    keep = best_keep_ratio(full, found.signal)
    windows = _by_length(full, keep, num_nodes)
    by_score = inclusion(np.sqrt(np.maximum(stats.loss, 0.0)), keep) if keep < 1 else None
    tried = sorted({best, *np.geomspace(1, num_nodes, _GRID).round().astype(int).tolist()})
    pairs = []
    for count in tried:
        squares = second_moments(stats, count)
        draw = _by_length(squares, best_keep_ratio(squares, found.signal), count)
        pairs.append((_relative_variance(stats, found, draw) * float(cost.at(count)), draw))
    return {
        "nodes": Draw(best, 1.0, None),
        "windows": windows,
        "score": Draw(num_nodes, keep, by_score),
        "both": min(pairs, key=lambda pair: pair[0])[1],
    }


def _by_length(squares: Array, keep_ratio: float, num_drawn: int) -> Draw:
    probability = inclusion(np.sqrt(np.maximum(squares, 0.0)), keep_ratio) if keep_ratio < 1 else None
    return Draw(num_drawn, keep_ratio, probability)


def _relative_variance(stats: GradientStats, found: Moments, draw: Draw, counts: NDArray[np.int64] | None = None) -> float:
    plain = float(found.variance(draw.num_drawn)) / float(found.variance(stats.num_nodes))
    if draw.probability is None:
        return plain
    squares = second_moments(stats, draw.num_drawn)
    equal = importance_variance(squares, np.ones(len(squares)), found.signal, counts)
    return plain * float(importance_variance(squares, draw.probability, found.signal, counts) / equal)


def choose(stats: GradientStats, times: StepTimes, *, seed: int) -> Choices:
    """Find the best draws, and bootstrap their costs over windows and timing rounds together.

    Args:
        stats: of the gradients.
        times: of the steps.
        seed: of the bootstrap.

    Returns:
        The choices.

    Raises:
        ValueError: the gradients are not finite, or the same in every window.
    """
    cost = fit_cost(times.sizes, typical(times.seconds))
    found = moments(stats)
    draws = best_draws(stats, cost)
    # Two streams: how many rounds there was time for must not change which windows are drawn.
    of_windows, of_rounds = (np.random.default_rng([seed, stream]) for stream in (2, 3))
    size, rounds = len(stats.gram), len(times.seconds)
    samples: dict[str, list[float]] = {name: [] for name in draws}
    correlations = []
    for _ in range(_SAMPLES):
        counts = np.bincount(of_windows.integers(size, size=size), minlength=size)
        some = fit_cost(times.sizes, typical(times.seconds[of_rounds.integers(rounds, size=rounds)]))
        again = moments(stats, counts)
        correlations.append(again.r)
        for name, draw in draws.items():
            samples[name].append(_relative_variance(stats, again, draw, counts) * _relative_cost(some, draw, stats.num_nodes))
    choices = {
        name: Choice(
            num_drawn=draw.num_drawn,
            node_ratio=draw.num_drawn / stats.num_nodes,
            keep_ratio=draw.keep_ratio,
            variance=_relative_variance(stats, found, draw),
            step_cost=_relative_cost(cost, draw, stats.num_nodes),
            cost=_relative_variance(stats, found, draw) * _relative_cost(cost, draw, stats.num_nodes),
            interval=_interval(samples[name]),
        )
        for name, draw in draws.items()
    }
    return Choices(**choices, r_interval=_interval(correlations))


def _relative_cost(cost: StepCost, draw: Draw, num_nodes: int) -> float:
    return float(cost.at(draw.num_drawn) / cost.at(num_nodes))


def _interval(values: list[float]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
