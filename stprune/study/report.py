"""The report of a study: one HTML file that refers to nothing outside itself."""

from __future__ import annotations

import base64
import pathlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import jinja2

from stprune.study import figures, table
from stprune.study.results import USUAL_BATCH
from stprune.study.rows import Row
from stprune.study.sentences import headline, less, percent, scope, sentences
from stprune.study.summary import FULL, Cell, Group, Labels, Study, group_name, summarize

TITLE = "Pruned training against full training at its best"
_TEMPLATES = pathlib.Path(__file__).parent / "templates"

DEFINITIONS = (
    ("Cost", "(window, node) pairs trained on, as a multiple of the pairs of the training part; the learning rate's schedule "
     "runs over the share of the budget used, so that all families at one cost use equally many pairs."),
    ("Best setting", "of a family at a cost: batch, nodes drawn, share of windows kept and learning rate with the lowest mean "
     "validation MAE among the settings with the most seeds. The test part has no say in it."),
    ("Best full training", "training on all windows and all nodes at its own best setting, batch included. It is the rival in "
     "every comparison."),
    ("Change", "error against the best full training's of the same seed, in %; mean over the seeds, with half of its 95% t "
     "interval. Three seeds give a wide interval. With many comparisons, about one in twenty lies outside it by chance."),
    ("Cost and time to best", "cost (processor time) until the first validation at or below the best validation MAE that full "
     "training of the same seed reached, in the run that gets there first among the family's budgets, as a share of what full "
     "training needed with the same choice. Never: on some seed it did not get there."),
    ("Equal time", "test MAE after as much processor time as the best full training took, read off between the budgets of the "
     "family on logarithmic axes."),
    ("A sixth", f"test MAE at the family's largest cost of at most a sixth of the budget, against that of full training with "
     f"batches of {USUAL_BATCH} at the whole budget."),
    ("Overhead", "time of plans and draws, and of the loss beyond the plain loss of full training with about as many pairs per "
     "step, in % of the run. Negative: the scoring loss is faster than the plain one."),
    ("Hard windows, hard nodes", "mean test MAE of the 5% of the windows (nodes) with the largest MAE in that run."),
    ("MAPE", "over targets of at least a tenth of the training part's standard deviation."),
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A picture with its heading and what it shows."""

    heading: str
    text: str
    sources: tuple[tuple[str, str], ...]  # (caption, data URI of the SVG)


def render(
    rows: Iterable[Row],
    labels: Labels,
    *,
    title: str = TITLE,
    note: str = "",
    firm: bool = True,
    sources: Sequence[str] = (),
) -> str:
    """Build the page.

    Args:
        rows: of a study.
        labels: name of every family -> (label for people, kind), in the report's order.
        title: heading of the page.
        note: a sentence that stands before all findings, for instance that a quick run proves nothing.
        firm: False where the runs are too small or too few for any comparison: then no sentence makes one.
        sources: where series and methods come from, for the footer.

    Returns:
        HTML text that refers to nothing outside itself.

    Raises:
        ValueError: there are no rows, or a family has no label.
    """
    study = summarize(rows, labels)
    # Of several cells the one with the largest gain would stand for all.
    cards, place = _cards(study.cells[0]) if firm and len(study.cells) == 1 else ([], "")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        scope=scope(study),
        note=note,
        cards=cards,
        place=place,
        findings=_findings(study, firm),
        pictures=_pictures(study),
        groups=[(group_name(group), cells, table.matrix(cells, study)) for group, cells in study.groups.items()],
        cells=[(cell, sentences(cell, firm=firm), *table.texts(cell)) for cell in study.cells],
        group_name=group_name,
        definitions=DEFINITIONS,
        conditions=_conditions(study),
        sources=sources,
    ) + "\n"  # fmt: skip


def _findings(study: Study, firm: bool) -> list[str]:
    if len(study.cells) == 1:
        return sentences(study.cells[0], firm=firm)
    return headline(study, firm=firm)[1:]


def _cards(cell: Cell) -> tuple[list[tuple[str, str]], str]:
    """The headline numbers of a cell, and which one it is."""
    drawing = cell.drawing
    if not (cell.full and drawing and drawing.result and drawing.result.change):
        return [], ""
    found = [(f"{percent(drawing.result.change)} MAE", f"{drawing.label}, against the best full training at equal cost")]
    if drawing.reach:
        found.append((f"{less(drawing.reach.time)} time", "to reach the best validation MAE of full training"))
    else:
        found.append(("never", "the best validation MAE of full training was not reached on every seed"))
    if cell.batch_gain:
        found.append(
            (f"{percent(cell.batch_gain)} MAE", f"by the batch alone: the best full training against batches of {USUAL_BATCH}")
        )
    return found, f"{cell.title}, {group_name(cell.group)}"


def _pictures(study: Study) -> list[Picture]:
    shown = {group: [cell for cell in cells if cell.families] for group, cells in study.groups.items()}
    several = {group for group, cells in shown.items() if any(len(f.results) > 1 for cell in cells for f in cell.families)}

    def each(draw: Callable[[Sequence[Cell]], str], groups: Iterable[Group]) -> tuple[tuple[str, str], ...]:
        return tuple((group_name(group), _uri(draw(shown[group]))) for group in groups if shown[group])

    found = [
        Picture(
            "Test MAE against cost",
            "One curve a family, or a point where it ran at one cost, each at its best batch and learning rate there. "
            "Single points stand side by side to the right of their cost. Both axes are logarithmic.",
            each(figures.costs, [group for group in shown if group in several]),
        ),
        Picture(
            "Validation MAE while training",
            "Every family at its best batch and learning rate, with the first seed. The dotted line is full training's best. "
            "Both axes are logarithmic.",
            each(figures.courses, [group for group in shown if group not in several]),
        ),
    ]
    if any(f.result and f.result.change for cell in study.cells for f in cell.families):
        found.append(
            Picture(
                "Every family against the best full training",
                "Test MAE at equal cost, paired over seeds; left is better. Bars are 95% intervals. Pale: the seeds do not "
                "tell it from full training. Changes beyond the border stand at it with their number.",
                each(figures.changes, shown),
            )
        )
    gains = figures.found_gains(study)
    if len({gain.cell.num_nodes for gain in gains}) > 1:
        text = "Drawing nodes against the best full training, one point a series and model. Higher is better."
        found.insert(1, Picture("Gain against the number of nodes", text, (("", _uri(figures.gains(gains))),)))
    if any(len(figures.tuning_points(cell, FULL)) > 1 for cell in study.cells):
        text = "Validation MAE of the first seed by pairs per step, each at its best learning rate: what the batch alone gives."
        found.append(Picture("Tuning of the batch", text, each(figures.tuning, shown)))
    return [picture for picture in found if picture.sources]


def _uri(svg: str) -> str:
    # As an image, the ids inside each SVG stay apart from those of the others.
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _conditions(study: Study) -> list[tuple[str, str]]:
    rows = study.rows
    specs = [row.spec for row in rows]
    machines = dict.fromkeys(_machine(row) for row in rows)
    versions = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in row.machine.get("versions", {}).items()) for row in rows
    )
    hours = sum(row.seconds for row in rows) / 3600
    days = sorted({row.date[:10] for row in rows})
    return [
        ("Machine", "; ".join(machines)),
        ("Versions", "; ".join(versions)),
        (
            "Time",
            f"{hours:.2g} hours of training in {len(rows):,} runs, {' to '.join(dict.fromkeys((days[0], days[-1])))}",
        ),
        ("Costs", _values(spec.cost for spec in specs)),
        ("Beyond them", table.beyond_budget(study)),
        ("Batches", _values(spec.batch_size for spec in specs)),
        ("Nodes drawn", _values(spec.num_drawn for spec in specs if spec.num_drawn) or "all"),
        ("Windows kept", _values(spec.keep_ratio for spec in specs)),
        ("Learning rates", _values(spec.learning_rate for spec in specs)),
        ("Seeds", _values(spec.seed for spec in specs)),
    ]


def _machine(row: Row) -> str:
    found = row.machine
    return ", ".join(f"{name} {found[name]}" for name in ("processor", "device", "threads") if name in found)


def _values(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in sorted(set(values)))
