"""Random against cluster draws for a graph model, on a real series with a known graph.

    python benchmarks/graph_draws.py ../shared/data/LosLoop_METRLA_week1/data.npz --epochs 15 --seeds 2

A graph convolution sees only the drawn nodes' part of the adjacency. Cluster draws keep neighbours together, and so the edges;
random draws break them, but their nodes repeat each other less. All runs take as many steps; every model is evaluated on all
nodes with the whole graph.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import pathlib
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import records
import torch
from tqdm import tqdm

import stprune
from stprune.demo import machine
from stprune.demo.data import load
from stprune.demo.train import GRADIENT_CLIP, WEIGHT_DECAY, rate_at
from stprune.demo.windows import Problem, prepare
from stprune.models import GraphConv

ROOT = pathlib.Path(__file__).resolve().parents[1]
BATCH = 64
LEARNING_RATE = 2e-3
DIM = 16


def main() -> None:
    """Train every way with every seed."""
    options = _options()
    series = load(options.data)
    with np.load(options.data) as file:
        adjacency = torch.from_numpy(file["adj"]).float()
    problem = prepare(series, device=torch.device("cpu"))
    ways = {
        "all nodes": (1.0, None),
        "random": (options.node_ratio, None),
        "one cluster": (options.node_ratio, stprune.Cluster(adjacency)),
        "clusters of 8": (options.node_ratio, stprune.Cluster(adjacency, cluster_size=8)),
    }
    common = {
        "benchmark": "graph_draws",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": records.commit(),
        "machine": machine.describe(problem.device),
        "note": options.note,
        "data": pathlib.Path(options.data).parent.name,
        "nodes": problem.num_nodes,
        "edges": int((adjacency != 0).sum() - (adjacency.diagonal() != 0).sum()),
        "train_windows": len(problem.split.train),
        "epochs": options.epochs,
    }
    rows = []
    bar = tqdm(total=len(ways) * options.seeds * options.epochs, disable=None)
    for seed in range(options.seeds):
        for name, (ratio, law) in ways.items():
            bar.set_description(f"{name}, seed {seed}")
            row = train(problem, adjacency, name, ratio, law, epochs=options.epochs, seed=seed, tick=bar.update)
            rows.append({**common, "draw": name, "node_ratio": ratio, "seed": seed, **row})
    bar.close()
    with pathlib.Path(options.out).open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    for name in ways:
        some = [row for row in rows if row["draw"] == name]
        means = {
            key: np.mean([row[key] for row in some]) for key in ("edges_kept", "validation_mae", "test_mae", "cpu_seconds")
        }
        print(f"{name:14}", {key: round(float(value), 4) for key, value in means.items()})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="an .npz with `data` [time, node, channel] and `adj` [node, node]")
    parser.add_argument("--node-ratio", type=float, default=0.3)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--note", default="", help="what the machine was doing")
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "graph_draws.jsonl"))
    return parser.parse_args()


def edges_kept(adjacency: torch.Tensor, node: torch.Tensor) -> float:
    """Share of the drawn nodes' edges (loops aside) whose other end is drawn as well.

    Args:
        adjacency: [N, N]; what is not 0 is an edge.
        node: [B, m] int64.
    """
    edges = (adjacency != 0).fill_diagonal_(False).double()
    inside = edges[node[:, :, None], node[:, None, :]].sum()
    return float(inside / edges[node].sum())


def train(
    problem: Problem,
    adjacency: torch.Tensor,
    name: str,
    node_ratio: float,
    law: object,
    *,
    epochs: int,
    seed: int,
    tick,
) -> dict[str, object]:
    """One run: edges kept, errors of the best-validation weights, seconds."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = GraphConv(adjacency, dim=DIM)
    settings = {} if law is None else {"node_sampler": law}
    sampler = stprune.PruningSampler(
        len(problem.split.train),
        num_epochs=epochs,
        keep_ratio=1.0,
        method="full",
        seed=seed,
        num_nodes=problem.num_nodes,
        node_ratio=node_ratio,
        **settings,
    )
    criterion = stprune.PrunedLoss(sampler, spatial=0.0, temporal=0.0, null_value=None if problem.complete else math.nan)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    steps = epochs * math.ceil(len(problem.split.train) / BATCH)
    done, kept, seconds, cpu, best, test = 0, [], 0.0, 0.0, math.inf, math.nan
    for epoch in range(epochs):
        wall, process = time.perf_counter(), time.process_time()
        sampler.set_epoch(epoch)
        for batch in problem.batches(problem.split.train, sampler, batch_size=BATCH):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * rate_at(done / steps)
            prediction = model(batch.x, node=batch.node) * problem.std + problem.mean
            loss = criterion(prediction, batch.y, batch.index, batch.node)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
            optimizer.step()
            done += 1
        seconds, cpu = seconds + time.perf_counter() - wall, cpu + time.process_time() - process
        if node_ratio < 1:
            kept.append(edges_kept(adjacency, sampler.nodes(torch.arange(256))))
        validation = evaluate(problem, model, problem.split.validation)
        if validation < best:
            best, test = validation, evaluate(problem, model, problem.split.test)
        tick()
    return {
        "m": sampler.nodes(torch.arange(1)).shape[1],
        "edges_kept": float(np.mean(kept)) if kept else 1.0,
        "validation_mae": best,
        "test_mae": test,
        "steps": done,
        "seconds": seconds,
        "cpu_seconds": cpu,
    }


def evaluate(problem: Problem, model: torch.nn.Module, part) -> float:
    """MAE on all nodes, with the whole graph, in the series' unit."""
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in problem.batches(part, batch_size=256):
            error = (model(batch.x) * problem.std + problem.mean - batch.y).abs()
            seen = torch.isfinite(batch.y)
            total += float(torch.where(seen, error, 0.0).sum(dtype=torch.float64))
            count += int(seen.sum())
    return total / count


if __name__ == "__main__":
    main()
