"""Time every op against its rivals, interleaved in one run, and append the rows to benchmarks/results/.

    python benchmarks/run.py                       # CPU, 10^5 to 10^7 keys, 1 thread and all
    python benchmarks/run.py --device cuda --out DIR
    python benchmarks/run.py --sizes 1e6 --only select

Contenders take turns, so that a drift of the machine hits all alike. A row gives the median, the 20th and 80th percentile,
and the time as a multiple of one pass over the input, measured in the same run. Nothing is timed before its tests pass.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from cases import Call, Case, residuals, selection
from tqdm import tqdm

import stprune

ROOT = pathlib.Path(__file__).resolve().parents[1]
TESTS = {"topk": "select"}  # ops whose tests live in another op's file


def main() -> int:
    """Run the suite; 1 when a test is red."""
    options = _options()
    device = torch.device(options.device)
    sizes = [int(float(size)) for size in options.sizes.split(",")]
    threads = [1] if device.type == "cuda" else sorted({1, torch.get_num_threads()})
    rows = []
    tested: set[str] = set()
    for case in _cases(sizes, device, options.only):
        test = TESTS.get(case.op, case.op)
        if not options.no_gate and test not in tested:
            if not _green(test):
                print(f"tests/test_{test}.py is red: nothing is timed", file=sys.stderr)
                return 1
            tested.add(test)
        for count in threads:
            torch.set_num_threads(count)
            rows += _time(case, count, device, options.budget)
    _print(rows)
    out = pathlib.Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"ops-{device.type}.jsonl"
    with target.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    print(f"\n{len(rows)} rows appended to {target}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", default="1e5,1e6,1e7", help="numbers of keys, comma separated")
    parser.add_argument("--only", default="", help="time only jobs whose name contains this")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds per contender and case")
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results"))
    parser.add_argument("--no-gate", action="store_true", help="skip the tests (they have just run)")
    return parser.parse_args()


def _cases(sizes: list[int], device: torch.device, only: str) -> list[Case]:
    found = [case for size in sizes for case in selection(size, device)]
    for name in ("all_equal", "two_values"):
        found += selection(sizes[-1], device, name=name, slow=False)
    for shape in ((64, 12, 170), (64, 12, 8600)):
        found += residuals(shape, device)
    return [case for case in found if only in case.job]


def _green(test: str) -> bool:
    path = ROOT / "tests" / f"test_{test}.py"
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", str(path)], cwd=ROOT, check=False).returncode == 0


def _time(case: Case, threads: int, device: torch.device, budget: float) -> list[dict[str, object]]:
    """One row for each contender and one for the pass over the input."""
    buffer = torch.ones(max(1, case.bytes_read // 4), device=device)
    contenders: dict[str, Call] = {"one pass": buffer.sum, "stprune": case.ours, **case.rivals}
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        call()
    spent = 0.0
    with tqdm(total=budget * len(contenders), desc=f"{case.job} n={case.size:.0e} {threads}T", leave=False) as bar:
        while spent < budget * len(contenders) and len(samples["stprune"]) < 200:
            for name, call in contenders.items():
                samples[name].append(_once(call, device))
            now = sum(map(sum, samples.values()))
            bar.update(min(now, bar.total) - min(spent, bar.total))
            spent = now
            if len(samples["stprune"]) >= 3 and spent > budget * len(contenders):
                break
    one_pass = float(np.median(samples["one pass"]))
    return [
        {
            "job": case.job,
            "n": case.size,
            "threads": threads,
            "contender": name,
            "median_ms": float(np.median(times)) * 1e3,
            "p20_ms": float(np.percentile(times, 20)) * 1e3,
            "p80_ms": float(np.percentile(times, 80)) * 1e3,
            "runs": len(times),
            "passes": float(np.median(times)) / one_pass,
            "gb_per_s": case.bytes_read / float(np.median(times)) / 1e9,
            **_machine(device),
        }
        for name, times in samples.items()
    ]


def _once(call: Call, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _machine(device: torch.device) -> dict[str, object]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    cpu = next(
        (line.split(":")[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "stprune": stprune.__version__,
        "commit": commit.stdout.strip(),
        "date": datetime.date.today().isoformat(),
    }


def _print(rows: list[dict[str, object]]) -> None:
    ours = {(row["job"], row["n"], row["threads"]): row["median_ms"] for row in rows if row["contender"] == "stprune"}
    print(
        f"{'job':34} {'n':>8} {'thr':>3} {'contender':32} {'median ms':>10} {'p20':>9} {'p80':>9} {'passes':>8} {'vs ours':>8}"
    )
    for row in rows:
        ratio = row["median_ms"] / ours[row["job"], row["n"], row["threads"]]
        print(
            f"{row['job']:34} {row['n']:8.0e} {row['threads']:3} {row['contender']:32} {row['median_ms']:10.3f} "
            f"{row['p20_ms']:9.3f} {row['p80_ms']:9.3f} {row['passes']:8.1f} {ratio:7.1f}x"
        )


if __name__ == "__main__":
    sys.exit(main())
