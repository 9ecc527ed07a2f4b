"""Check what `stprune headroom` predicts against what is measured, and append the rows to benchmarks/results/headroom.jsonl.

    python benchmarks/headroom_check.py --epochs 0 1 4 --note "two quiet cores"
    python benchmarks/headroom_check.py --model staeformer --data synthetic --draws 300
    python benchmarks/headroom_check.py --runs 8      # also train: full, and the predicted nodes at equal variance

Variance: the model is frozen after some epochs. Headroom predicts from 128 windows and 4 pairs of each, `predicted` with
its own bootstrap interval and `predicted_by_seed` from as many other samples of windows; measured are gradients
of other, independently drawn windows with m drawn nodes each, as training would take them. Given the model this is
deterministic, whatever the machine does meanwhile. Step times are fitted at N, N/2, ... N/32 nodes and measured at others; they
need a quiet machine, and the note says what it was.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import records
import torch
from stprune.demo import machine
from stprune.demo.data import load
from stprune.demo.feeds import PlainFeed, PrunedFeed
from stprune.demo.headroom import sample, trained
from stprune.demo.options import MODEL_DIM
from stprune.demo.train import Trainer, TrainRun
from stprune.demo.windows import prepare
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

import stprune
from stprune.headroom.cost import fit_cost, time_steps, typical
from stprune.headroom.gradients import gram, measure_gradients
from stprune.headroom.losses import LOSSES
from stprune.headroom.variance import moments

ROOT = pathlib.Path(__file__).resolve().parents[1]
BATCH = 64
WINDOWS = 128
SAMPLES = 400


def main() -> None:
    """Run the checks."""
    options = _options()
    series = load(options.data)
    problem = prepare(series, device=torch.device("cpu"))
    trainer = Trainer.of(problem, options.model, steps_per_day=series.steps_per_day)
    common = {
        "benchmark": "headroom",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": records.commit(),
        "machine": machine.describe(problem.device),
        "note": options.note,
        "data": options.data,
        "model": options.model,
        "nodes": problem.num_nodes,
    }
    rows = []
    for epochs in options.epochs:
        model = trained(trainer, epochs=epochs, batch_size=BATCH, seed=0).eval()
        rows += [{**common, "epochs": epochs, **row} for row in check_variance(problem, model, options.draws, options.seeds)]
    rows += [{**common, "epochs": options.epochs[-1], **row} for row in check_steps(problem, model)]
    if options.runs:
        rows += [{**common, **row} for row in check_runs(trainer, options.runs)]
    with pathlib.Path(options.out).open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    for row in rows:
        print({key: value for key, value in row.items() if key not in common})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="simbench")
    parser.add_argument("--model", default="stid", choices=tuple(MODEL_DIM))
    parser.add_argument("--epochs", type=int, nargs="+", default=[1], help="train so long before measuring")
    parser.add_argument("--seeds", type=int, default=1, help="predict so often, each time from other windows")
    parser.add_argument("--draws", type=int, default=1000, help="measured gradients per number of nodes")
    parser.add_argument(
        "--runs", type=int, default=0, metavar="EPOCHS", help="also compare training runs; epochs of the full one"
    )
    parser.add_argument("--note", default="", help="what the machine was doing")
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "headroom.jsonl"))
    return parser.parse_args()


def predicted(problem, model, *, seed: int):
    """Headroom's statistics of 128 windows, and their batches."""
    batches = sample(problem, batch_size=BATCH, num_windows=WINDOWS, seed=seed)
    with tqdm(total=WINDOWS, desc="predict", leave=False, disable=None) as line:
        stats = measure_gradients(
            model, batches, list(model.parameters()), loss=LOSSES["mae"], null_value=None, num_pairs=4, seed=seed,
            deadline=float("inf"), progress=line.update,
        )  # fmt: skip
    return stats, batches


def check_variance(problem, model, draws: int, seeds: int) -> list[dict[str, object]]:
    """Predicted and measured gradient variance of one window with m nodes, m from N down."""
    stats, _ = predicted(problem, model, seed=0)
    found = moments(stats)
    others = [moments(predicted(problem, model, seed=seed)[0]) for seed in range(1, seeds)]
    rng = np.random.default_rng([0, 7])
    again = [moments(stats, np.bincount(rng.integers(WINDOWS, size=WINDOWS), minlength=WINDOWS)) for _ in range(SAMPLES)]
    num_nodes = problem.num_nodes
    # Independent draws: a window may come twice, as in a population that never ends.
    ids = np.random.default_rng([1, 7]).integers(len(problem.split.train), size=draws)
    whole = window_gradients(problem, model, ids, num_nodes)
    rows = []
    full = None
    for count in sorted(
        {num_nodes, *(max(1, round(num_nodes * share)) for share in (0.5, 0.3, 0.15, 0.05, 0.02))}, reverse=True
    ):
        vectors = whole if count == num_nodes else window_gradients(problem, model, ids, count)
        squares = (vectors - vectors.mean(0)).double().square().sum(1)
        variance, error = float(squares.sum()) / (draws - 1), float(squares.std()) / draws**0.5
        full = variance if full is None else full
        prediction = float(found.variance(count))
        low, high = np.quantile([float(each.variance(count)) for each in again], [0.025, 0.975])
        rows.append(
            {
                "kind": "variance",
                "m": count,
                "draws": draws,
                "predicted": prediction,
                "predicted_by_seed": [float(each.variance(count)) for each in (found, *others)],
                "predicted_interval": [float(low), float(high)],
                "measured": variance,
                "measured_error": error,
                "predicted_to_full": prediction / float(found.variance(num_nodes)),
                "measured_to_full": variance / full,
                "r": found.r,
                "bias_to_signal": bias(vectors, whole),
            }
        )
    return rows


