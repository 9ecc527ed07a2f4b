"""Rows of a study: one JSON object a line, appended as runs finish."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from stprune.study.spec import Spec


class Point(NamedTuple):
    """State of a run at a validation.

    Attributes:
        cost: pairs trained on so far, as a multiple of the pairs of the training part.
        steps: optimizer steps so far.
        seconds: wall time of training so far, validation not counted.
        cpu_seconds: processor time of the same.
        validation_mae: on the validation windows, all nodes, in the series' unit.
    """

    cost: float
    steps: int
    seconds: float
    cpu_seconds: float
    validation_mae: float


@dataclass(frozen=True)
class Row:
    """Outcome of one run: its spec, and what was measured.

    Attributes:
        spec: what was asked.
        num_nodes: nodes of the series.
        num_windows: windows of the training part.
        cost: pairs trained on by pairs of the training part, as it came out.
        pairs, windows, steps: (window, node) pairs and windows trained on, repeats counted; optimizer steps.
        seconds, cpu_seconds: of training, planning and scoring included, validation not. A run has one thread.
        plan_seconds: of `seconds`, deciding what to train on: plans, draws of nodes.
        loss_seconds: of `seconds`, loss, scores and table update, forward only.
        num_bytes: bytes that the steps needed: the history of all nodes that were computed, and the horizon of those that enter
            the loss ("nodes-roots" computes neighbours that do not).
        best_mae: lowest validation MAE; the test errors are those of the weights that had it.
        mae, rmse, mape: test errors over all windows and nodes of the test part; mape in %.
        horizon_mae: test MAE of every predicted step.
        hard_windows_mae: mean MAE of the 5% of the test windows with the largest MAE.
        hard_nodes_mae: the same of nodes.
        curve: validations in the order of training.
        diverged: the loss became NaN or infinite, and the run ended there.
        machine: processor and versions.
        date: ISO 8601, UTC.
    """

    spec: Spec
    num_nodes: int
    num_windows: int
    cost: float
    pairs: int
    windows: int
    steps: int
    seconds: float
    cpu_seconds: float
    plan_seconds: float
    loss_seconds: float
    num_bytes: int
    best_mae: float
    mae: float
    rmse: float
    mape: float
    horizon_mae: tuple[float, ...]
    hard_windows_mae: float
    hard_nodes_mae: float
    curve: tuple[Point, ...]
    diverged: bool
    machine: dict[str, Any]
    date: str

    def as_json(self) -> str:
        """The row as one line, numbers unrounded."""
        values = asdict(self)
        values["curve"] = [list(point) for point in self.curve]
        return json.dumps({"key": self.spec.key, **values.pop("spec"), "spent": values.pop("cost"), **values})

    @classmethod
    def from_json(cls, line: str) -> Row:
        """The row of a line that `as_json` wrote."""
        values = json.loads(line)
        own = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        own["curve"] = tuple(Point(*point) for point in values["curve"])
        own["horizon_mae"] = tuple(values["horizon_mae"])
        return cls(**{**own, "spec": Spec.of(values), "cost": values["spent"]})


def read(path: pathlib.Path) -> list[Row]:
    """All whole rows of a file; none where there is no file. A last line that was cut off by a kill is left out.

    Raises:
        ValueError: another line is not a row.
    """
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else [""]
    rows = []
    for number, line in enumerate(lines[:-1], start=1):  # what stands behind the last line break is no whole row
        try:
            rows.append(Row.from_json(line))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: line {number} must be a row of a study, got {line[:60]!r} ({error})") from None
    return rows


def append(path: pathlib.Path, rows: Iterable[Row]) -> None:
    """Append rows, and return when they are on disk; a last line that was cut off is removed first."""
    with path.open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        if size and file.read() != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write("".join(f"{row.as_json()}\n" for row in rows).encode())
        file.flush()
        os.fsync(file.fileno())
