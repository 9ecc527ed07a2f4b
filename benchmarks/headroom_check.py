"""Set what headroom predicts beside what a study measured, and append the rows to benchmarks/results/headroom.jsonl.

    python benchmarks/headroom_check.py stprune-study/rows.jsonl --note "two quiet cores"
    python benchmarks/headroom_check.py --table      # of the rows that are there

For every cell of the study (series, model, width, optimizer, schedule) the model is trained for a fifth of the budget by
node draws, nothing of the study's outcome being used; headroom then predicts the time of node draws to the best
validation MAE of the best full training, choosing among the batches and numbers of nodes that the study tried. Measured is
the same share as the study's report has it (`stprune.study.results.reach`), and, as validations are few, with the time at
which the MAE was reached read off a straight line between the logarithms of two validations.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import pathlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import records
import torch
from tqdm import tqdm

from stprune.study import machine
from stprune.study.command import LABELS
from stprune.study.grid import base_rate
from stprune.study.prediction import SHARE, predict
from stprune.study.results import Result
from stprune.study.rows import read
from stprune.study.run import problem_of
from stprune.study.summary import FULL, UNIFORM, Cell, series_names, summarize

ROOT = pathlib.Path(__file__).resolve().parents[1]


def main() -> None:
    """Predict every cell of the study that has both full training and node draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=pathlib.Path, nargs="?", help="rows.jsonl of a study")
    parser.add_argument("--table", action="store_true", help="print the rows of --out as a Markdown table, and do nothing else")
    parser.add_argument("--share", type=float, default=SHARE, help="of the budget that is trained before measuring")
    parser.add_argument("--seconds", type=float, default=60.0, help="that a measurement may take")
    parser.add_argument("--note", default="", help="what the machine was doing")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benchmarks" / "results" / "headroom.jsonl")
    options = parser.parse_args()
    if options.table:
        print(table([json.loads(line) for line in options.out.read_text().splitlines()]))
        return
    if options.rows is None:
        parser.error("rows must be given, got none")
    torch.set_num_threads(1)  # as the study's runs
    cells = [cell for cell in summarize(read(options.rows), LABELS).cells if cell.full and cell.find(UNIFORM)]
    for cell in tqdm(cells, desc="cells", disable=None):
        row = {
            "benchmark": "headroom",
            "kind": "prediction",
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "commit": records.commit(),
            "machine": machine.describe(torch.device("cpu")),
            "note": options.note,
            **check(cell, share=options.share, seconds=options.seconds),
        }
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print({name: value for name, value in row.items() if name not in ("machine", "note", "commit", "benchmark", "date")})


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The last prediction of every cell beside the measurement, as a Markdown table.

    Args:
        rows: of `check`.

    Returns:
        Lines; no final newline.
    """
    last = {(row["data"], row["model"], row["dim"], row["cost"]): row for row in rows}
    names = series_names(dict.fromkeys(row["data"] for row in last.values()))
    lines = [
        "| series | nodes | model | r | predicted time | measured | off by |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(last.values(), key=lambda row: (row["model"], row["nodes"])):
        low, high = row["predicted_interval"]
        measured, off = "never reached", ""
        if row["measured"] is not None:
            measured, off = f"{row['measured']:.0%}", f"{row['predicted'] / row['measured'] - 1:+.0%}"
        lines.append(
            f"| {names[row['data']]} | {row['nodes']:,} | {row['model']} | {row['r']:.3f} | "
            f"{row['predicted']:.0%} [{low:.0%}, {high:.0%}] | {measured} | {off} |"
        )
    return "\n".join(lines)


def check(cell: Cell, *, share: float, seconds: float) -> dict[str, object]:
    """Prediction and measurement of one cell.

    Args:
        cell: with full training and uniform node draws at its budget.
        share: of the budget that is trained before measuring.
        seconds: that the measurement may take.

    Returns:
        The values of a row.
    """
    nodes = cell.find(UNIFORM)
    assert nodes is not None
    assert nodes.result is not None
    assert cell.full is not None
    tried = [row.spec for row in cell.rows if row.spec.cost == cell.cost]
    full = sorted({spec.batch_size for spec in tried if spec.family == FULL})
    drawn = sorted({(spec.batch_size, spec.num_drawn) for spec in tried if spec.family == UNIFORM})
    spec = next(iter(nodes.result.by_seed.values())).spec
    untuned = replace(spec, learning_rate=base_rate(cell.model, cell.group.optimizer))
    found = predict(untuned, problem_of(cell.data), candidates=(full, drawn), share=share, seconds=seconds)
    best = next(iter(cell.full.by_seed.values())).spec
    return {
        "data": cell.data,
        "model": cell.model,
        "dim": cell.group.dim,
        "nodes": cell.num_nodes,
        "cost": cell.cost,
        "share": share,
        "r": found.r,
        "noise": float(found.law.gradient.noise(1, found.num_nodes)),
        "predicted": found.time_ratio,
        "predicted_interval": list(found.interval),
        "predicted_full": found.best_full_batch,
        "predicted_drawn": list(found.best_drawn),
        "measured": nodes.reach.time if nodes.reach else None,
        "measured_cost": nodes.reach.cost if nodes.reach else None,
        "measured_between": between(nodes.results, cell.full),
        "measured_full": best.batch_size,
        "measured_drawn": [spec.batch_size, spec.num_drawn],
        "seeds": len(cell.full.by_seed),
    }


def between(mine: Sequence[Result], full: Result) -> float | None:
    """Share of the pairs after which node draws reach full training's best validation MAE, read off between validations.

    Args:
        mine: results of node draws, one per budget.
        full: of full training; the pairs that it takes are those at which it first had its best MAE.

    Returns:
        The mean over seeds; None where a seed never gets there.
    """
    shares = []
    for seed, row in full.by_seed.items():
        whole = next(point.cost for point in row.curve if point.validation_mae <= row.best_mae)
        curves = [result.by_seed[seed].curve for result in mine if seed in result.by_seed]
        crossed = [at for curve in curves if (at := _crossing(curve, row.best_mae)) is not None]
        if not crossed:
            return None
        shares.append(min(crossed) / whole)
    return sum(shares) / len(shares)


def _crossing(curve: Sequence[tuple[float, ...]], goal: float) -> float | None:
    before: tuple[float, float] | None = None
    for cost, *_, mae in curve:
        if mae <= goal:
            if before is None:
                return cost
            part = math.log(before[1] / goal) / math.log(before[1] / mae)
            return float(math.exp(math.log(before[0]) + part * math.log(cost / before[0])))
        before = cost, mae
    return None


if __name__ == "__main__":
    main()
