"""What headroom found."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from stprune.headroom.cost import StepTimes, typical
from stprune.headroom.law import Candidate, Law, grid_of
from stprune.headroom.report import time_text

_WIDTH = 100


@dataclass(frozen=True)
class Headroom:
    """What pruning can save against full training at its best batch; `print` it for sentences and a table.

    Attributes:
        batch_size: windows a step to train with: those of `best_drawn` where drawing pays, else `best_full_batch`.
        num_drawn: nodes to draw in each of them; all where drawing does not pay.
        best_full_batch: windows a step that are best for all nodes, at most the batch in use.
        best_drawn: windows a step and nodes a window of the least time, whether or not that pays.
        time_ratio: predicted time of `best_drawn` to the loss that full training at `best_full_batch` reaches, by the time of
            that.
        interval: 95% bootstrap interval of `time_ratio`, over windows and timing rounds; the error of eq. 15 is larger, see
            `stprune.headroom`.
        smaller_batch: time of full training at `best_full_batch` by that at `batch_in_use`, to equal loss.
        window_bound: the same of the best choice of windows that is possible (by their true gradient lengths) by that of
            `best_full_batch`.
        batch_in_use: windows of the loader's batches.
        num_nodes: N.
        num_windows: windows whose gradients were measured.
        law: gradient variance and cost of a step, of which all this follows.
        r_interval: 95% bootstrap interval of `r` over windows.
        times: the measured steps.
        best_times: times of the steps of `best_full_batch` and of `best_drawn`, timed against each other, of which `time_ratio`
            is made; None where both are the same, or `best_drawn` has more windows than the batch in use, and the fitted cost
            serves.
        interacts: a node's forecast depends on which others are given.
        bias_share: squared length by which the mean gradient moves when only `best_drawn` nodes are given, as a share of its
            own; 0 unless nodes interact. No averaging over windows removes it.
        stopped_early: time ran out before all windows were measured, so a second call may measure more or fewer.
        verdict: sentences; the first says what a smaller batch does.
    """

    batch_size: int
    num_drawn: int
    best_full_batch: int
    best_drawn: Candidate
    time_ratio: float
    interval: tuple[float, float]
    smaller_batch: float
    window_bound: float
    batch_in_use: int
    num_nodes: int
    num_windows: int
    law: Law
    r_interval: tuple[float, float]
    times: StepTimes
    best_times: StepTimes | None
    interacts: bool
    bias_share: float
    stopped_early: bool
    verdict: tuple[str, ...]

    @property
    def node_ratio(self) -> float:
        """`num_drawn / num_nodes`: the sampler's argument."""
        return self.num_drawn / self.num_nodes

    @property
    def r(self) -> float:
        """Intraclass correlation of the pair gradients inside a window."""
        return self.law.gradient.r

    def nodes_for(self, batch_size: int) -> int:
        """Nodes a window of the least time where a step has so many windows, as a loader's batch is given."""
        some = [(batch_size, nodes) for _, nodes in grid_of(1, self.num_nodes)]
        return self.law.best(some)[1]

    def __str__(self) -> str:
        return table(self)


def table(found: Headroom) -> str:
    """Everything, as text of lines up to 110 characters.

    Args:
        found: the result.

    Returns:
        The verdict, measured values, the table of steps; no final newline.
    """
    low, high = found.r_interval
    cost = found.law.cost
    quadratic = f" + {time_text(cost.c2)} x m^2" if cost.c2 > 0 else ""
    facts = [
        ("windows measured", f"{found.num_windows}, of {found.num_nodes} nodes"),
        ("r, gradients of nodes in a window", f"{found.r:.3g} [{low:.3g}, {high:.3g}]"),
        (
            "step of B windows with m nodes",
            f"{time_text(cost.step)} + B ({time_text(cost.c0)} + {time_text(cost.c1)} x m{quadratic})",
        ),
    ]
    width = max(len(name) for name, _ in facts)
    full = found.num_nodes
    rows = [
        ("batch in use", found.batch_in_use, full),
        ("best full training", found.best_full_batch, full),
        ("nodes drawn", *found.best_drawn),
    ]
    seconds = [float(cost.at(windows, nodes)) for _, windows, nodes in rows]
    if found.best_times is not None:
        seconds[1:] = typical(found.best_times.seconds).tolist()
    to_loss = [time * float(found.law.steps(*step)) for time, (_, *step) in zip(seconds, rows, strict=True)]
    cells = [["step", "windows", "nodes", "noise / signal", "time of a step", "time to equal loss"]]
    cells += [
        [
            name,
            str(windows),
            str(nodes),
            f"{float(found.law.gradient.noise(windows, nodes)):.3g}",
            time_text(time),
            f"{whole / to_loss[1]:.2f}",
        ]
        for (name, windows, nodes), time, whole in zip(rows, seconds, to_loss, strict=True)
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    texts = [
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    texts.insert(1, "-" * (sum(widths) + 2 * len(widths) - 2))
    verdict = [textwrap.fill(text, _WIDTH, initial_indent="- ", subsequent_indent="  ") for text in found.verdict]
    return "\n".join([*verdict, "", *(f"{name:<{width}}  {value}" for name, value in facts), "", *texts])
