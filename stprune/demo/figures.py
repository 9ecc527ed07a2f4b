"""The report's pictures, as SVG text."""

from __future__ import annotations

import datetime
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from stprune.demo.records import RunRecord

# Okabe and Ito's colours, told apart with every kind of colour vision; line style and marker say the same once more.
_STYLES: dict[str, dict[str, Any]] = {
    "full": {"color": "#000000", "linestyle": "-"},
    "full-short": {"color": "#7a7a7a", "linestyle": "--"},
    "soft-random": {"color": "#56B4E9", "linestyle": "-."},
    "infobatch": {"color": "#E69F00", "linestyle": "-."},
    "st-prune": {"color": "#0072B2", "linestyle": "--"},
    "nodes": {"color": "#009E73", "linestyle": "-"},
    "nodes-priority": {"color": "#117733", "linestyle": "--"},
    "nodes-long": {"color": "#D55E00", "linestyle": "-", "linewidth": 2.6},
    "rs2": {"color": "#CC79A7", "linestyle": "-."},
    "epsilon-greedy": {"color": "#8C6BB1", "linestyle": ":"},
    "ucb": {"color": "#A6761D", "linestyle": ":"},
    "seta": {"color": "#CC79A7", "linestyle": ":"},
    "top-k": {"color": "#666633", "linestyle": "-."},
}
_INK = "#1f2933"
_FAINT = "#d9dee3"
_SETTINGS: Any = {
    "svg.fonttype": "path",
    "svg.hashsalt": "stprune",
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.edgecolor": "#8a949e",
    "axes.labelcolor": _INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.9,
}
_WIDTH = 8.6  # inches; the page shows it at about this size on a desk


@dataclass(frozen=True)
class Calendar:
    """When the pruned run kept which window.

    Attributes:
        share: [num_train] float32, share of the pruned epochs that kept the window.
        first_step: [num_train] int64, first forecast step of each window.
        stride: steps between two windows.
        steps_per_day: of the series.
        time_of_day: [time] of the series, in [0, 1).
        day_of_week: [time] of the series, 0 = Monday.
        first_day: date of the series' first step, None when not known.
    """

    share: NDArray[np.float32]
    first_step: NDArray[np.int64]
    stride: int
    steps_per_day: int
    time_of_day: NDArray[np.float32]
    day_of_week: NDArray[np.int64]
    first_day: datetime.date | None


def _draw(paint: Callable[[Figure], None], height: float) -> str:
    """Run a painting function on a fresh figure with the report's style and return SVG text."""
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        paint(figure)
        buffer = io.StringIO()
        # Without a date the same numbers give the same picture.
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def validation_curves(records: list[RunRecord], labels: dict[str, str], unit: str) -> str:
    """Validation MAE against the wall time of training, one line per run.

    Args:
        records: runs of one seed.
        labels: label of every run name.
        unit: unit of the errors, may be empty.

    Returns:
        SVG text.
    """

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for record in records:
            seconds = [epoch.seconds for epoch in record.epochs]
            errors = [epoch.validation_mae for epoch in record.epochs]
            style = _STYLES[record.name]
            axes.plot(seconds, errors, label=labels[record.name], **style)
            axes.plot(record.best.seconds, record.best.validation_mae, "o", color=style["color"], markersize=6, zorder=5)
        full = next(record for record in records if record.name == "full")
        axes.axhline(full.best.validation_mae, color="#000000", linewidth=0.9, linestyle=":")
        axes.annotate(
            "full training's best",
            (0.995, full.best.validation_mae),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=9,
        )
        # The first epochs fall from far above; the picture is about where the runs end.
        everything = [epoch.validation_mae for record in records for epoch in record.epochs]
        low, ends = min(everything), [record.best.validation_mae for record in records]
        axes.set_ylim(low - 0.12 * (max(ends) - low) - 1e-9, max(ends) + 1.2 * (max(ends) - low) + 0.1 * low)
        axes.set_xlim(left=0)
        axes.set_xlabel("wall time of training in s (evaluation not counted)")
        axes.set_ylabel("validation MAE" + (f" in {unit}" if unit else ""))
        _legend(figure, axes)

    return _draw(paint, 4.8)


