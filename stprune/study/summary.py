"""From rows to numbers: the best setting of every family, and how it compares with full training at its own best setting."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from stprune.study.results import USUAL_BATCH, Change, Reach, Result, best, compare, equal_time, overhead, reach, sixth
from stprune.study.rows import Row
from stprune.study.series import GENERATED, split_name

FULL = "full"
UNIFORM = "nodes-uniform"
Labels = Mapping[str, tuple[str, str]]


class Group(NamedTuple):
    """What cells that stand in one table share, as in the specs."""

    model: str
    dim: int
    optimizer: str
    rate_schedule: str
    device: str = "cpu"


@dataclass(frozen=True)
class Family:
    """A family in a cell.

    Attributes:
        name, label, kind: of the family.
        results: best settings, by budget, the smallest first.
        result: the one at the cell's budget, else at the largest smaller one that full training has as well, or None.
        reach: see `reach`; None where the validation MAE was never reached or there is nothing to compare with.
        equal_time: test MAE after as much time as the best full training took, see `equal_time`.
        sixth: test MAE at a sixth of the cost against the usual protocol, see `sixth`.
    """

    name: str
    label: str
    kind: str
    results: tuple[Result, ...]
    result: Result | None
    reach: Reach | None
    equal_time: Change | None
    sixth: Change | None


@dataclass(frozen=True)
class Cell:
    """All runs of one series, model, width, optimizer, schedule and device: what may be compared.

    Attributes:
        data: as in the specs.
        group: the rest of what its specs have in common.
        series: short name of the series, for people.
        num_nodes: of the series.
        cost: budget of the comparison: the largest at which full training and another family ran, else the largest of all.
        families: with at least one run that did not diverge, in the order of the labels.
        diverged: labels of the families all of whose runs diverged.
        usual: full training with batches of `USUAL_BATCH` at its best rate and the cell's budget, or None.
        batch_gain: test MAE of the best full training against `usual`; None where one is missing or both are the same.
        rows: all of them.
    """

    data: str
    group: Group
    series: str
    num_nodes: int
    cost: float
    families: tuple[Family, ...]
    diverged: tuple[str, ...]
    usual: Result | None
    batch_gain: Change | None
    rows: tuple[Row, ...]

    def find(self, name: str) -> Family | None:
        """The family of a name, None where it has no runs."""
        return next((family for family in self.families if family.name == name), None)

    @property
    def full(self) -> Result | None:
        """The best full training at the cell's budget."""
        family = self.find(FULL)
        return family.result if family and family.result and family.result.cost == self.cost else None

    @property
    def smallest_is_best(self) -> bool:
        """Full training is best with the smallest batch that was tried, above 1: a smaller one may be better still."""
        tried = [row.spec.batch_size for row in self.rows if row.spec.family == FULL and row.spec.cost == self.cost]
        return self.full is not None and 1 < self.full.setting.batch_size == min(tried)

    @property
    def drawing(self) -> Family | None:
        """The family that stands for drawing nodes: uniform draws, or else the first that draws nodes."""
        return self.find(UNIFORM) or next((family for family in self.families if family.kind == "nodes"), None)

    @property
    def generated(self) -> bool:
        """Whether the series was generated, so that its structure was chosen, not measured."""
        return split_name(self.data)[0] in GENERATED

    @property
    def title(self) -> str:
        """The series and its nodes."""
        return f"{self.series}, {self.num_nodes:,} nodes"

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.group.model


@dataclass(frozen=True)
class Study:
    """All cells, in the order in which their first rows came.

    Attributes:
        cells: of the study.
        labels: name of every family that has rows -> (label, kind).
        rows: all of them, each spec once.
    """

    cells: tuple[Cell, ...]
    labels: dict[str, tuple[str, str]]
    rows: tuple[Row, ...]

    @property
    def groups(self) -> dict[Group, list[Cell]]:
        """Cells by what they share beside their series."""
        groups: dict[Group, list[Cell]] = {}
        for cell in self.cells:
            groups.setdefault(cell.group, []).append(cell)
        return groups

    @property
    def seeds(self) -> tuple[int, int]:
        """The fewest and the most seeds among the results at the cells' budgets."""
        counts = [len(f.result.runs) for cell in self.cells for f in cell.families if f.result] or [0]
        return min(counts), max(counts)


def summarize(rows: Iterable[Row], labels: Labels) -> Study:
    """Find the best settings, and compare them with full training at its own best setting.

    Args:
        rows: of any number of cells; a spec that comes twice counts once, as its first row.
        labels: name of every family -> (label for people, kind: "all", "windows", "nodes" or "both"), in the report's order.

    Returns:
        The study.

    Raises:
        ValueError: there are no rows, or a family has no label.
    """
    once = list({row.spec: row for row in reversed(list(rows))}.values())[::-1]
    if not once:
        raise ValueError("summarize: rows must hold at least one run, got none")
    unknown = sorted({row.spec.family for row in once} - set(labels))
    if unknown:
        raise ValueError(f"summarize: labels must name every family of the rows, got none for {unknown}")
    cells: dict[tuple[str, Group], list[Row]] = {}
    for row in once:
        spec = row.spec
        group = Group(spec.model, spec.dim, spec.optimizer, spec.rate_schedule, spec.device)
        cells.setdefault((spec.data, group), []).append(row)
    names = series_names(dict.fromkeys(row.spec.data for row in once))
    present = {row.spec.family for row in once}
    return Study(
        cells=tuple(_cell(key, found, names[key[0]], labels) for key, found in cells.items()),
        labels={name: label for name, label in labels.items() if name in present},
        rows=tuple(once),
    )


