"""What headroom found."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

import numpy as np

from stprune.headroom.choices import Choice
from stprune.headroom.cost import StepCost, StepTimes
from stprune.headroom.gradients import Array, Numbers
from stprune.headroom.report import fit_error, time_text
from stprune.headroom.variance import Moments

_WIDTH = 100


@dataclass(frozen=True)
class Headroom:
    """What pruning can save; `print` it for a table and sentences.

    Attributes:
        num_nodes: N.
        num_windows: windows whose gradients were measured.
        batch_size: windows of a timed step.
        gradient: variances of the gradient, whose `r` and `variance(m)` are those of eq. 14.
        r_interval: 95% bootstrap interval of r over windows.
        window_spread: (mean g)^2 / mean(g^2) of the windows' gradient lengths g: no choice of windows can bring the second
            moment of the gradient below this share.
        noise_share: share of the sampling variance in the squared length of a batch's gradient, in [0, 1]. Near 0 the
            variance hardly matters and pruning costs less than told here; near 1 it is all that matters.
        step_cost: seconds per window, c0 + c1 m + c2 m^2.
        times: the measured steps behind it.
        interacts: a node's forecast depends on which others are given.
        bias_share: squared length by which the mean gradient moves when only `nodes.num_drawn` nodes are given, as a share of
            its own; 0 unless nodes interact. No averaging over windows removes it.
        stopped_early: time ran out before all windows were measured, so a second call may measure more or fewer.
        nodes, windows, score, both: the best draws, see `Choice`: uniform nodes; windows by their true gradient lengths (a
            bound); windows by the root of their loss; nodes and windows by true gradient lengths (a bound).
        node_ratio, keep_ratio: what to train with: those of `nodes` and `windows` where it pays, else 1.
        verdict: sentences.
    """

    num_nodes: int
    num_windows: int
    batch_size: int
    gradient: Moments
    r_interval: tuple[float, float]
    window_spread: float
    noise_share: float
    step_cost: StepCost
    times: StepTimes
    interacts: bool
    bias_share: float
    stopped_early: bool
    nodes: Choice
    windows: Choice
    score: Choice
    both: Choice
    node_ratio: float
    keep_ratio: float
    verdict: tuple[str, ...]

    @property
    def r(self) -> float:
        """Intraclass correlation of the pair gradients inside a window."""
        return self.gradient.r

    @property
    def c0(self) -> float:
        """Seconds per window that do not depend on the nodes."""
        return self.step_cost.c0

    @property
    def c1(self) -> float:
        """Seconds per window and node."""
        return self.step_cost.c1

    def cost_at(self, num_drawn: Numbers) -> Array:
        """Cost at equal variance of drawing so many nodes per window, as a share of full training's.

        Args:
            num_drawn: m, in [1, N], numbers or an array of them.

        Returns:
            (r + (1 - r) / m) (c0 + c1 m + c2 m^2) over the same with m = N.
        """
        m = np.asarray(num_drawn, dtype=np.float64)
        full = self.gradient.variance(self.num_nodes) * self.step_cost.at(self.num_nodes)
        return self.gradient.variance(m) * self.step_cost.at(m) / full

    def __str__(self) -> str:
        return table(self)


def table(found: Headroom) -> str:
    """Everything, as text of lines up to 100 characters.

    Args:
        found: the result.

    Returns:
        Measured values, the table of draws, the verdict; no final newline.
    """
    low, high = found.r_interval
    cost = found.step_cost
    quadratic = f" + {time_text(cost.c2)} x m^2" if cost.c2 > 0 else ""
    error = fit_error(found.times, cost)
    facts = [
        ("windows measured", f"{found.num_windows}, of {found.num_nodes} nodes"),
        ("r, gradients of nodes in a window", f"{found.r:.3g} [{low:.3g}, {high:.3g}]"),
        (
            "cost of a window with m nodes",
            f"{time_text(cost.c0)} + {time_text(cost.c1)} x m{quadratic} (within {error:.0%} of the timed steps)",
        ),
        ("spread of the windows' gradients", f"(mean g)^2 / mean(g^2) = {found.window_spread:.2f}"),
        (f"noise in a batch of {found.batch_size}", f"{found.noise_share:.0%} of the gradient's squared length"),
    ]
    width = max(len(name) for name, _ in facts)
    lines = [f"{name:<{width}}  {value}" for name, value in facts]
    rows = [
        ("full training", None),
        ("drawn nodes", found.nodes),
        ("windows, by the loss", found.score),
        ("windows, best possible", found.windows),
        ("both, best possible", found.both),
    ]
    cells = [["draw", "nodes", "windows", "variance", "step cost", "epochs", "cost at equal variance"]]
    cells += [_row(name, choice, found.num_nodes) for name, choice in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    texts = [
        "  ".join(cell.ljust(w) if i in (0, 6) else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    texts.insert(1, "-" * (sum(widths) + 2 * len(widths) - 2))
    verdict = [textwrap.fill(text, _WIDTH, initial_indent="- ", subsequent_indent="  ") for text in found.verdict]
    return "\n".join([*lines, "", *(text.rstrip() for text in texts), "", *verdict])


def _row(name: str, choice: Choice | None, num_nodes: int) -> list[str]:
    if choice is None:
        return [name, str(num_nodes), "100%", "1.00", "1.00", "1.00", "1.00"]
    nodes = str(choice.num_drawn) if choice.num_drawn == num_nodes else f"{choice.num_drawn} ({choice.node_ratio:.0%})"
    low, high = choice.interval
    return [
        name,
        nodes,
        f"{choice.keep_ratio:.0%}",
        f"{choice.variance:.2f}",
        f"{choice.step_cost:.2f}",
        f"{choice.epochs:.2f}",
        f"{choice.cost:.2f} [{low:.2f}, {high:.2f}]",
    ]
