"""How much memory WindowLoader needs for a memory-mapped series far larger than it: append a row to benchmarks/results/.

    python benchmarks/memory_map.py                      # 35,040 x 8,600 x 3 float32: a file of 3.6 GB, deleted afterwards
    python benchmarks/memory_map.py --times 2000 --nodes 500 --batches 20

The file is written in full with random numbers, so that no page of it is a hole. Peak memory is that of this process as the
system counts it (VmHWM), mapped pages included, beside what Python and torch take before the series is opened.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import records
import torch
from tqdm import tqdm

import stprune

ROOT = pathlib.Path(__file__).resolve().parents[1]
HISTORY, HORIZON, CHANNELS = 12, 12, 3


def main() -> int:
    """Run it; 1 when the disk is too full."""
    options = _options()
    shape = (options.times, options.nodes, CHANNELS)
    size = 4 * int(np.prod(shape))
    if shutil.disk_usage(options.folder).free < 1.2 * size:
        print(f"{options.folder} must have {1.2 * size / 1e9:.1f} GB free", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = pathlib.Path(folder) / "series.dat"
        # In a process of its own, so that writing does not count.
        subprocess.run(
            [sys.executable, __file__, "--write", str(path), "--times", str(shape[0]), "--nodes", str(shape[1])], check=True
        )
        row = _measure(np.memmap(path, np.float32, "r", shape=shape), options)
    print(json.dumps(row, indent=1))
    out = pathlib.Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "memory-map.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=35_040)
    parser.add_argument("--nodes", type=int, default=8_600)
    parser.add_argument("--batch-size", type=int, default=32, help="one of 32 such windows takes 79 MB")
    parser.add_argument("--prefetch", type=int, default=2, help="batches made ahead")
    parser.add_argument("--node-ratio", type=float, default=1.0)
    parser.add_argument("--batches", type=int, default=60, help="batches of the epoch that are delivered")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the file is made")
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results"))
    parser.add_argument("--write", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write is not None:
        _write(options.write, options.times, options.nodes)
        sys.exit(0)
    return options


def _write(path: pathlib.Path, times: int, nodes: int) -> None:
    """Random rows, a block of them over and over: distinct pages on the disk, made at the disk's speed."""
    block = np.random.default_rng(0).standard_normal((256, nodes, CHANNELS), dtype=np.float32)
    with path.open("wb") as file:
        for first in tqdm(range(0, times, len(block)), desc="writing the series", leave=False):
            file.write(block[: times - first].data)


def _measure(series: np.memmap, options: argparse.Namespace) -> dict[str, object]:
    """Deliver part of an epoch in random order and look at the peak."""
    before = _peak()
    windows = len(series) - HISTORY - HORIZON + 1
    sampler = stprune.PruningSampler(
        windows, num_epochs=1, method="full", num_nodes=series.shape[1], node_ratio=options.node_ratio
    )
    loader = stprune.WindowLoader(
        series, sampler, batch_size=options.batch_size, history=HISTORY, horizon=HORIZON, prefetch=options.prefetch
    )
    delivered = checksum = 0.0
    started = time.perf_counter()
    # As in a training loop: one batch in use. An iterator around the loader would hold on to another.
    source = iter(loader)
    for _ in tqdm(range(min(options.batches, len(loader))), leave=False):
        *_, x, y = next(source)
        delivered += 4 * (x.numel() + y.numel())
        checksum += float(x[-1, -1].sum() + y[-1, -1].sum())
    seconds = time.perf_counter() - started
    materialised = 4 * windows * (HISTORY + HORIZON) * series.shape[1] * CHANNELS
    peak = _peak()
    return {
        "job": "windows of a memory-mapped series",
        "shape": list(series.shape),
        "file_gb": series.nbytes / 1e9,
        "windows": windows,
        "materialised_gb": materialised / 1e9,
        "batch_size": options.batch_size,
        "prefetch": options.prefetch,
        "node_ratio": options.node_ratio,
        "batches": min(options.batches, len(loader)),
        "delivered_gb": delivered / 1e9,
        "seconds": seconds,
        "before_mb": before / 1e6,
        "peak_mb": peak / 1e6,
        "peak_share_of_materialised": peak / materialised,
        "checksum": checksum,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "stprune": stprune.__version__,
        "commit": records.commit(),
        "date": datetime.date.today().isoformat(),
    }


def _peak() -> int:
    """Bytes of this process's largest resident set so far."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status has no VmHWM")


if __name__ == "__main__":
    sys.exit(main())
