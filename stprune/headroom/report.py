"""Headroom in words."""

from __future__ import annotations

from stprune.headroom.law import PAYS_BELOW, Choice

# A squared length: a mean gradient that is off by a tenth of its length.
_SMALL_BIAS = 0.01
_LARGE_ERROR = 0.15
OFF_BY = "1.6"
"""Factor by which `time_ratio` was off beside the runs of a study, root mean square of the logarithm (benchmarks/README.md)."""


def sentences(
    choice: Choice,
    *,
    batch_size: int,
    num_nodes: int,
    window_bound: float,
    bias_share: float | None,
    stopped_early: bool,
    error: float,
    budget: int | None,
) -> list[str]:
    """What the numbers say, plainly.

    Args:
        choice: the best steps.
        batch_size: windows a step in use.
        num_nodes: N.
        window_bound: least time that any choice of windows leaves, by that of full training at its best batch.
        bias_share: of the mean gradient at the best number of nodes; None unless nodes interact in the model.
        stopped_early: not all windows were measured.
        error: of the cost's fit, see `fit_error`.
        budget: windows that full training is to train on, or None.

    Returns:
        One text per finding: the smaller batch, nodes, windows, then what to bear in mind.
    """
    found = [_about_batch(choice, batch_size), _about_nodes(choice, num_nodes)]
    if window_bound > PAYS_BELOW:
        found.append(f"Choosing windows cannot pay: by their true gradient lengths it would still take {window_bound:.0%}.")
    else:
        found.append(
            f"Choosing windows by their true gradient lengths would take {window_bound:.0%} of that time: a bound, which no "
            "score is known to reach."
        )
    if budget is None:
        found.append(
            "The share holds as long as more training helps full training. Where the run is long enough that it does not, "
            "drawing nodes gains less, in the end nothing: give budget= to take that into account."
        )
    if bias_share is not None:
        size = "little" if bias_share < _SMALL_BIAS else "much: draw more nodes than this says"
        found.append(
            f"The model's nodes interact: a forecast from {choice.drawn[1]} drawn nodes is another forecast, and its mean "
            f"gradient is off by {bias_share:.1%} of the full one's squared length, which no number of steps averages out "
            f"({size}). Check it with a short run."
        )
    found.append(
        f"Beside the runs of a study, such shares of time were off by a factor of {OFF_BY} (root mean square), whatever their "
        "interval, and in some series node draws never got as far: make one short run of each before you rely on it."
    )
    if error > _LARGE_ERROR:
        found.append(
            f"The timed steps lie up to {error:.0%} off the cost fitted to them, as on a busy machine: times are rough, "
            "variances are not. Measure again on a quiet one."
        )
    if stopped_early:
        found.append("Time ran out before all windows were measured: the intervals are wider than they could be.")
    found.append("Each batch needs its own learning rate. The answer changes while the model learns.")
    return found


def _about_batch(choice: Choice, batch_size: int) -> str:
    if choice.full == batch_size:
        alone = f"A smaller batch alone gains nothing: {batch_size} windows a step are best for full training"
    else:
        alone = (
            f"A smaller batch alone, {choice.full} instead of {batch_size} windows a step with all their nodes, takes "
            f"{choice.smaller_batch:.0%} of the time"
        )
    if pays(choice):
        return f"{alone}; drawing nodes takes {_percent(choice)} of what that takes."
    return f"{alone}; drawing nodes does no better ({_percent(choice)} of what that takes)."


def pays(choice: Choice) -> bool:
    """Whether drawing nodes takes at most 0.95 of the best full training's time, and the interval lies below 1."""
    return choice.ratio <= PAYS_BELOW and choice.interval[1] < 1.0


def _about_nodes(choice: Choice, num_nodes: int) -> str:
    windows, nodes = choice.drawn
    if pays(choice):
        return f"Draw {nodes} of {num_nodes} nodes (node_ratio={nodes / num_nodes:.3g}) of {windows} windows a step."
    if choice.ratio <= PAYS_BELOW:
        return "That drawing nodes pays cannot be shown here: more windows or seconds, or a quieter machine, would tell."
    return f"Train on all {num_nodes} nodes, {choice.full} windows a step."


def _percent(choice: Choice) -> str:
    return f"{choice.ratio:.0%} [{choice.interval[0]:.0%}, {choice.interval[1]:.0%}]"


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
