"""The result table, as cells for any output and as aligned plain text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stprune.demo.records import Row


@dataclass(frozen=True)
class Column:
    """A column of the result table.

    Attributes:
        title: short heading.
        meaning: what the numbers are, in a few words.
        cell: text of a row's cell.
    """

    title: str
    meaning: str
    cell: Callable[[Row], str]


def with_spread(value: tuple[float, float], form: str) -> str:
    """A mean, followed by its spread when there is one.

    Args:
        value: mean and standard deviation over the seeds.
        form: format of both numbers; the sign is shown for the mean only.

    Returns:
        For instance "1.25" or "1.25 ±0.03".

    Example:
        >>> with_spread((-1.25, 0.034), "+.2f"), with_spread((-1.25, 0.0), "+.2f")
        ('-1.25 ±0.03', '-1.25')
    """
    mean, spread = value
    return f"{mean:{form}} ±{spread:{form.lstrip('+')}}" if spread else f"{mean:{form}}"


def significant(value: float) -> str:
    """Format that gives a number of this size four significant digits, without an exponent.

    Args:
        value: a typical number of the column.

    Returns:
        A format specification.

    Example:
        >>> significant(0.0432), significant(13.26), significant(25310.0)
        ('.5f', '.2f', '.0f')
    """
    if not value > 0:
        return ".4f"
    digits = 3
    while value < 1:
        value, digits = value * 10, digits + 1
    while value >= 10:
        value, digits = value / 10, digits - 1
    return f".{max(digits, 0)}f"


def columns(rows: list[Row], labels: dict[str, str], unit: str) -> list[Column]:
    """The columns of the result table.

    Args:
        rows: the table's rows; they decide how many digits are shown.
        labels: label of every run name.
        unit: unit of the errors, may be empty.

    Returns:
        Columns from left to right.
    """
    form = significant(rows[0].mae[0])
    in_unit = f" in {unit}" if unit else ""
    return [
        Column("run", "", lambda row: labels[row.name]),
        Column("MAE", f"test mean absolute error{in_unit}", lambda row: with_spread(row.mae, form)),
        Column("vs full", "test MAE against full training", lambda row: _change(row)),
        Column("RMSE", f"root mean squared error{in_unit}", lambda row: with_spread(row.rmse, form)),
        Column("MAPE", "mean absolute percentage error, in %", lambda row: with_spread(row.mape, ".2f")),
        Column("epochs", "epochs trained", lambda row: f"{row.epochs:.0f}"),
        Column("windows", "windows used in training, repeats counted", lambda row: f"{row.windows:,.0f}"),
        Column("pairs", "(window, node) pairs used, in millions", lambda row: f"{row.pairs / 1e6:.2f}M"),
        Column("steps", "optimizer steps", lambda row: f"{row.steps:,.0f}"),
        Column("time", "wall time of training in s, evaluation not counted", lambda row: with_spread(row.seconds, ".1f")),
        Column("speed-up", "wall time of full training by this run's", lambda row: with_spread(row.speedup, ".2f") + "x"),
        Column("overhead", "sampler and scoring, in % of the run", lambda row: _overhead(row, row.overhead)),
        Column("of full", "sampler and scoring, in % of the full run", lambda row: _overhead(row, row.overhead_of_full)),
        Column("to best", "share of the full run's time until its best validation MAE was reached", _target),
    ]


def _change(row: Row) -> str:
    return "-" if row.name == "full" else with_spread(row.mae_change, "+.1f") + "%"


def _overhead(row: Row, percent: float) -> str:
    return "-" if row.name in ("full", "full-short") else f"{percent:.2f}%"


def _target(row: Row) -> str:
    return "never" if row.target_share is None else f"{row.target_share:.0%}"


def cells(rows: list[Row], layout: list[Column]) -> list[list[str]]:
    """Texts of the table, line by line, heading first."""
    return [[column.title for column in layout], *([column.cell(row) for column in layout] for row in rows)]


def as_text(rows: list[Row], layout: list[Column]) -> str:
    """The table as aligned plain text.

    Args:
        rows: one per run.
        layout: from `columns`.

    Returns:
        Several lines without a final newline; the first column is left-aligned, all others right-aligned.
    """
    lines = cells(rows, layout)
    widths = [max(len(line[i]) for line in lines) for i in range(len(layout))]
    texts = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    texts.insert(1, "-" * len(texts[0]))
    return "\n".join(texts)


def legend(layout: list[Column]) -> str:
    """What the columns mean, in one line."""
    return "; ".join(f"{column.title}: {column.meaning}" for column in layout if column.meaning)
