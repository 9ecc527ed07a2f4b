"""Tables of a study: of one cell for terminal and report, of all cells in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from stprune.study.results import USUAL_BATCH, Change, Result, Stat, compare, overspent
from stprune.study.rows import Row
from stprune.study.sentences import headline, percent, signed
from stprune.study.summary import FULL, Cell, Family, Labels, Study, group_name, summarize


@dataclass(frozen=True)
class Column:
    """A column of a cell's table.

    Attributes:
        title: short heading.
        meaning: what the numbers are, in a few words.
        cell: text for a family; "" where it is unknown.
    """

    title: str
    meaning: str
    cell: Callable[[Family], str]


def with_spread(value: Stat, form: str) -> str:
    """A mean, followed by its deviation when there is one.

    Example:
        >>> with_spread(Stat(1.25, 0.034), ".2f"), with_spread(Stat(1.25, 0.0), ".2f")
        ('1.25 ±0.03', '1.25')
    """
    return f"{value.mean:{form}} ±{value.sd:{form}}" if value.sd else f"{value.mean:{form}}"


def significant(value: float) -> str:
    """Format that gives a number of this size four significant digits, without an exponent.

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


def columns(cell: Cell) -> list[Column]:
    """The columns of a cell's table; the first error decides how many digits are shown."""
    form = significant(next((f.result.mae.mean for f in cell.families if f.result), 1.0))

    def stat(value: Callable[[Row], float], form: str) -> Callable[[Family], str]:
        return lambda family: with_spread(family.result.stat(value), form) if family.result else ""

    return [
        Column("family", "", lambda f: f.label),
        Column("best setting", "by validation MAE", lambda f: f"{f.result.setting}{_at(f.result, cell)}" if f.result else ""),
        Column("seeds", "runs of that setting", lambda f: str(len(f.result.runs)) if f.result else ""),
        Column("MAE", "test mean absolute error", stat(lambda row: row.mae, form)),
        Column(
            "vs full",
            "test MAE against the best full training at equal cost, paired over seeds, with half of the 95% interval",
            lambda f: _change(f.result.change if f.result else None),
        ),
        Column("RMSE", "test root mean squared error", stat(lambda row: row.rmse, form)),
        Column("MAPE", "test mean absolute percentage error, in %", stat(lambda row: row.mape, ".1f")),
        Column("hard windows", "test MAE of the hardest 5% of the windows", stat(lambda row: row.hard_windows_mae, form)),
        Column("hard nodes", "the same of nodes", stat(lambda row: row.hard_nodes_mae, form)),
        Column("over budget", "pairs trained on beyond the budget, as the last step is whole", _overspent),
        Column("steps", "optimizer steps", lambda f: f"{f.result.steps:,.0f}" if f.result else ""),
        Column("time", "seconds of training, evaluation not counted", _seconds),
        Column("overhead", "deciding and scoring, in % of the run", _overhead),
        Column(
            "cost to best",
            "cost until the best validation MAE of full training, as a share of what full training needed for it",
            lambda f: _reached(cell, f, "cost"),
        ),
        Column("time to best", "the same in time", lambda f: _reached(cell, f, "time")),
        Column("equal time", "test MAE against full training after its time", lambda f: _change(f.equal_time)),
        Column(
            "a sixth",
            f"test MAE at a sixth of the cost or less, against batches of {USUAL_BATCH} on everything at the whole cost",
            lambda f: _change(f.sixth),
        ),
    ]


def _at(result: Result, cell: Cell) -> str:
    """The budget, where it is not the cell's."""
    return "" if result.cost == cell.cost else f", cost {result.cost:g}"


def _change(change: Change | None) -> str:
    return percent(change) if change else ""


def _seconds(family: Family) -> str:
    return with_spread(family.result.time, significant(10 * family.result.time.mean)) if family.result else ""


def _overspent(family: Family) -> str:
    share = family.result.overspent if family.result else 0.0
    return f"{share:.1f}%" if share >= 0.05 else ""


def _overhead(family: Family) -> str:
    share = family.result.overhead if family.result else None
    return "" if share is None or family.name == FULL else f"{share:.1f}%"


def texts(cell: Cell) -> tuple[list[Column], list[list[str]]]:
    """The columns that hold anything, and one line of texts a family."""
    layout = columns(cell)
    lines = [[column.cell(family) for column in layout] for family in cell.families]
    used = [i for i in range(len(layout)) if any(line[i] for line in lines)]
    return [layout[i] for i in used], [[line[i] for i in used] for line in lines]


def as_text(cell: Cell) -> str:
    """A cell's table as aligned plain text.

    Returns:
        Several lines without a final newline; the first two columns are left-aligned, all others right-aligned.
    """
    layout, body = texts(cell)
    lines = [[column.title for column in layout], *body]
    widths = [max(len(line[i]) for line in lines) for i in range(len(layout))]
    sides = [str.ljust if i < 2 else str.rjust for i in range(len(layout))]
    found = ["  ".join(side(text, width) for side, text, width in zip(sides, line, widths, strict=True)) for line in lines]
    found.insert(1, "-" * len(found[0]))
    return "\n".join(line.rstrip() for line in found)


