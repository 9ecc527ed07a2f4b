"""Headroom in words and as a table for the terminal."""

from __future__ import annotations

import numpy as np

from stprune.headroom.choices import PAYS_BELOW, Choice, Choices
from stprune.headroom.cost import StepCost, StepTimes, typical
from stprune.headroom.variance import Moments

# The curve of costs is flat around its lowest point: nodes within this of it are as good.
_FLAT = 1.05
# Below this, even twice the variance lengthens a step's gradient by little.
_LITTLE_NOISE = 0.2
# A squared length: a mean gradient that is off by a tenth of its length.
_SMALL_BIAS = 0.01
_LARGE_ERROR = 0.15


def sentences(
    choices: Choices,
    gradient: Moments,
    cost: StepCost,
    *,
    noise_share: float,
    bias_share: float | None,
    stopped_early: bool,
    error: float,
) -> list[str]:
    """What the numbers say, plainly.

    Args:
        choices: the best draws.
        gradient: variances.
        cost: of a step.
        noise_share: of a batch's gradient.
        bias_share: of the mean gradient at the best number of nodes; None unless nodes interact in the model.
        stopped_early: not all windows were measured.
        error: of the cost's fit, see `fit_error`.

    Returns:
        One text per finding: nodes, windows, then what to bear in mind.
    """
    found = [_about_nodes(choices.nodes, gradient, cost), _about_windows(choices.windows, choices.score)]
    if noise_share < _LITTLE_NOISE:
        found.append(
            f"Only {noise_share:.0%} of a batch's squared gradient is noise now: at this stage of training variance hardly "
            "matters, and drawing costs fewer extra epochs than equal variance asks for."
        )
    if bias_share is not None:
        size = "little" if bias_share < _SMALL_BIAS else "much: draw more nodes than the table says"
        found.append(
            f"The model's nodes interact: a forecast from {choices.nodes.num_drawn} drawn nodes is another forecast, and its "
            f"mean gradient is off by {bias_share:.1%} of the full one's squared length, which no number of epochs averages "
            f"out ({size}). Check it with a short run."
        )
    if error > _LARGE_ERROR:
        found.append(
            f"The timed steps lie up to {error:.0%} off the cost fitted to them, as on a busy machine: the costs are rough, "
            "the variances are not. Measure again on a quiet one."
        )
    if stopped_early:
        found.append("Time ran out before all windows were measured: the intervals are wider than they could be.")
    found.append("Equal gradient variance is not equal accuracy, and the answer changes while the model learns.")
    return found


def _about_nodes(best: Choice, gradient: Moments, cost: StepCost) -> str:
    total = gradient.num_nodes
    if best.pays:
        every = np.arange(1, total + 1)
        curve = gradient.variance(every) * cost.at(every)
        flat = every[curve <= _FLAT * curve.min()]
        return (
            f"Drawing {best.num_drawn} of {total} nodes pays (node_ratio={best.node_ratio:.3g}): full training's gradient "
            f"variance at {_percent(best)} of its cost. A step costs {best.step_cost:.0%} and its gradient varies "
            f"{best.variance:.2f} times as much, so equal variance takes as many more epochs. Any number from {flat[0]} to "
            f"{flat[-1]} nodes costs about the same."
        )
    if best.cost <= PAYS_BELOW:
        return _undecided("nodes", best)
    half = max(1, total // 2)
    step = float(cost.at(half) / cost.at(total))
    if total == 1:
        reason = "there is only one."
    elif step > 0.9:
        reason = f"a step with half the nodes still costs {step:.0%} of a full one."
    else:
        reason = f"the nodes of a window hardly repeat each other (r = {gradient.r:.3g}), so each is worth what it costs."
    return (
        f"Pruning nodes cannot pay here. The best, {best.num_drawn} of {total}, would cost {_percent(best)} of full training "
        f"at equal variance: {reason}"
    )


def _about_windows(best: Choice, score: Choice) -> str:
    if best.cost > PAYS_BELOW:
        return (
            "Pruning windows cannot pay here: even if every window's gradient length were known, choosing by it would cost "
            f"{_percent(best)} of full training at equal variance."
        )
    if score.pays:
        return (
            f"Pruning windows pays (keep_ratio={best.keep_ratio:.2f}): choosing by the loss gives full training's gradient "
            f"variance at {_percent(score)} of its cost; known gradient lengths would allow {_percent(best)}."
        )
    if score.cost <= PAYS_BELOW:
        return _undecided("windows", score)
    return (
        f"Pruning windows cannot pay here by the loss: choosing by it would cost {_percent(score)} of full training at equal "
        f"variance. Known gradient lengths would allow {_percent(best)}, which no score reaches."
    )


def _undecided(what: str, choice: Choice) -> str:
    return (
        f"Pruning {what} cannot be shown to pay here: {_percent(choice)} of full training's cost at equal variance, an "
        "interval that includes 100%. More windows, more seconds or a quieter machine would narrow it."
    )


def _percent(choice: Choice) -> str:
    return f"{choice.cost:.0%} [{choice.interval[0]:.0%}, {choice.interval[1]:.0%}]"


def time_text(seconds: float) -> str:
    """A duration with three digits and a fitting unit.

    Example:
        >>> time_text(0.00123), time_text(4.2e-6), time_text(0.0)
        ('1.23 ms', '4.2 us', '0 s')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def fit_error(times: StepTimes, cost: StepCost) -> float:
    """Largest relative distance of the fitted cost from the times of the measured steps."""
    return float(np.abs(cost.at(times.sizes) / typical(times.seconds) - 1).max())
