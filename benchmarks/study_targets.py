"""What a study says about the targets of its issue: each met or missed, with the numbers.

    python benchmarks/study_targets.py rows.jsonl > targets.md

The family that stands for drawing nodes is "nodes-uniform". Means of ratios are geometric. A series whose target validation MAE
was never reached misses the targets of time.
"""

from __future__ import annotations

import pathlib
import statistics
import sys
from collections.abc import Callable, Sequence

from stprune.study.command import LABELS
from stprune.study.results import Change
from stprune.study.rows import read
from stprune.study.sentences import MANY_NODES, percent, signed
from stprune.study.summary import FULL, UNIFORM, Cell, Study, summarize

FEW_NODES = (80, 300)
HUGE = 8_000  # the issue says 8,600
RIVALS = (UNIFORM, "nodes-batch", "nodes-partition", "nodes-frequency")
NOT_RUN = "not run"
Verdict = tuple[str, str, str]  # claim, "met", "missed" or "not run", the numbers


def targets(study: Study) -> list[Verdict]:
    """Every target of the issue that rows can decide.

    Args:
        study: of any number of cells.

    Returns:
        Claim, verdict and numbers.
    """
    cells = [cell for cell in study.cells if cell.full and cell.find(UNIFORM)]
    many = [cell for cell in cells if cell.num_nodes >= MANY_NODES]
    few = [cell for cell in cells if FEW_NODES[0] <= cell.num_nodes <= FEW_NODES[1]]
    return [
        _times(f"{MANY_NODES} nodes or more: >= 4x less time to full training's best, mean", many, 4.0, mean=True),
        _times(f"{HUGE:,} nodes or more: >= 6x less", [cell for cell in many if cell.num_nodes >= HUGE], 6.0, mean=True),
        _times(f"{FEW_NODES[0]} to {FEW_NODES[1]} nodes: never more time", few, 1.0, mean=False),
        *(_equal_time(model, [cell for cell in many if cell.model == model]) for model in _models(many)),
        _changes("a sixth of the usual cost: within 3%", cells, lambda c: c.find(UNIFORM).sixth, lambda c: c.mean <= 3.0),
        _changes("the same by a smaller batch alone", cells, lambda c: c.find(FULL).sixth, lambda c: c.mean <= 3.0),
        _sampler(cells),
        _changes("hardest 5% of the windows: not worse", cells, lambda c: _result(c).hard_windows_change, _not_worse),
        _changes("hardest 5% of the nodes: not worse", cells, lambda c: _result(c).hard_nodes_change, _not_worse),
        *(_overhead(name, study) for name in study.labels if name not in (FULL, "even-windows")),
    ]


def _models(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.model for cell in cells))


def _result(cell: Cell):
    return cell.find(UNIFORM).result


def _not_worse(change: Change) -> bool:
    return not change.worse


def _name(cell: Cell) -> str:
    return f"{cell.series} {cell.num_nodes:,} {cell.model}"


def _times(claim: str, cells: Sequence[Cell], least: float, *, mean: bool) -> Verdict:
    if not cells:
        return claim, NOT_RUN, ""
    reached = {_name(cell): 1 / cell.find(UNIFORM).reach.time for cell in cells if cell.find(UNIFORM).reach}
    never = [_name(cell) for cell in cells if not cell.find(UNIFORM).reach]
    average = statistics.geometric_mean(reached.values()) if reached else 0.0
    met = not never and (average if mean else min(reached.values())) >= least
    texts = [f"mean {average:.2f}x", *(f"{name} {ratio:.2f}x" for name, ratio in reached.items())]
    return claim, "met" if met else "missed", "; ".join([*texts, *(f"{name} never" for name in never)])


def _equal_time(model: str, cells: Sequence[Cell]) -> Verdict:
    claim = f"{MANY_NODES} nodes or more, {model}: lower MAE in equal time, outside the seed spread"
    return _changes(claim, cells, lambda c: c.find(UNIFORM).equal_time, lambda c: c.better)


def _changes(
    claim: str, cells: Sequence[Cell], change_of: Callable[[Cell], Change | None], met: Callable[[Change], bool]
) -> Verdict:
    found = {_name(cell): change for cell in cells if (change := change_of(cell))}
    if not found:
        return claim, NOT_RUN, ""
    good = sum(met(change) for change in found.values())
    numbers = "; ".join(f"{name} {percent(change)}" for name, change in found.items())
    return claim, "met" if good == len(found) else "missed", f"{good} of {len(found)}: {numbers}"


def _sampler(cells: Sequence[Cell]) -> Verdict:
    claim = f"best node sampler beats {', '.join(RIVALS)} on the mean, or uniform stays the default"
    kinds = {name: kind for cell in cells for name, kind in ((f.name, f.kind) for f in cell.families)}
    names = [name for name, kind in kinds.items() if kind == "nodes"]
    # Only the cells that all of them have, as a mean over other cells would compare series.
    shared = [cell for cell in cells if all(_change(cell, name) for name in names)]
    if not shared:
        return claim, NOT_RUN, "no series has all of them"
    means = {name: statistics.fmean(_change(cell, name).mean for cell in shared) for name in names}
    order = sorted(means, key=means.__getitem__)
    verdict = "missed" if order[0] in RIVALS[1:] else "met" if order[0] != UNIFORM else "uniform stays the default"
    return claim, verdict, f"over {len(shared)}: " + "; ".join(f"{name} {signed(means[name])}" for name in order)


def _change(cell: Cell, name: str) -> Change | None:
    family = cell.find(name)
    return family.result.change if family and family.result else None


def _overhead(name: str, study: Study) -> Verdict:
    found = [cell.find(name) for cell in study.cells]
    shares = [f.result.overhead for f in found if f and f.result and f.result.overhead is not None]
    if not shares:
        return f"overhead of {name}: <= 0", NOT_RUN, ""
    numbers = f"mean {statistics.fmean(shares):.1f}%, {min(shares):.1f}% to {max(shares):.1f}% of the run"
    return f"overhead of {name}: <= 0", "met" if max(shares) <= 0 else "missed", numbers


def main() -> None:
    """Print the targets as a Markdown table."""
    rows = [row for path in sys.argv[1:] for row in read(pathlib.Path(path))]
    print("| target | verdict | numbers |\n| --- | --- | --- |")
    for line in targets(summarize(rows, LABELS)):
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