def legend(layout: Iterable[Column]) -> str:
    """What the columns mean, in one line."""
    return "; ".join(f"{column.title}: {column.meaning}" for column in layout if column.meaning)


@dataclass(frozen=True)
class Entry:
    """A field of the table over series.

    Attributes:
        text: for people; "" where nothing was run.
        strong: the seeds tell it apart from the best full training.
        better: it is lower.
    """

    text: str
    strong: bool = False
    better: bool = False


def matrix(cells: Sequence[Cell], study: Study) -> list[tuple[str, list[Entry]]]:
    """The table over series of one model: a line a family, a column a cell.

    Args:
        cells: of one group.
        study: theirs.

    Returns:
        Lines of a label and one entry a cell, those without any text left out. First the budget in passes, the test MAE of full
        training at its best setting, and that setting, then the change by batches of `USUAL_BATCH`, then every other family's
        change in %, last what drawing nodes needed until full training's best validation MAE.
    """
    lines = [
        ("passes over the training part", [Entry(f"{cell.cost:g}") for cell in cells]),
        ("full training at its best: test MAE", [Entry(_best_mae(cell)) for cell in cells]),
        ("its batch", [Entry(_batch(cell)) for cell in cells]),
        (f"full training, batch {USUAL_BATCH}", [_usual(cell) for cell in cells]),
    ]
    for name, (label, _) in study.labels.items():
        found = [cell.find(name) for cell in cells]
        if name != FULL and any(found):
            lines.append((label, [_change_entry(cell, f.result if f else None) for cell, f in zip(cells, found, strict=True)]))
    drawing = [cell.drawing for cell in cells]
    if any(drawing):
        for what in ("cost", "time"):
            entries = [Entry(_reached(cell, f, what)) for cell, f in zip(cells, drawing, strict=True)]
            lines.append((f"{what} to full training's best, drawing nodes", entries))
    return [line for line in lines if any(entry.text for entry in line[1])]


def _best_mae(cell: Cell) -> str:
    return f"{cell.full.mae.mean:{significant(cell.full.mae.mean)}}" if cell.full else ""


def _batch(cell: Cell) -> str:
    return f"{cell.full.setting.batch_size}{', the smallest tried' * cell.smallest_is_best}" if cell.full else ""


def _usual(cell: Cell) -> Entry:
    if cell.usual and cell.full and cell.usual.setting == cell.full.setting:
        return Entry("the best")
    return _entry(compare(cell.usual, cell.full))


def _entry(change: Change | None) -> Entry:
    if change is None:
        return Entry("")
    return Entry(signed(change.mean), strong=change.outside, better=change.mean < 0)


def _change_entry(cell: Cell, result: Result | None) -> Entry:
    entry = _entry(result.change if result else None)
    return replace(entry, text=entry.text + _at(result, cell)) if result and entry.text else entry


def _reached(cell: Cell, family: Family | None, what: str) -> str:
    if family is None or cell.full is None:
        return ""
    return f"{getattr(family.reach, what):.0%}" if family.reach else "never"


def markdown(rows: Iterable[Row], labels: Labels, *, doubt: str = "") -> str:
    """The block that README shows: the study's first sentences, and one table over series per model.

    Args:
        rows: of a study.
        labels: name of every family -> (label, kind), in the order of the lines.
        doubt: why nothing can be concluded from the rows, which stands first; "" where something can.

    Returns:
        Markdown with a final newline. The same rows in the same order give the same text.

    Raises:
        ValueError: there are no rows, or a family has no label.
    """
    study = summarize(rows, labels)
    first, *more = headline(study, firm=not doubt)
    parts = [text for text in (f"**{doubt}**" if doubt else "", first, "\n".join(f"- {text}" for text in more)) if text]
    parts += [_group(cells, study) for cells in study.groups.values()]
    parts.append(beyond_budget(study))
    parts.append(
        "Test MAE against full training at its best batch and learning rate at equal cost, in %; negative is better. **Bold**: "
        "the seeds tell the two apart (95% interval of the paired differences; with one seed, more than 1%)."
    )
    return "\n\n".join(parts) + "\n"


def beyond_budget(study: Study) -> str:
    """By how much each family spent more than its budgets."""
    texts = []
    for name, (label, _) in study.labels.items():
        compared = [row for cell in study.cells if (f := cell.find(name)) and f.result for row in f.result.runs]
        most = max((overspent([row]) for row in study.rows if row.spec.family == name and not row.diverged), default=0.0)
        if compared:
            texts.append(f"{label} {overspent(compared):.2f}% ({most:.1f}%)")
    return (
        "The last step of a run is whole, so that it may train on more pairs than its budget has. By so much, on the mean of "
        f"the runs that are compared (at most, in any trial): {'; '.join(texts) or 'no run'}."
    )


def _group(cells: Sequence[Cell], study: Study) -> str:
    lines = [(label, [_bold(entry) for entry in entries]) for label, entries in matrix(cells, study)]
    head = [group_name(cells[0].group), *(f"{cell.series}<br>{cell.num_nodes:,} nodes" for cell in cells)]
    rule = ["---", *("---:" for _ in cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *([label, *entries] for label, entries in lines)))


def _bold(entry: Entry) -> str:
    return f"**{entry.text}**" if entry.strong else entry.text
