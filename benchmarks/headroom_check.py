"""Set what headroom predicts beside what a study measured, and append the rows to benchmarks/results/headroom.jsonl.

    python benchmarks/headroom_check.py stprune-study/rows.jsonl --note "two quiet cores"
    python benchmarks/headroom_check.py --table      # of the rows that are there

For every cell of the study (series, model, width, optimizer, schedule) the model is trained for a fifth of the budget by
node draws, nothing of the study's outcome being used; headroom then predicts the time of node draws to the best
validation MAE of the best full training, choosing among the batches and numbers of nodes that the study tried. Measured is
the same share as the study's report has it (`stprune.study.results.reach`), and, as validations are few, seed by seed with the
time at which the MAE was reached read off a straight line between the logarithms of two validations.
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

from stprune.headroom.cost import typical
from stprune.headroom.law import PAYS_BELOW
from stprune.study import machine
from stprune.study.command import LABELS
from stprune.study.grid import base_rate
from stprune.study.prediction import SHARE, predict
from stprune.study.results import Result, seconds
from stprune.study.rows import Row, read
from stprune.study.run import problem_of
from stprune.study.summary import FULL, UNIFORM, Cell, series_names, summarize

ROOT = pathlib.Path(__file__).resolve().parents[1]


def main() -> None:
    """Predict every cell of the study that has both full training and node draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=pathlib.Path, nargs="?", help="rows.jsonl of a study")
    parser.add_argument("--table", action="store_true", help="print the rows of --out as a Markdown table, and do nothing else")
    parser.add_argument("--model", help="only the cells of this model")
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
    cells = [cell for cell in cells if options.model in (None, cell.model)]
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
        "| series | nodes | model | r | predicted time | measured | by seed, between validations | off by |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(last.values(), key=lambda row: (row["model"], row["nodes"], row["r"])):
        low, high = row["predicted_interval"]
        seeds = ", ".join("never" if share is None else f"{share:.0%}" for share in row["measured_seeds"])
        measured, off = "never reached", ""
        if row["measured"] is not None:
            measured, off = f"{row['measured']:.0%}", f"{row['predicted'] / row['measured'] - 1:+.0%}"
        lines.append(
            f"| {names[row['data']]} | {row['nodes']:,} | {row['model']} | {row['r']:.3f} | "
            f"{row['predicted']:.0%} [{low:.0%}, {high:.0%}] | {measured} | {seeds} | {off} |"
        )
    return "\n".join([*lines, "", summary(list(last.values()))])


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """How far the predictions are off, in words.

    Args:
        rows: of `check`, one a cell.

    Returns:
        A paragraph.
    """
    ratios = [row["predicted"] / row["measured"] for row in rows if row["measured"] is not None]
    *rest, worst = sorted(ratios, key=lambda ratio: abs(math.log(ratio)))
    never = [row for row in rows if row["measured"] is None]
    paid = sum(row["predicted"] <= PAYS_BELOW for row in never)
    near = sum(map(_near, ratios))
    same = [row for row in rows if all(row[f"predicted_{part}"] == row[f"measured_{part}"] for part in ("full", "drawn"))]
    steps = [row["step_ratio"] / row["measured_step_ratio"] for row in same]
    others = [
        share / math.prod(shares[:i] + shares[i + 1 :]) ** (1 / (len(shares) - 1))
        for shares in (row["measured_seeds"] for row in rows if None not in row["measured_seeds"])
        for i, share in enumerate(shares)
    ]
    return (
        f"Off by at most 25% in {near} of {len(ratios)} cells, by a factor of {off_by(ratios):.1f} on the root mean square, of "
        f"{off_by([worst]):.1f} at worst ({off_by(rest):.1f} without that one). In {len(never)} more, node draws of at least "
        f"one seed never got there; a gain was predicted in {paid} of them. Batch and nodes are those of the study's best "
        f"runs in {len(same)} of {len(rows)}; there the ratio of times of a step is off by a factor of {off_by(steps):.1f}.\n"
        f"The runs themselves: what one seed measures is off by a factor of {off_by(others):.1f} from what the others measure "
        f"of the same cell, by at most 25% in {sum(_near(ratio) for ratio in others)} of {len(others)} cases."
    )


def _near(ratio: float) -> bool:
    return 0.75 <= ratio <= 1.25


def off_by(ratios: Sequence[float]) -> float:
    """The factor by which predictions are off on the root mean square, from predicted by measured.

    Example:
        >>> round(off_by([2.0, 0.5, 2.0]), 6)
        2.0
    """
    return math.exp(math.sqrt(sum(math.log(ratio) ** 2 for ratio in ratios) / len(ratios)))


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
    whole = cell.find(FULL)
    assert whole is not None
    assert cell.full is not None
    tried = [row.spec for row in cell.rows if row.spec.cost == cell.cost]
    full = sorted({spec.batch_size for spec in tried if spec.family == FULL})
    drawn = sorted({(spec.batch_size, spec.num_drawn) for spec in tried if spec.family == UNIFORM})
    spec = next(iter(nodes.result.by_seed.values())).spec
    untuned = replace(spec, learning_rate=base_rate(cell.model, cell.group.optimizer))
    found = predict(untuned, problem_of(cell.data), candidates=(full, drawn), share=share, seconds=seconds)
    times = None if found.best_times is None else typical(found.best_times.seconds)
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
        "measured_seeds": between(nodes.results, whole.results, cell.full),
        "step_ratio": None if times is None else float(times[1] / times[0]),
        "measured_step_ratio": nodes.result.time.mean / nodes.result.steps / (cell.full.time.mean / cell.full.steps),
        "measured_full": best.batch_size,
        "measured_drawn": [spec.batch_size, spec.num_drawn],
        "seeds": len(cell.full.by_seed),
    }


def between(mine: Sequence[Result], full: Sequence[Result], target: Result) -> list[float | None]:
    """Share of full training's time after which node draws reach its best validation MAE, read off between validations.

    Args:
        mine: results of node draws, one per budget.
        full: of full training, one per budget.
        target: the one of them whose best validation MAE is to be reached.

    Returns:
        The share of every seed; None where a seed never gets there.
    """
    shares = []
    for seed, row in target.by_seed.items():
        times = [
            min((at for result in some if (at := _crossing(result.by_seed.get(seed), row.best_mae)) is not None), default=None)
            for some in (mine, full)
        ]
        shares.append(None if times[0] is None else times[0] / times[1])
    return shares


def _crossing(row: Row | None, goal: float) -> float | None:
    before: tuple[float, float] | None = None
    for point in row.curve if row else ():
        time, mae = seconds(row, point), point.validation_mae
        if mae <= goal:
            if before is None:
                return time
            part = math.log(before[1] / goal) / math.log(before[1] / mae)
            return float(math.exp(math.log(before[0]) + part * math.log(time / before[0])))
        before = time, mae
    return None


if __name__ == "__main__":
    main()
