"""The report's pictures, as SVG text."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from stprune.study.results import Change
from stprune.study.summary import FULL, UNIFORM, Cell, Family, Study, group_name

# Okabe and Ito's colours, told apart with every kind of colour vision; line style and marker say the same once more.
# Markers of families that drop windows are hollow.
_STYLES: dict[str, dict[str, Any]] = {
    "full": {"color": "#000000", "linestyle": "-", "marker": "o", "linewidth": 2.4},
    "rs2": {"color": "#CC79A7", "linestyle": "-.", "marker": "v"},
    "soft-random": {"color": "#56B4E9", "linestyle": "-.", "marker": "s"},
    "infobatch": {"color": "#E69F00", "linestyle": "-.", "marker": "^"},
    "seta": {"color": "#CC79A7", "linestyle": ":", "marker": "D"},
    "st-prune": {"color": "#0072B2", "linestyle": "--", "marker": "o"},
    "even-windows": {"color": "#7a7a7a", "linestyle": "--", "marker": "P"},
    "nodes-uniform": {"color": "#D55E00", "linestyle": "-", "marker": "o", "linewidth": 2.4},
    "nodes-batch": {"color": "#E69F00", "linestyle": "-", "marker": "<"},
    "nodes-partition": {"color": "#009E73", "linestyle": "--", "marker": ">"},
    "nodes-frequency": {"color": "#8C6BB1", "linestyle": ":", "marker": "h"},
    "nodes-stratified": {"color": "#009E73", "linestyle": "-", "marker": "s"},
    "nodes-priority": {"color": "#117733", "linestyle": "--", "marker": "D"},
    "nodes-cluster": {"color": "#A6761D", "linestyle": "-.", "marker": "p"},
    "nodes-roots": {"color": "#666633", "linestyle": ":", "marker": "*"},
    "nodes-growing": {"color": "#CC79A7", "linestyle": "-", "marker": "X"},
    "pairs": {"color": "#0072B2", "linestyle": "-", "marker": "d"},
    "windows-and-nodes": {"color": "#56B4E9", "linestyle": "-", "marker": "v"},
}
_OTHER: dict[str, Any] = {"color": "#7a7a7a", "linestyle": ":", "marker": "."}
_MODELS = {
    "stid": ("#0072B2", "o"),
    "tsmixer": ("#D55E00", "s"),
    "graph-wavenet": ("#009E73", "^"),
    "staeformer": ("#CC79A7", "D"),
}
_INK, _FAINT, _SOFT = "#1f2933", "#d9dee3", "#7b8794"
_SETTINGS: Any = {
    "svg.fonttype": "path",
    "svg.hashsalt": "stprune",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": "#8a949e",
    "axes.labelcolor": _INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
}
_ABOVE: Any = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center", "fontsize": 7.5}
_WIDTH = 9.6  # inches; the page shows it at about this size on a desk
_COLUMNS = 3
_BESIDE = 1.045  # factor between the places of points that would lie on top of each other


def _draw(paint: Callable[[Figure], None], height: float) -> str:
    """Run a painting function on a fresh figure with the report's style and return SVG text."""
    with rc_context(_SETTINGS):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        paint(figure)
        buffer = io.StringIO()
        # Without a date the same numbers give the same picture.
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _style(name: str, kind: str) -> dict[str, Any]:
    style = {**_OTHER, **_STYLES.get(name, {})}
    return {**style, "markerfacecolor": "white", "markeredgewidth": 1.3} if kind == "windows" else style


def _panels(
    cells: Sequence[Cell],
    fill: Callable[[Any, Cell], None],
    *,
    x: str,
    y: str = "",
    height: float,
    above: float = 0.0,
    sharey: bool = False,
) -> str:
    """SVG text of one titled panel a cell, under one legend where families are named.

    Args:
        cells: of the panels.
        fill: draws a cell into its axes.
        x: name of the lowest panels' axes; y: of the first panels' of each line.
        height: of a line of panels, in inches; above: beside all lines.
        sharey: all panels have one axis of y.
    """
    lines = math.ceil(len(cells) / _COLUMNS)

    def paint(figure: Figure) -> None:
        grid = list(figure.subplots(lines, min(_COLUMNS, len(cells)), squeeze=False, sharey=sharey).flat)
        for axes in grid[len(cells) :]:
            axes.remove()
        for axes, cell in zip(grid, cells, strict=False):
            axes.set_title(f"{cell.series}\n{cell.num_nodes:,} nodes", fontsize=9)
            fill(axes, cell)
        for axes in grid[: len(cells)][-_COLUMNS:]:
            axes.set_xlabel(x)
        for axes in grid[: len(cells) : _COLUMNS]:
            axes.set_ylabel(y)
        _legend(figure, grid[: len(cells)])

    return _draw(paint, above + height * lines)


def _legend(figure: Figure, axes: Sequence[Any], columns: int = 4) -> None:
    """One legend above all panels, each label once."""
    found = {text: handle for one in axes for handle, text in zip(*one.get_legend_handles_labels(), strict=True)}
    layout: Any = {"loc": "outside upper left", "ncols": columns, "fontsize": 8.8, "handlelength": 3, "columnspacing": 1.5}
    if found:
        figure.legend(list(found.values()), list(found), **layout)


