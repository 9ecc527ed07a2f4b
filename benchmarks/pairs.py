"""One epoch of 301,000,000 (window, node) pairs: planned and iterated, with the memory that takes.

    python benchmarks/pairs.py                  # uniform law and score law, keeps 10%
    python benchmarks/pairs.py --pairs 4.5e9 --only uniform

LargeST California has 8,600 nodes; 35,000 of its windows are 301 million pairs, five years at 5 minutes 4.5 * 10^9. Each law
runs in a process of its own; its peak resident memory counts Python and torch as well. Rows are appended to
benchmarks/results/pairs.jsonl.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import pathlib
import resource
import time

import torch
from tqdm import tqdm

import stprune
from stprune.study import machine

NUM_NODES = 8600
BATCH = 16384
LAWS = {"uniform": "soft-random", "score": "st-prune"}
ROOT = pathlib.Path(__file__).resolve().parents[1]


def main() -> None:
    """Run the laws one after the other and append a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=float, default=3.01e8, help="how many, rounded to whole windows of 8,600 nodes")
    parser.add_argument("--keep-ratio", type=float, default=0.1)
    parser.add_argument("--only", choices=LAWS, help="one law instead of both")
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results"))
    options = parser.parse_args()
    windows = round(options.pairs / NUM_NODES)
    out = pathlib.Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    for law in [options.only] if options.only else LAWS:
        # A fresh process: peak memory is of its whole life.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measure, (law, windows, options.keep_ratio))
        with (out / "pairs.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"{law}: {row['pairs']:,} pairs, {row['kept']:,} kept; planned in {row['plan_s']:.2f} s, iterated in "
            f"{row['iterate_s']:.2f} s ({row['million_ids_per_s']:.0f} million ids a second); peak {row['peak_gib']:.2f} GiB, "
            f"{row['above_start_gib']:.2f} GiB above the start"
        )


def measure(law: str, windows: int, keep_ratio: float) -> dict[str, object]:
    """One epoch of one law: plan it, then walk through all batches with their windows and nodes."""
    start = peak()
    sampler = stprune.PruningSampler(
        windows,
        num_epochs=4,
        keep_ratio=keep_ratio,
        method=LAWS[law],
        schedule="none",
        num_nodes=NUM_NODES,
        granularity="pair",
    )
    if law == "score":
        _score_everything(sampler)
    began = time.perf_counter()
    sampler.set_epoch(1)
    first = next(iter(sampler.batches(BATCH)))
    planned = time.perf_counter()
    kept = total = 0
    for ids in tqdm(sampler.batches(BATCH), desc=f"{law}: batches", leave=False):
        index = torch.from_numpy(ids)
        window, node = sampler.windows(index), sampler.nodes(index)
        kept += len(ids)
        total += int(window[0]) + int(node[0, 0])
    iterated = time.perf_counter() - planned
    assert kept == len(sampler)
    assert total >= int(first.min())
    return {
        "law": law,
        "pairs": windows * NUM_NODES,
        "kept": kept,
        "batch": BATCH,
        "plan_s": planned - began,
        "iterate_s": iterated,
        "million_ids_per_s": kept / iterated / 1e6,
        "peak_gib": peak(),
        "above_start_gib": peak() - start,
        "machine": machine.describe(torch.device("cpu")),
        "measured": datetime.date.today().isoformat(),
    }


def _score_everything(sampler: stprune.PruningSampler) -> None:
    """As a full first epoch would leave the table: a log-normal score for every pair."""
    generator = torch.Generator().manual_seed(0)
    step = 1 << 22
    for first in tqdm(range(0, sampler.table.num_samples, step), desc="scores", leave=False):
        index = torch.arange(first, min(first + step, sampler.table.num_samples))
        sampler.update(index, torch.randn(len(index), generator=generator).exp_())


def peak() -> float:
    """Largest resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
