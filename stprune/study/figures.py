"""The report's pictures, as SVG text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from stprune.study.panels import INK, SOFT, both_log, curve, draw, legend, panels, plain_log, style_of
from stprune.study.results import Change
from stprune.study.summary import FULL, Cell, Study, group_name

_MODELS = {
    "stid": ("#0072B2", "o"),
    "tsmixer": ("#D55E00", "s"),
    "graph-wavenet": ("#009E73", "^"),
    "staeformer": ("#CC79A7", "D"),
}
_ABOVE: Any = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center", "fontsize": 7.5}
_BESIDE = 1.045  # factor between the places of points that would lie on top of each other


def costs(cells: Sequence[Cell]) -> str:
    """Test MAE against cost, one curve or point a family at its best batch and rate, one panel a series.

    Points of families that ran at one cost only stand side by side to the right of it. A MAE above 1.2 times the largest of
    full training is drawn there.

    Args:
        cells: of one model, each with families.

    Returns:
        SVG text.
    """

    def fill(axes: Any, cell: Cell) -> None:
        top = _highest(cell)
        alone = 0
        for family in cell.families:
            points = [(result.stat(lambda row: row.cost).mean, min(result.mae.mean, top)) for result in family.results]
            if len(points) == 1 and family.name != FULL:
                alone += 1
                points = [(points[0][0] * _BESIDE**alone, points[0][1])]
            curve(axes, family, points)
        both_log(axes, sorted({result.cost for family in cell.families for result in family.results}))

    return panels(cells, fill, x="cost in passes over all pairs", y="test MAE", height=2.7, above=1.4)


def courses(cells: Sequence[Cell]) -> str:
    """Validation MAE against cost while the families' best settings train, with the first seed, one panel a series.

    Args:
        cells: of one model, each with families. The dotted line is full training's best.

    Returns:
        SVG text.
    """

    def fill(axes: Any, cell: Cell) -> None:
        for family in cell.families:
            if family.result:
                curve(axes, family, [(p.cost, p.validation_mae) for p in family.result.runs[0].curve], markersize=4)
        if cell.full:
            axes.axhline(cell.full.runs[0].best_mae, color="#000000", linewidth=0.9, linestyle=":")
        both_log(axes)

    return panels(cells, fill, x="cost in passes over all pairs", y="validation MAE", height=2.9, above=1.4)


def _highest(cell: Cell) -> float:
    """Largest MAE that is drawn at its place: families that are far worse than full training would set the scale for all."""
    highest = [max(result.mae.mean for result in family.results) for family in cell.families]
    full = cell.find(FULL)
    return 1.2 * max(result.mae.mean for result in full.results) if full else max(highest)


def changes(cells: Sequence[Cell]) -> str:
    """Every family's test MAE against the best full training at equal cost, with 95% intervals, one panel a series.

    Args:
        cells: of one model, each with families.

    Returns:
        SVG text.
    """
    names = {f.name: f.label for cell in cells for f in cell.families if f.result and f.result.change}
    order = {name: place for place, name in enumerate(reversed(list(names)))}

    def fill(axes: Any, cell: Cell) -> None:
        axes.axvline(0, color=INK, linewidth=1)
        found = [(f, f.result.change) for f in cell.families if f.result and f.result.change]
        # Changes beyond the border are drawn there, so that they do not set the scale for all.
        border = _border([abs(change.mean) + (change.half_width or 0) for _, change in found])
        for family, change in found:
            _whisker(axes, change, order[family.name], border, style_of(family.name, family.kind))
        axes.set_xlim(-1.08 * border, 1.08 * border)
        axes.set_ylim(-0.7, len(order) - 0.3)
        axes.set_yticks(list(order.values()), [names[name] for name in order])
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.3g}%" if value else "0"))

    height = 0.9 + 0.21 * max(4, len(order))
    return panels(cells, fill, x="test MAE against full training", height=height, sharey=True)


def _border(ends: Sequence[float]) -> float:
    """Three times the third quartile, or the largest where it is less."""
    return max(1.0, min(max(ends), 3 * sorted(ends)[3 * len(ends) // 4])) if ends else 1.0


def _whisker(axes: Any, change: Change, place: int, border: float, style: dict[str, Any]) -> None:
    """A point with its interval."""
    width = change.half_width or 0.0
    low, shown, high = (max(-border, min(border, change.mean + side * width)) for side in (-1, 0, 1))
    if shown != change.mean:
        axes.annotate(f"{change.mean:+.0f}%", (shown, place), **_ABOVE)
    # A pale point is not told apart from 0 by its seeds.
    alpha = 1.0 if change.outside else 0.4
    axes.plot([low, high], [place, place], color=style["color"], linewidth=1.6, alpha=alpha)
    axes.plot(shown, place, **{**style, "linestyle": "none", "markersize": 6, "alpha": alpha})


class Gain(NamedTuple):
    """What drawing nodes gained in a cell."""

    cell: Cell
    lower: float  # test MAE in %
    width: float | None
    times: float  # less cost until full training's best; NaN where it was never reached


def found_gains(study: Study) -> list[Gain]:
    """Of the cells in which drawn nodes can be held against full training, by their number of nodes."""
    found = []
    for cell in study.cells:
        family = cell.drawing
        change = family.result.change if family and family.result else None
        if family and change:
            times = 1 / family.reach.cost if family.reach else math.nan
            found.append(Gain(cell, -change.mean, change.half_width, times))
    return sorted(found, key=lambda gain: gain.cell.num_nodes)


def gains(found: Sequence[Gain]) -> str:
    """Gain of drawing nodes over the best full training against the number of nodes: in test MAE, and in cost.

    Args:
        found: see `found_gains`; at least one.

    Returns:
        SVG text.
    """

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharex=True)  # where nothing was reached the right one has no points of its own
        for place, group in enumerate(dict.fromkeys(gain.cell.group for gain in found)):
            mine = [gain for gain in found if gain.cell.group == group]
            color, marker = _MODELS.get(group[0], ("#7a7a7a", "o"))
            beside = _BESIDE**place
            nodes = [gain.cell.num_nodes * beside for gain in mine]
            style: Any = {"color": color, "marker": marker, "markersize": 6, "linestyle": "none", "alpha": 0.9}
            left.errorbar(nodes, [g.lower for g in mine], [g.width or 0 for g in mine], label=group_name(group), **style)
            right.plot(nodes, [g.times for g in mine], **style)
            # Series that were generated alike but for the number of nodes are joined by a line.
            for name in dict.fromkeys(gain.cell.series for gain in mine):
                alike = sorted((gain for gain in mine if gain.cell.series == name), key=lambda gain: gain.cell.num_nodes)
                for axes, values in ((left, [g.lower for g in alike]), (right, [g.times for g in alike])):
                    axes.plot([g.cell.num_nodes * beside for g in alike], values, color=color, linewidth=1.3, alpha=0.7)
        for axes, level in ((left, 0), (right, 1)):
            axes.axhline(level, color=INK, linewidth=1)
            axes.set_xscale("log")
            axes.margins(x=0.1, y=0.2)
            axes.set_xlabel("nodes of the series")
        right.set_yscale("log")
        for axis in (left.xaxis, right.xaxis, right.yaxis):
            plain_log(axis)
        left.set_ylabel("test MAE at equal cost, lower by %")
        right.set_ylabel("cost to full training's best, times less")
        for axes in (left, right):
            for x, name in _name_places(found, axes.get_xlim()):
                axes.text(x, 1.02, name, transform=axes.get_xaxis_transform(), color=SOFT, fontsize=8, rotation=35)
        legend(figure, [left], columns=2)

    return draw(paint, 4.8)


def _name_places(found: Sequence[Gain], ends: tuple[float, float]) -> list[tuple[float, str]]:
    """Where the names of series stand: at their (largest) number of nodes, and so far apart that none covers another."""
    largest: dict[str, int] = {}
    for gain in found:
        largest[gain.cell.series] = max(largest.get(gain.cell.series, 0), gain.cell.num_nodes)
    places: list[tuple[float, str]] = []
    gap = (ends[1] / ends[0]) ** 0.06
    for name, num_nodes in sorted(largest.items(), key=lambda item: item[1]):
        places.append((max(num_nodes, places[-1][0] * gap) if places else num_nodes, name))
    return places


def tuning(cells: Sequence[Cell]) -> str:
    """Validation MAE against pairs per step at the best rate of each, full training and drawn nodes, one panel a series.

    Args:
        cells: of one model, each with families.

    Returns:
        SVG text.
    """

    def fill(axes: Any, cell: Cell) -> None:
        for family in (cell.find(FULL), cell.drawing):
            if family and (points := tuning_points(cell, family.name)):
                curve(axes, family, points)
        both_log(axes)

    return panels(cells, fill, x="(window, node) pairs per step", y="validation MAE", height=2.5, above=0.8)


def tuning_points(cell: Cell, name: str) -> list[tuple[float, float]]:
    """Pairs per step, and the lowest validation MAE of the first seed with so many, at the cell's budget."""
    rows = [row for row in cell.rows if row.spec.family == name and row.spec.cost == cell.cost and not row.diverged]
    first = min((row.spec.seed for row in rows), default=0)
    lowest: dict[float, float] = {}
    for row in rows:
        if row.spec.seed == first:
            pairs = float(row.spec.batch_size * (row.spec.num_drawn or row.num_nodes))
            lowest[pairs] = min(lowest.get(pairs, math.inf), row.best_mae)
    return sorted(lowest.items())