def _curve(axes: Any, family: Family, points: Sequence[tuple[float, float]], **style: Any) -> None:
    """A family's points, joined; what is compared first lies above the others."""
    depth = 3 + (family.name == UNIFORM) + 2 * (family.name == FULL)
    style = {**_style(family.name, family.kind), **style}
    axes.plot(*zip(*points, strict=True), label=family.label, zorder=depth, **style)


def _both_log(axes: Any, ticks: Sequence[float] = ()) -> None:
    """Both axes logarithmic, x with these ticks if any are given."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(x=0.08, y=0.12)
    if ticks:
        axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        axes.set_xticks([], minor=True)
    else:
        _plain_log(axes.xaxis)
    _plain_log(axes.yaxis)


def _plain_log(axis: Any) -> None:
    """Logarithmic ticks with plain numbers, also between the powers of ten where they are few."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    low, high = axis.get_view_interval()
    if high / low < 100:
        form = ".5g" if high / low < 1.05 else ".3g"  # neighbouring ticks have texts of their own
        axis.set_minor_formatter(
            FuncFormatter(
                lambda value, _: (f"{value:,.0f}" if value >= 1000 else f"{value:{form}}") if _few(value, low, high) else ""
            )
        )


def _few(value: float, low: float, high: float) -> bool:
    first = f"{value:e}"[0]
    return high / low < 2.5 or first in ("25" if high / low > 8 else "2357")


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
            _curve(axes, family, points)
        _both_log(axes, sorted({result.cost for family in cell.families for result in family.results}))

    return _panels(cells, fill, x="cost in passes over all pairs", y="test MAE", height=2.7, above=1.4)


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
                _curve(axes, family, [(p.cost, p.validation_mae) for p in family.result.runs[0].curve], markersize=4)
        if cell.full:
            axes.axhline(cell.full.runs[0].best_mae, color="#000000", linewidth=0.9, linestyle=":")
        _both_log(axes)

    return _panels(cells, fill, x="cost in passes over all pairs", y="validation MAE", height=2.9, above=1.4)


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
        axes.axvline(0, color=_INK, linewidth=1)
        found = [(f, f.result.change) for f in cell.families if f.result and f.result.change]
        # Changes beyond the border are drawn there, so that they do not set the scale for all.
        border = _border([abs(change.mean) + (change.half_width or 0) for _, change in found])
        for family, change in found:
            _whisker(axes, change, order[family.name], border, _style(family.name, family.kind))
        axes.set_xlim(-1.08 * border, 1.08 * border)
        axes.set_ylim(-0.7, len(order) - 0.3)
        axes.set_yticks(list(order.values()), [names[name] for name in order])
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.3g}%" if value else "0"))

    height = 0.9 + 0.21 * max(4, len(order))
    return _panels(cells, fill, x="test MAE against full training", height=height, sharey=True)


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
            axes.axhline(level, color=_INK, linewidth=1)
            axes.set_xscale("log")
            axes.margins(x=0.1, y=0.2)
            axes.set_xlabel("nodes of the series")
        right.set_yscale("log")
        for axis in (left.xaxis, right.xaxis, right.yaxis):
            _plain_log(axis)
        left.set_ylabel("test MAE at equal cost, lower by %")
        right.set_ylabel("cost to full training's best, times less")
        for axes in (left, right):
            for x, name in _name_places(found, axes.get_xlim()):
                axes.text(x, 1.02, name, transform=axes.get_xaxis_transform(), color=_SOFT, fontsize=8, rotation=35)
        _legend(figure, [left], columns=2)

    return _draw(paint, 4.8)


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
                _curve(axes, family, points)
        _both_log(axes)

    return _panels(cells, fill, x="(window, node) pairs per step", y="validation MAE", height=2.5, above=0.8)


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


def predictions(found: Sequence[tuple[str, float, float]]) -> str:
    """Predicted against measured share of full training's time until its best validation MAE.

    Args:
        found: (series, predicted, measured); shares, so that 0.25 is four times less.

    Returns:
        SVG text. The grey band is 25% to each side.
    """

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        values = [value for _, *both in found for value in both if value > 0]
        ends = [0.7 * min(values), 1.4 * max(values)]
        axes.plot(ends, ends, color=_INK, linewidth=1)
        axes.fill_between(ends, [0.75 * end for end in ends], [1.25 * end for end in ends], color=_FAINT, zorder=0)
        for label, predicted, measured in found:
            axes.plot(measured, predicted, color="#0072B2", marker="o", linestyle="none", markersize=6)
            axes.annotate(label, (measured, predicted), xytext=(6, -3), textcoords="offset points", fontsize=8)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(*ends)
        axes.set_ylim(*ends)
        axes.set_aspect("equal")
        _plain_log(axes.xaxis)
        _plain_log(axes.yaxis)
        axes.set_xlabel("measured share of full training's time")
        axes.set_ylabel("predicted share")

    return _draw(paint, 4.4)