def window_gradients(problem, model, ids, count: int) -> torch.Tensor:
    """[draws, P] gradient of each window's loss over `count` drawn nodes, given only these."""
    parameters = list(model.parameters())
    vectors = torch.empty(len(ids), sum(p.numel() for p in parameters))
    place = 0
    with sdpa_kernel(SDPBackend.MATH), tqdm(total=len(ids), desc=f"measure {count} nodes", leave=False, disable=None) as line:
        for batch in problem.batches(problem.split.train, ids.tolist(), batch_size=BATCH):
            for x, y in zip(batch.x.split(1), batch.y.split(1), strict=True):
                node = None
                if count < problem.num_nodes:
                    # Drawn for the place, not for the window, so that a window that comes twice has other nodes.
                    node = stprune.draw_nodes(torch.tensor([place]), num_nodes=problem.num_nodes, count=count, seed=11, epoch=0)
                    x, y = stprune.gather_nodes(x, node), stprune.gather_nodes(y, node)
                loss = (model(x, node=node) - (y - problem.mean) / problem.std).abs().mean()
                vectors[place] = torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)])
                place += 1
                line.update()
    return vectors


def bias(vectors: torch.Tensor, whole: torch.Tensor) -> float:
    """Squared length of the mean gradient's error, by that of the mean gradient; unbiased, so that 0 may come out below 0."""

    def signal(some: torch.Tensor) -> float:
        products = gram(some)
        return (products.sum() - products.trace()) / (len(some) * (len(some) - 1))

    return float(signal(vectors - whole) / signal(whole))


def check_steps(problem, model) -> list[dict[str, object]]:
    """Fitted and measured seconds per window at numbers of nodes that the fit has not seen."""
    batches = sample(problem, batch_size=BATCH, num_windows=BATCH, seed=0)
    num_nodes = problem.num_nodes

    def timed(sizes, seconds):
        return time_steps(
            model.train(), batches, loss=LOSSES["mae"], null_value=None, optimizer=torch.optim.Adam, seed=0,
            deadline=time.perf_counter() + seconds, progress=lambda done: None, sizes=sizes,
        )  # fmt: skip

    first = timed(None, 20.0)
    cost = fit_cost(first.sizes, typical(first.seconds))
    others = np.array([max(1, round(share * num_nodes)) for share in (0.1, 0.3, 0.7, 1.0)])
    seconds = typical(timed(others, 20.0).seconds)
    return [
        {
            "kind": "step",
            "m": int(count),
            "fitted_to_full": float(cost.at(int(count)) / cost.at(num_nodes)),
            "measured_to_full": float(value / seconds[-1]),
            "fitted_seconds": float(cost.at(int(count))),
            "measured_seconds": float(value),
        }
        for count, value in zip(others, seconds, strict=True)
    ]


def check_runs(trainer: Trainer, epochs: int) -> list[dict[str, object]]:
    """Train on all nodes, and on the predicted number of nodes for as many epochs as equal variance takes."""
    problem = trainer.problem
    model = trained(trainer, epochs=1, batch_size=BATCH, seed=0)
    batches = sample(problem, batch_size=BATCH, num_windows=WINDOWS, seed=0)
    found = stprune.headroom(model, batches, seconds=60.0)
    longer = round(epochs * found.nodes.variance)
    feeds = {
        "full": PlainFeed(problem, batch_size=BATCH, num_epochs=epochs, seed=0),
        "nodes": PrunedFeed(
            problem,
            method="full",
            num_epochs=longer,
            keep_ratio=1.0,
            node_ratio=found.nodes.node_ratio,
            batch_size=BATCH,
            seed=0,
        ),
    }
    runs = {name: TrainRun(name, trainer, feed, seed=0) for name, feed in feeds.items()}
    rounds = tqdm(range(longer), desc="runs", leave=False, disable=None)
    for turn in rounds:
        for run in runs.values():
            # Taking turns at equal progress, so that a busy hour hits both alike.
            while run.progress < min(1.0, (turn + 1) / longer) - 1e-9:
                run.run_epoch()
    rows = []
    for name, run in runs.items():
        record = run.finish()
        rows.append(
            {
                "kind": "run",
                "run": name,
                "m": found.nodes.num_drawn if name == "nodes" else problem.num_nodes,
                "epochs": len(record.epochs),
                "seconds": record.seconds,
                "cpu_seconds": record.cpu_seconds,
                "validation_mae": min(each.validation_mae for each in record.epochs),
                "test_mae": record.test.mae,
                "predicted_cost": found.nodes.cost if name == "nodes" else 1.0,
                "predicted_interval": list(found.nodes.interval) if name == "nodes" else [1.0, 1.0],
            }
        )
    return rows


if __name__ == "__main__":
    main()
