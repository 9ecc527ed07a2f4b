"""How the report's pictures are drawn: colours, panels, legends, logarithmic axes; as SVG text."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from stprune.study.summary import FULL, UNIFORM, Cell, Family

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
INK, FAINT, SOFT = "#1f2933", "#d9dee3", "#7b8794"
_SETTINGS: Any = {
    "svg.fonttype": "path",
    "svg.hashsalt": "stprune",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": "#8a949e",
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
}
_WIDTH = 9.6  # inches; the page shows it at about this size on a desk
_COLUMNS = 3


def draw(paint: Callable[[Figure], None], height: float) -> str:
    """Run a painting function on a fresh figure with the report's style and return SVG text."""
    with rc_context(_SETTINGS):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        paint(figure)
        buffer = io.StringIO()
        # Without a date the same numbers give the same picture.
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def style_of(name: str, kind: str) -> dict[str, Any]:
    """Colour, line and marker of a family, as matplotlib takes them."""
    style = {**_OTHER, **_STYLES.get(name, {})}
    return {**style, "markerfacecolor": "white", "markeredgewidth": 1.3} if kind == "windows" else style


def panels(
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
        legend(figure, grid[: len(cells)])

    return draw(paint, above + height * lines)


def legend(figure: Figure, axes: Sequence[Any], columns: int = 4) -> None:
    """One legend above all panels, each label once."""
    found = {text: handle for one in axes for handle, text in zip(*one.get_legend_handles_labels(), strict=True)}
    layout: Any = {"loc": "outside upper left", "ncols": columns, "fontsize": 8.8, "handlelength": 3, "columnspacing": 1.5}
    if found:
        figure.legend(list(found.values()), list(found), **layout)


def curve(axes: Any, family: Family, points: Sequence[tuple[float, float]], **style: Any) -> None:
    """A family's points, joined; what is compared first lies above the others."""
    depth = 3 + (family.name == UNIFORM) + 2 * (family.name == FULL)
    style = {**style_of(family.name, family.kind), **style}
    axes.plot(*zip(*points, strict=True), label=family.label, zorder=depth, **style)


def both_log(axes: Any, ticks: Sequence[float] = ()) -> None:
    """Both axes logarithmic, x with these ticks if any are given."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(x=0.08, y=0.12)
    if ticks:
        axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        axes.set_xticks([], minor=True)
    else:
        plain_log(axes.xaxis)
    plain_log(axes.yaxis)


def plain_log(axis: Any) -> None:
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
