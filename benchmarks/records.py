"""Result rows: what machine they come from, where they are kept, how they are shown."""

from __future__ import annotations

import datetime
import functools
import json
import math
import os
import pathlib
import platform
import resource
import shutil
import subprocess

import numpy as np
import torch

import stprune
from stprune.study.machine import versions

Row = dict[str, object]
ROOT = pathlib.Path(__file__).resolve().parents[1]
IDENTITY = ("device", "cores", "allocator", "job", "n", "threads", "contender")
"""What makes two rows the same measurement: the later one takes the earlier one's place."""


def keep(path: pathlib.Path, rows: list[Row]) -> pathlib.Path:
    """Write rows to a file, in place of older ones of the same machine, job and contender; others stay."""
    merged = {tuple(row.get(field) for field in IDENTITY): row for row in [*read(path), *rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in merged.values()))
    return path


def read(path: pathlib.Path) -> list[Row]:
    """The rows of a file; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


@functools.cache
def commit() -> str:
    """The commit that is checked out, short; $STPRUNE_COMMIT for a copy of its files, empty where neither is known."""
    return os.environ.get("STPRUNE_COMMIT") or _output("git", "rev-parse", "--short", "HEAD")


@functools.cache
def driver() -> str:
    """The version of the GPU's driver; empty where it is not known."""
    return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0]


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def machine(device: torch.device, allocator: str) -> Row:
    """The machine and versions that a row belongs to."""
    cpu = next(
        (line.split(":")[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    on_gpu = {"driver": driver(), "triton": versions()["triton"]} if device.type == "cuda" else {}
    preloaded = ", ".join(pathlib.Path(part).name for part in os.environ.get("LD_PRELOAD", "").split(":") if part)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "cores": os.cpu_count(),
        "allocator": preloaded or allocator,
        "torch": torch.__version__,
        **on_gpu,
        "numpy": np.__version__,
        "stprune": stprune.__version__,
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }


def peak_bytes() -> int:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def show(rows: list[Row]) -> None:
    """Print rows as a table, with each contender's time as a multiple of ours."""
    ours = {(row["job"], row["n"], row["threads"]): row["median_ms"] for row in rows if row["contender"] == "stprune"}
    print(f"{'job':48} {'n':>6} {'T':>2} {'contender':32} {'median ms':>10} {'p20':>9} {'p80':>9} {'passes':>8} {'vs ours':>8}")
    for row in rows:
        base = ours.get((row["job"], row["n"], row["threads"]), math.nan)  # a call of ours that failed has no row
        ratio = row["median_ms"] / base  # type: ignore[operator]
        print(
            f"{row['job']:48} {row['n']:6.0e} {row['threads']:2} {row['contender']:32} {row['median_ms']:10.3f} "
            f"{row['p20_ms']:9.3f} {row['p80_ms']:9.3f} {row['passes']:8.1f} {ratio:7.1f}x"
        )
