"""What an epoch change costs where the table is spread over ranks: bytes, messages, memory, counted and scaled on paper.

    python benchmarks/ranks.py                       # 10^7 samples on 2 processes over gloo; about two minutes
    python benchmarks/ranks.py --samples 1e6 --ranks 4 --no-keep

Each process trains an epoch (scores are made up), then counts everything that `set_epoch` of the next one hands to
torch.distributed. `on_paper` states the same numbers as formulas of samples, ranks and keep ratio; a test holds it to a count.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import pathlib
import tempfile
import time
from typing import Any

import records
import torch
from torch import distributed, multiprocessing

import stprune
from stprune.reference.finite_stats import BLOCK

RESULTS = pathlib.Path(__file__).resolve().parent / "results" / "ranks-cpu.jsonl"
SUMS = 8
"""Sums in a fixed order in an epoch change: the aged table's mean, about six trial constants of eq. 7, the weights' mean."""


class Counted:
    """While open, notes every collective: its name, and the bytes that this rank sends to others in it.

    All-reduce by a ring sends each byte twice; all-gather by a ring passes every other rank's message on.
    """

    def __init__(self, ranks: int, rank: int) -> None:
        self.ranks, self.rank, self.calls = ranks, rank, []

    def __enter__(self) -> Counted:
        self.true = {name: getattr(distributed, name) for name in ("all_reduce", "all_gather", "all_to_all_single")}
        for name in self.true:
            setattr(distributed, name, self.counting(name))
        return self

    def counting(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            others = self.ranks - 1
            if name == "all_reduce":
                sent = 2 * arguments[0].nbytes * others / self.ranks
            elif name == "all_gather":
                sent = arguments[1].nbytes * others
            elif len(arguments) > 2:
                message, gives = arguments[1], arguments[3]
                sent = (sum(gives) - gives[self.rank]) * message[:1].nbytes if len(message) else 0
            else:
                sent = arguments[1].nbytes * others / self.ranks
            self.calls.append((name, sent))
            return self.true[name](*arguments, **options)

        return call

    def __exit__(self, *_: object) -> None:
        for name, collective in self.true.items():
            setattr(distributed, name, collective)


def on_paper(samples: float, ranks: int, keep_ratio: float) -> dict[str, float]:
    """Bytes per rank of an epoch change in the middle of a run with st-prune: sent to other ranks, and held.

    Sent: 24 bytes (place in the order, id, weight, score) for each sample that the rank owns and another trains on; 12 (id,
    score) for each that it trained on and another owns; 256 KiB of sample, reduced; and for each of SUMS sums up to two nodes
    a level of the tree over all blocks, 24 bytes each, to every rank.
    Held on a CPU: 5 bytes (score, mark) for each own sample, 12 (id, weight) for each own sample in the plan, and 25 for each
    that it trains on (id in the order, id in ascending order, weight, score, mark).
    """
    own, trained = samples / ranks, keep_ratio * samples / ranks
    away = (ranks - 1) / ranks
    nodes = 2 * math.ceil(samples / BLOCK).bit_length()
    return {
        "dealt": 24 * trained * away,
        "scored": 12 * trained * away,
        "small": 2 * (4 << 16) * away + SUMS * 24 * nodes * (ranks - 1),
        "held": 5 * own + (12 + 25) * trained,
    }


def run(rank: int, ranks: int, samples: int, keep_ratio: float, folder: str) -> None:
    """One process: train two epochs, count the change to the third."""
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", ranks)
    timeout = datetime.timedelta(minutes=10)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timeout)
    before = records.peak_bytes()
    sampler = stprune.PruningSampler(samples, num_epochs=8, keep_ratio=keep_ratio, schedule="none", sharded=True)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for ids in sampler.batches(1 << 16):
            index = torch.from_numpy(ids)
            sampler.update(index, (index % 1009).float() / 1009 + 0.01)
    begin = time.perf_counter()
    with Counted(ranks, rank) as counted:
        sampler.set_epoch(2)
    seconds = time.perf_counter() - begin
    plan, table = sampler.plan, sampler.table
    tensors = [*table.own.columns, *table.share.columns, table.ids, plan.own, plan.own_weights, plan.local, plan.weights]
    held = sum(
        {tensor.data_ptr(): tensor.nbytes for tensor in [*tensors, *plan.shares.values()] if tensor is not None}.values()
    )
    found = {
        "messages": len(counted.calls),
        "sent": sum(sent for _, sent in counted.calls),
        "largest": sorted((sent for name, sent in counted.calls if name == "all_to_all_single"), reverse=True)[:2],
        "held": held,
        "peak": records.peak_bytes() - before,
        "seconds": seconds,
        "kept": len(plan),
    }
    pathlib.Path(folder, f"found {rank}").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


def measured(samples: int, ranks: int, keep_ratio: float) -> list[dict[str, Any]]:
    """What each rank counted."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(run, (ranks, samples, keep_ratio, folder), nprocs=ranks)
        return [json.loads(pathlib.Path(folder, f"found {rank}").read_text()) for rank in range(ranks)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--samples", type=float, default=1e7)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--keep-ratio", type=float, default=0.3)
    parser.add_argument("--no-keep", action="store_true", help="do not write the row")
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    samples = int(asked.samples)
    found = measured(samples, asked.ranks, asked.keep_ratio)
    worst = {name: max(each[name] for each in found) for name in ("messages", "sent", "held", "peak", "seconds", "kept")}
    row = records.machine(torch.device("cpu"), "default") | {
        "job": f"epoch change, {asked.ranks} ranks",
        "n": samples,
        "threads": 1,
        "contender": "stprune, sharded",
        "keep_ratio": asked.keep_ratio,
        **worst,
    }
    if not asked.no_keep:
        records.keep(RESULTS, [row])
    print(json.dumps(row))
    print(f"\n{'per rank':34} {'sent':>12} {'of it small':>12} {'held':>12} {'peak':>12} {'messages':>9}")
    show("counted", worst["sent"], None, worst["held"], worst["peak"], worst["messages"])
    peak = worst["peak"] / (samples / asked.ranks)  # bytes for each own sample, as counted
    for number, ranks in ((samples, asked.ranks), (1e9, 64), (1e10, 1024)):
        paper = on_paper(number, ranks, asked.keep_ratio)
        sent = paper["dealt"] + paper["scored"] + paper["small"]
        name = f"on paper, {number:.0e} samples, {ranks} ranks"
        show(name, sent, paper["small"], paper["held"], peak * number / ranks, worst["messages"])


def show(name: str, sent: float, small: float | None, held: float, peak: float, messages: float) -> None:
    """A line of the table, in MB."""
    cells = [f"{value / 1e6:9.1f} MB" if value is not None else f"{'':12}" for value in (sent, small, held, peak)]
    print(f"{name:34} {' '.join(cells)} {int(messages):9}")


if __name__ == "__main__":
    main()
