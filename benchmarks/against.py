"""Time two checkouts against each other, in processes that take turns: what a change made faster or slower.

    python benchmarks/against.py OLD_CHECKOUT OLD_LIBRARY_FOLDER NEW_CHECKOUT NEW_LIBRARY_FOLDER
    python benchmarks/against.py --rounds 5 --threads 2 ...

A checkout is a folder with `stprune/` in it, a library folder the one with its `_C.so`. The ratio is that of medians over the
rounds of each process's medians. A row for each job and side goes to benchmarks/results/against-cpu.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from tqdm import tqdm

N = 10_000_000
Job = tuple[str, Callable[[], object]]


def selection() -> Iterator[Job]:
    """The ops on 10^7 items, into buffers of the caller's."""
    import stprune

    generator = torch.Generator().manual_seed(0)
    keys, chance = torch.empty(N).log_normal_(generator=generator), torch.rand(N, generator=generator)
    ids, weights, half = torch.empty(N, dtype=torch.int64), torch.empty(N), torch.arange(N // 2)
    key, order = {"seed": 1, "epoch": 2}, torch.empty_like(half)
    yield "one pass", keys.sum
    yield "select n/2", lambda: stprune.select(keys, N // 2)
    yield "select n/2, out=", lambda: stprune.select(keys, N // 2, out=ids)
    yield "select n/10, out=", lambda: stprune.select(keys, N // 10, out=ids)
    yield "topk 10^4", lambda: stprune.topk(keys, 10_000)
    yield "draw, out=", lambda: stprune.draw(chance, **key, out=ids)
    yield "draw_weighted n/2, out=", lambda: stprune.draw_weighted(keys, N // 2, **key, out=(ids, weights))
    yield "draw_threshold, out=", lambda: stprune.draw_threshold(keys, 0.5, **key, out=(ids, weights))
    yield "shuffle n/2, out=", lambda: stprune.shuffle(half, **key, out=order)
    yield "permute n/2", lambda: stprune.permute(N // 2, 0, N // 2, **key)
    for method, strata in (("infobatch", None), ("st-prune", None), ("st-prune", torch.arange(N) % 24), ("soft-random", None)):
        sampler = stprune.PruningSampler(N, num_epochs=10**6, method=method, schedule="none", strata=strata)
        sampler.table.update(torch.arange(N), keys)
        epochs = iter(range(1, 10**6))
        name = f"set_epoch {method}{'' if strata is None else ', 24 strata'}"
        yield name, lambda sampler=sampler, epochs=epochs: sampler.set_epoch(next(epochs))
    yield "5 * 10^6 ids in batches of 64", lambda: [None for _ in sampler.batches(64)]


def training() -> Iterator[Job]:
    """Losses, the table's update, and an epoch of WindowLoader."""
    import stprune

    for shape in ((64, 12, 170), (64, 12, 8600), (16, 12, 2000, 3)):
        for null_value in (0.0, None):
            sampler = stprune.PruningSampler(64, num_epochs=4)
            sampler.set_epoch(0)
            criterion, index = stprune.PrunedLoss(sampler, null_value=null_value), torch.arange(shape[0])
            x, y = torch.rand(shape, requires_grad=True), torch.rand(shape)
            name = f"{shape}{'' if null_value is None else ', masked'}"
            yield f"PrunedLoss {name}", lambda c=criterion, x=x, y=y, i=index: c(x, y, i)
            yield f"PrunedLoss and backward {name}", lambda c=criterion, x=x, y=y, i=index: torch.autograd.grad(c(x, y, i), x)
    table = stprune.ScoreTable(N)
    for batch in (64, 16384):
        ids, scores = torch.randperm(N, generator=torch.Generator().manual_seed(0))[:batch], torch.rand(batch)
        yield f"table update of {batch}", lambda ids=ids, scores=scores: table.update(ids, scores)
    for nodes in (170, 716):
        sampler = stprune.PruningSampler(2000 - 23, num_epochs=2, method="full")
        loader = stprune.WindowLoader(torch.randn(2000, nodes, 1), sampler, batch_size=64)
        yield f"WindowLoader, {nodes} nodes, 31 batches", lambda loader=loader: [None for _ in loader]
    series = torch.rand(35040, 170, 1)
    yield "window_stats 35,040 x 170", lambda: stprune.window_stats(series, history=12, horizon=12)


def median_ms(call: Callable[[], object], seconds: float = 0.5) -> float:
    """Median of at least five calls, after two that warm up."""
    for _ in range(2):
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3


def main() -> int:
    """Take turns, print a table, append the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", help="OLD_CHECKOUT OLD_LIBRARY_FOLDER NEW_CHECKOUT NEW_LIBRARY_FOLDER")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", action="store_true", help="time the package that is imported here and print its medians")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        print(json.dumps({name: median_ms(call) for jobs in (selection(), training()) for name, call in jobs}))
        return 0
    import records

    sides = {"old": options.folders[:2], "new": options.folders[2:]}
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in tqdm(range(options.rounds), unit="round"):
        for side, (checkout, library) in sides.items():
            kept = {name: value for name, value in os.environ.items() if not name.startswith(("STPRUNE", "PYTHONPATH"))}
            kept |= {"PYTHONPATH": checkout, "STPRUNE_LIBRARY_DIR": library, "OMP_WAIT_POLICY": "passive"}
            command = [sys.executable, "-W", "ignore", __file__, "--child", "--threads", str(options.threads)]
            output = subprocess.run(command, env=kept, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[side].append(json.loads(output.splitlines()[-1]))
    heads = {}
    for side, (checkout, _) in sides.items():
        command = ["git", "-C", checkout, "rev-parse", "--short", "HEAD"]
        heads[side] = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    rows = []
    for job in found["old"][0]:
        medians = {side: statistics.median(one[job] for one in found[side]) for side in sides}
        print(f"{job:44} {medians['old']:9.3f} ms {medians['new']:9.3f} ms {medians['new'] / medians['old']:6.2f}")
        for side in sides:
            row = {"job": job, "threads": options.threads, "contender": side, "runs": options.rounds}
            row["median_ms"] = medians[side]
            rows.append(row | records.machine(torch.device("cpu"), "default") | {"commit": heads[side]})
    records.keep(pathlib.Path(__file__).resolve().parent / "results" / "against-cpu.jsonl", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
