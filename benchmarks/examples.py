"""The examples in their full form: their tables, which README cites, as rows.

    python benchmarks/examples.py                    # all, about five minutes; rows go to benchmarks/results/examples.jsonl
    python benchmarks/examples.py --only clients --no-keep

A row has what the example prints after its last run, and the machine it ran on. A later row of an example on the same
machine takes its place.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys
import time

import records
import torch

RESULTS = records.ROOT / "benchmarks" / "results" / "examples.jsonl"
JOBS = (
    "any_loss",
    "any_loss --adversarial",
    "any_loss --tokens",
    "video",
    "video --holes",
    "distill --shuffled",
    "stream",
    "readout",
    "clients",
)


def run(job: str) -> tuple[str, float]:
    """What an example prints behind the lines of its single runs, and its seconds."""
    name, *arguments = job.split()
    begin = time.perf_counter()
    command = [sys.executable, str(records.ROOT / "examples" / f"{name}.py"), *arguments]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    assert child.stdout is not None
    lines = []
    for line in child.stdout:
        print("  ", line, end="", flush=True)
        lines.append(line)
    if child.wait():
        raise RuntimeError(f"examples: {job} must end without an error, got exit status {child.returncode}")
    return "".join(lines).rpartition("\n\n")[2].strip(), time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of the names of the examples to run")
    parser.add_argument("--no-keep", action="store_true", help="print only")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args()
    jobs = [job for job in JOBS if args.only in job]
    for number, job in enumerate(jobs, 1):
        print(f"[{number}/{len(jobs)}] examples/{job}", flush=True)
        text, seconds = run(job)
        print(f"   {seconds:.0f} s", flush=True)
        row = {"job": job, "seconds": round(seconds, 1), "printed": text, **records.machine(torch.device("cpu"), "glibc")}
        if not args.no_keep:
            records.keep(args.results, [row])


if __name__ == "__main__":
    main()