def data_shares(records: list[RunRecord], labels: dict[str, str]) -> str:
    """Share of all (window, node) pairs that each epoch trained on, one stepped line per run.

    Args:
        records: runs of one seed.
        labels: label of every run name.

    Returns:
        SVG text.
    """

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for record in records:
            if record.name == "full-short":
                continue  # Full epochs, only fewer: it would hide the line of full training.
            share = [100 * epoch.pair_share for epoch in record.epochs]
            # An epoch is an interval, not a point.
            edges = np.arange(len(share) + 1) + 0.5
            # The shorter of two equal lines lies on top.
            style = {**_STYLES[record.name], "zorder": 3 - len(record.epochs) / 1e4}
            axes.step(edges, [*share, share[-1]], where="post", label=labels[record.name], **style)
        axes.set_ylim(0, 104)
        axes.set_xlim(left=0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0f}%")
        axes.set_xlabel("epoch")
        axes.set_ylabel("(window, node) pairs trained on")
        _legend(figure, axes)

    return _draw(paint, 3.9)


def score_histograms(scores: NDArray[np.float32], unit: str) -> str:
    """Distribution of the windows' scores after several epochs.

    Args:
        scores: [epochs, windows], +inf where never scored.
        unit: unit of the scores, may be empty.

    Returns:
        SVG text.
    """

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        chosen = sorted({round(x) for x in np.linspace(0, len(scores) - 1, min(5, len(scores)))})
        finite = scores[chosen]
        finite = finite[np.isfinite(finite) & (finite > 0)]
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.1, 1.0)
        bins = np.geomspace(low, max(high, low * 1.01), 46)
        colors = matplotlib.colormaps["viridis"](np.linspace(0.92, 0.05, len(chosen)))
        for epoch, color in zip(chosen, colors, strict=True):
            known = scores[epoch][np.isfinite(scores[epoch])]
            share = 100 * np.histogram(known, bins)[0] / max(1, len(known))
            axes.stairs(share, bins, color=color, linewidth=1.8, label=f"after epoch {epoch + 1}")
            if epoch in (chosen[0], chosen[-1]):
                axes.stairs(share, bins, color=color, alpha=0.15, fill=True)
            if len(known):
                axes.axvline(float(np.median(known)), color=color, linewidth=1.1, linestyle=":")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "235" else "")
        axes.tick_params(axis="x", which="both", length=3.5, pad=3.5)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("score of a window (MAE + half its spread over nodes and over time)" + (f" in {unit}" if unit else ""))
        axes.set_ylabel("windows in % per bin")
        axes.grid(axis="x", visible=False)
        axes.legend(loc="upper right")

    return _draw(paint, 3.9)