_MODELS = {"stid": "STID", "tsmixer": "TSMixer", "graph-wavenet": "Graph WaveNet", "staeformer": "STAEformer"}
_OPTIMIZERS = {"adam": "Adam", "sgd": "SGD", "muon": "Muon"}


def group_name(group: Group) -> str:
    """For people.

    Example:
        >>> group_name(Group("stid", 16, "adam", "cosine"))
        'STID of width 16, Adam, cosine schedule'
        >>> group_name(Group("stid", 16, "sgd", "cosine", "NVIDIA H200"))
        'STID of width 16, SGD, cosine schedule, NVIDIA H200'
    """
    model, dim, optimizer, schedule, device = group
    where = "" if device == "cpu" else f", {device}"
    return f"{_MODELS.get(model, model)} of width {dim}, {_OPTIMIZERS.get(optimizer, optimizer)}, {schedule} schedule{where}"


_SET = ("r", "incidents")  # options that say what was generated


def series_names(data: Iterable[str]) -> dict[str, str]:
    """Short names of series: the last part of the path, and r and incidents that were set; all settings where two look alike.

    Example:
        >>> list(series_names(["simbench?nodes=90", "flow/data.npz", "traffic?nodes=900&r=0.1&seed=0"]).values())
        ['simbench', 'flow', 'traffic r 0.1']
    """
    options = {text: dict(split_name(text)[1]) for text in data}
    looks = {text: (_short(text, _SET), found.get("nodes")) for text, found in options.items()}
    return {
        text: look[0] if list(looks.values()).count(look) == 1 else _short(text, tuple(options[text]))
        for text, look in looks.items()
    }


def _short(text: str, shown: Sequence[str]) -> str:
    name, entries = split_name(text)
    path = pathlib.PurePath(name)
    name = path.parent.name if path.stem == "data" and path.parent.name else path.stem
    return " ".join([name, *(f"{key} {value}" for key, value in entries if key in shown)])


def _cell(key: tuple[str, Group], rows: list[Row], series: str, labels: Labels) -> Cell:
    found: dict[str, list[Result]] = {}
    for name in dict.fromkeys(name for name in labels if any(row.spec.family == name for row in rows)):
        mine = [row for row in rows if row.spec.family == name]
        costs = sorted({row.spec.cost for row in mine})
        found[name] = [result for cost in costs if (result := best([row for row in mine if row.spec.cost == cost]))]
    cost = _budget(found)
    full = found.get(FULL, [])
    rival = next((result for result in full if result.cost == cost), None)
    plain = [row for row in rows if row.spec.family == FULL and not row.diverged]
    usual = best([row for row in plain if row.spec.cost == cost and row.spec.batch_size == USUAL_BATCH])
    judged = {name: [_judged(result, full, plain) for result in results] for name, results in found.items() if results}
    families = [
        Family(
            name=name,
            label=labels[name][0],
            kind=labels[name][1],
            results=tuple(results),
            result=_nearest(results, cost, {result.cost for result in full}),
            reach=reach(results, full, cost),
            equal_time=None if name == FULL else equal_time(results, rival),
            sixth=sixth(results, usual),
        )
        for name, results in judged.items()
    ]
    return Cell(
        *key,
        series=series,
        num_nodes=rows[0].num_nodes,
        cost=cost,
        families=tuple(families),
        diverged=tuple(labels[name][0] for name, results in found.items() if not results),
        usual=usual,
        batch_gain=compare(rival, usual) if usual and rival and usual.setting != rival.setting else None,
        rows=tuple(rows),
    )


def _nearest(results: list[Result], cost: float, shared: set[float]) -> Result | None:
    found = [result for result in results if result.cost == cost or (result.cost < cost and result.cost in shared)]
    return found[-1] if found else None


def _budget(found: dict[str, list[Result]]) -> float:
    costs = {name: {result.cost for result in results} for name, results in found.items()}
    others = set().union(*(values for name, values in costs.items() if name != FULL))
    everything = others | costs.get(FULL, set())
    return max(others & costs.get(FULL, set()) or everything, default=0.0)


def _judged(result: Result, full: list[Result], plain: list[Row]) -> Result:
    """The result with its comparisons filled in."""
    rival = next((other for other in full if other.cost == result.cost and result.family != FULL), None)
    return replace(
        result,
        overhead=overhead(result, plain),
        change=compare(result, rival),
        hard_windows_change=compare(result, rival, lambda row: row.hard_windows_mae),
        hard_nodes_change=compare(result, rival, lambda row: row.hard_nodes_mae),
    )
