"""The time that training takes, by the batch and the nodes a window, and the best of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stprune.headroom.cost import StepCost, StepTimes, fit_cost, typical
from stprune.headroom.gradients import Array, GradientStats, Numbers
from stprune.headroom.variance import Moments, moments

PAYS_BELOW = 0.95
"""Saving less than this is within what a run differs by from chance: it does not count as paying."""
ENOUGH_STEPS = 4000
"""Steps without noise behind which more of them hardly lower the validation error (see `share_of_run`)."""
# Of choices this near to the best, the one with most pairs a step: fewer, larger steps.
_FLAT = 1.02
_SAMPLES = 200
_GRID = 32

Candidate = tuple[int, int]
"""Windows a step, nodes a window."""


@dataclass(frozen=True)
class Law:
    """Time of training to a given loss, up to a common factor: the time of a step times the steps needed.

    A step along a gradient of variance v and squared mean G^2, at its best learning rate, gets as far as
    (1 + v / G^2)^-gamma steps without noise, so that as many more are needed.

    Attributes:
        gradient: variances and signal.
        cost: of a step.
        gamma: 1 for SGD; 1/2 for Adam and others that divide the gradient by its running length, whose best learning rate
            falls with the root of the noise.

    Source:
        McCandlish et al., An Empirical Model of Large-Batch Training (2018): eq. 2.7, and that the exponent is 1 for SGD and
        between 0.5 and 1 for Adam; Malladi et al., On the SDEs and Scaling Rules for Adaptive Gradient Algorithms (NeurIPS
        2022): the root. Eq. 15; ours is the variance of two-stage draws (eq. 14) in place of that of independent samples.
    """

    gradient: Moments
    cost: StepCost
    gamma: float

    def steps(self, batch_size: Numbers, num_drawn: Numbers) -> Array:
        """Steps needed, by those needed without noise: (1 + v / G^2)^gamma."""
        return np.asarray((1.0 + self.gradient.noise(batch_size, num_drawn)) ** self.gamma)

    def time(self, batch_size: Numbers, num_drawn: Numbers) -> Array:
        """Seconds that take training as far as one step without noise."""
        return self.cost.at(batch_size, num_drawn) * self.steps(batch_size, num_drawn)

    def best(self, candidates: Sequence[Candidate]) -> Candidate:
        """The candidate of the least time; of those within 2% of it, the one with most pairs a step."""
        grid = np.array(candidates, dtype=np.int64)
        time = self.time(grid[:, 0], grid[:, 1])
        near = grid[time <= _FLAT * time.min()]
        windows, nodes = near[np.argmax(near[:, 0] * near[:, 1])].tolist()
        return windows, nodes


def share_of_run(ratio: float, progress: float) -> float:
    """When a run gets to where full training ends, if both have the same budget and learning-rate cosine.

    A run that needs `ratio` of full training's time gets there after the share tau of the budget with
    `ratio / tau + progress rate(tau) = 1`, where `rate` is the cosine and `progress` the square of (full training's steps, as
    steps without noise) / `ENOUGH_STEPS`. A rule of thumb between two ends: short training (progress near 0) gives
    tau = ratio; in long training all that is left to gain comes from the end of the cosine, and tau goes to 1.

    Args:
        ratio: above 0, at most 1.
        progress: at least 0.

    Returns:
        tau, in [ratio, 1].

    Example:
        >>> share_of_run(0.2, 0.0), share_of_run(1.0, 3.0), round(share_of_run(0.23, 0.54), 2)
        (0.2, 1.0, 0.37)
    """
    if progress == 0.0 or ratio >= 1.0:
        return min(ratio, 1.0)

    def rate(share: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * share))

    low, high = ratio, 1.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if ratio / middle + progress * rate(middle) > 1.0 else (low, middle)
    return high


@dataclass(frozen=True)
class Choice:
    """The best steps, and the time they take.

    Attributes:
        full: windows a step of full training, at its best.
        drawn: windows a step and nodes a window, at their best.
        ratio: time of `drawn` by that of `full`, for equal loss.
        interval: 95% bootstrap interval of `ratio`, over windows and timing rounds.
        smaller_batch: time of `full` by that of the batch in use, all nodes in both.
        r_interval: 95% bootstrap interval of r, over windows.
        times: of the steps of `full` and of `drawn`, in this order, of which `ratio` is made; None where the
            fitted cost is.
    """

    full: int
    drawn: Candidate
    ratio: float
    interval: tuple[float, float]
    smaller_batch: float
    r_interval: tuple[float, float]
    times: StepTimes | None = None


def choose(
    stats: GradientStats,
    times: StepTimes,
    *,
    batch_size: int,
    gamma: float,
    seed: int,
    budget: int | None = None,
    full: Sequence[int] | None = None,
    drawn: Sequence[Candidate] | None = None,
    time_again: Callable[[NDArray[np.int64]], StepTimes] | None = None,
) -> Choice:
    """Find the best steps of full training and of node draws; bootstrap over windows and timing rounds together.

    Args:
        stats: of the gradients.
        times: of the steps.
        batch_size: windows a step in use.
        gamma: of the law.
        seed: of the bootstrap.
        budget: windows that full training is to train on, repeats counted; None: so few that more would always help.
        full: batches of full training to choose from; None for powers of two up to the batch in use, and itself.
        drawn: (windows, nodes) to choose from; None for some 30 numbers of nodes, each with powers of two of windows up to as
            many pairs as the batch in use has.
        time_again: times the steps of [2, 2] windows and nodes against each other: `ratio` is made of their times, as a cost
            fitted to steps of very different sizes is off by up to a half for single ones. None for the fitted cost, which
            also serves where `drawn` has more windows than the batch in use.

    Returns:
        The choice.

    Raises:
        ValueError: the gradients are not finite, or the same in every window.
    """
    num_nodes = stats.num_nodes
    law = Law(moments(stats), fit_cost(times), gamma)
    best_full = law.best([(windows, num_nodes) for windows in full or powers(batch_size)])
    best_drawn = law.best(drawn or [best_full, *grid_of(batch_size, num_nodes)])

    pair: StepTimes | None = None
    if time_again is not None and best_drawn != best_full and best_drawn[0] <= batch_size:
        pair = time_again(np.array([best_full, best_drawn], dtype=np.int64))

    def ratio_by(law: Law, pair: StepTimes | None) -> float:
        seconds = [float(law.cost.at(*each)) for each in (best_full, best_drawn)] if pair is None else typical(pair.seconds)
        ratio = float(seconds[1] / seconds[0] * law.steps(*best_drawn) / law.steps(*best_full))
        progress = 0.0 if budget is None else (budget / best_full[0] / float(law.steps(*best_full)) / ENOUGH_STEPS) ** 2
        return share_of_run(ratio, progress) if ratio < 1.0 else ratio

    # Two streams: how many rounds there was time for must not change which windows are drawn.
    of_windows, of_rounds = (np.random.default_rng([seed, stream]) for stream in (2, 3))
    size = len(stats.gram)
    ratios, correlations = [], []
    for _ in range(_SAMPLES):
        again = moments(stats, np.bincount(of_windows.integers(size, size=size), minlength=size))
        if pair is None:
            ratios.append(ratio_by(Law(again, fit_cost(_resampled(times, of_rounds)), gamma), None))
        else:
            ratios.append(ratio_by(Law(again, law.cost, gamma), _resampled(pair, of_rounds)))
        correlations.append(again.r)
    return Choice(
        full=best_full[0],
        drawn=best_drawn,
        ratio=ratio_by(law, pair),
        interval=_interval(ratios),
        smaller_batch=float(law.time(*best_full) / law.time(batch_size, num_nodes)),
        r_interval=_interval(correlations),
        times=pair,
    )


def _resampled(times: StepTimes, rng: np.random.Generator) -> StepTimes:
    rounds = len(times.seconds)
    return StepTimes(times.sizes, times.seconds[rng.integers(rounds, size=rounds)])


def powers(most: int) -> list[int]:
    """Powers of two up to a number, and the number.

    Example:
        >>> powers(6)
        [1, 2, 4, 6]
    """
    return sorted({2**power for power in range(most.bit_length())} | {most})


def grid_of(batch_size: int, num_nodes: int) -> list[Candidate]:
    """Windows a step and nodes a window that are worth trying.

    No more pairs than the batch in use, which fits in memory, and no more than 16 times its windows.
    """
    numbers = sorted(set(np.geomspace(1, num_nodes, _GRID).round().astype(int).tolist()))
    return [(windows, nodes) for nodes in numbers for windows in powers(batch_size * min(16, num_nodes // nodes))]


def _interval(values: list[float]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