def kept_calendar(calendar: Calendar) -> str:
    """How often each window was kept: day by time of day, and the mean over the week.

    Args:
        calendar: the windows of the pruned run.

    Returns:
        SVG text.
    """
    by_day = _by_day(calendar)
    by_week = _by_week(calendar)
    low, high = (100 * float(v) for v in np.nanquantile(by_day, [0.01, 0.99]))
    scale = {"cmap": "cividis", "vmin": low, "vmax": max(high, low + 1), "interpolation": "nearest", "aspect": "auto"}

    def paint(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, height_ratios=(1.25, 1))
        image = top.imshow(100 * by_day, extent=(0.5, by_day.shape[1] + 0.5, 24, 0), **scale)
        top.set_title("Every window: day by time of day")
        places, names = _months(calendar.first_day, by_day.shape[1]) if calendar.first_day else ([], [])
        if places:
            top.set_xticks(places, names)
        top.set_xlabel("day of the training part" + (f" ({calendar.first_day.year})" if calendar.first_day else ""))
        week = bottom.imshow(100 * by_week, extent=(-0.5, 6.5, 24, 0), **{**scale, **_own_range(100 * by_week)})
        bottom.set_title("Mean over the weeks: day of week by time of day")
        bottom.set_xticks(range(7), ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"])
        for axes, mesh in ((top, image), (bottom, week)):
            axes.set_yticks([0, 6, 12, 18, 24], ["0:00", "6:00", "12:00", "18:00", "24:00"])
            axes.set_ylabel("first forecast step")
            axes.grid(visible=False)
            bar = figure.colorbar(mesh, ax=axes, pad=0.015, aspect=18)
            bar.set_label("kept in % of pruned epochs", fontsize=9)
            bar.outline.set_visible(False)

    return _draw(paint, 6.4)


def _own_range(values: NDArray[np.float32]) -> dict[str, float]:
    # Means differ less than single windows: with the windows' range the lower picture would be one colour.
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    return {"vmin": low, "vmax": max(high, low + 1)}


def _by_day(calendar: Calendar) -> NDArray[np.float32]:
    """[steps_per_day, days] by the local clock: each window colours the steps up to the next window's."""
    length = int(calendar.first_step.max()) + calendar.stride
    share = np.full(length, np.nan, dtype=np.float32)
    for offset in range(calendar.stride):
        share[calendar.first_step + offset] = calendar.share
    slot = np.rint(calendar.time_of_day[:length].astype(np.float64) * calendar.steps_per_day).astype(np.int64)
    slot = np.minimum(slot, calendar.steps_per_day - 1)
    day = np.concatenate([[0], np.cumsum(np.diff(calendar.day_of_week[:length]) != 0)])
    grid = np.full((calendar.steps_per_day, int(day[-1]) + 1), np.nan, dtype=np.float32)
    grid[slot, day] = share
    return grid


def _months(first_day: datetime.date, num_days: int) -> tuple[list[int], list[str]]:
    """Places and names of the first days of the months among `num_days` days."""
    days = [first_day + datetime.timedelta(days=number) for number in range(num_days)]
    names = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
    return (
        [number + 1 for number, day in enumerate(days) if day.day == 1],
        [names[day.month - 1] for day in days if day.day == 1],
    )


def _by_week(calendar: Calendar) -> NDArray[np.float32]:
    """[24, 7] mean share by the local clock; NaN where no window begins."""
    hour = (calendar.time_of_day[calendar.first_step] * 24).astype(np.int64)
    day = calendar.day_of_week[calendar.first_step]
    cell = hour * 7 + day
    count = np.bincount(cell, minlength=24 * 7)
    total = np.bincount(cell, weights=calendar.share, minlength=24 * 7)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean.astype(np.float32).reshape(24, 7)


def node_errors(node_mae: NDArray[np.float32], drawn: NDArray[np.float32] | None, unit: str) -> str:
    """What each node's error was early and at the end, what the second half of the run changed, and how often it was drawn.

    Args:
        node_mae: [epochs, node] validation MAE of each node after each epoch.
        drawn: [node] share of the windows in which each node was drawn, or None to leave it out.
        unit: unit of the errors, may be empty.

    Returns:
        SVG text.
    """
    order = np.argsort(node_mae[-1], kind="stable")
    place = np.arange(len(order)) + 1
    half = len(node_mae) // 2
    # A node that is forecast without an error has no place on a logarithmic axis.
    shown = np.maximum(node_mae[:, order], 1e-4 * float(np.nanmax(node_mae)) or 1e-12)
    change = 100 * (shown[-1] / shown[half] - 1)

    def paint(figure: Figure) -> None:
        panels = figure.subplots(
            2 if drawn is None else 3, 1, sharex=True, height_ratios=(1.5, 1) if drawn is None else (1.5, 1, 1)
        )
        panels[0].step(place, shown[0], where="mid", color="#8a949e", label="after epoch 1", linewidth=1.4)
        panels[0].step(
            place, shown[-1], where="mid", color="#D55E00", label=f"at the end, epoch {len(node_mae)}", linewidth=1.6
        )
        panels[0].set_yscale("log")
        panels[0].set_title("Error of every node")
        panels[0].set_ylabel("validation MAE" + (f" in {unit}" if unit else ""))
        panels[0].legend(loc="lower right", fontsize=9.5)
        colors = np.where(change < 0, "#009E73", "#8a949e")
        panels[1].bar(place, change, width=1.0, color=list(colors))
        panels[1].axhline(0, color=_INK, linewidth=0.8)
        panels[1].set_title(f"What the epochs from {half + 2} on still changed (green: still learnt)")
        panels[1].set_ylabel("change in %")
        # A few nodes of nearly no error would set the scale for all.
        low, high = np.nanquantile(change, [0.02, 0.98])
        panels[1].set_ylim(min(1.15 * low, -1.0), max(1.15 * high, 1.0))
        if drawn is not None:
            panels[2].bar(place, 100 * drawn[order], width=1.0, color="#0072B2")
            panels[2].set_title("How often each node was drawn")
            panels[2].set_ylabel("% of windows")
        panels[-1].set_xlim(0.5, len(order) + 0.5)
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[-1].set_xlabel("nodes, from the smallest to the largest error at the end")

    return _draw(paint, 5.2 if drawn is None else 6.8)


def _legend(figure: Figure, axes: Any) -> None:
    handles, texts = axes.get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside upper left", ncols=3, fontsize=9.5, handlelength=2.6, columnspacing=1.6)
