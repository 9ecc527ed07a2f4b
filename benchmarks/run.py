"""Time every op against its rivals, interleaved in one run, and keep the rows under benchmarks/results/.

    python benchmarks/run.py                                  # selection on the CPU, 10^5 to 10^7 keys, 1 thread and all
    python benchmarks/run.py --suite loss                     # or windows, step, or all
    python benchmarks/run.py --allocator tuned                # the same with an allocator that keeps its memory
    python benchmarks/run.py --sizes 1e8 --only select
    python benchmarks/run.py --device cuda --out DIR
    python benchmarks/run.py --billion                        # select among 10^9 keys: time and peak memory

How the timings are made: benchmarks/README.md. Nothing is timed before its tests pass.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pathlib
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import records
import torch
from cases import INPUTS, Call, Case
from tqdm import tqdm

import stprune

ROOT = pathlib.Path(__file__).resolve().parents[1]
SUITES = ("selection", "loss", "windows", "step")
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 28)}
"""glibc settings under which freed memory is kept and used again instead of being fetched page by page anew."""


def main() -> int:
    """Run the suites; 1 when a test is red or a contender fails."""
    options = _options()
    if options.allocator == "tuned" and not all(name in os.environ for name in TUNED):
        # The allocator reads its settings when the process starts.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **TUNED})
    if options.billion:
        return _billion(options)
    device = torch.device(options.device)
    threads = [1] if device.type == "cuda" else sorted({1, torch.get_num_threads()})
    tested: set[str] = set()
    failed: list[str] = []
    rows: list[records.Row] = []
    start = time.perf_counter()
    for suite in SUITES if options.suite == "all" else (options.suite,):
        path = pathlib.Path(options.out) / f"{suite}-{device.type}.jsonl"
        for case in _cases(suite, options, device):
            if not any(part in case.job for part in options.only or [""]):
                continue
            if time.perf_counter() - start > options.seconds:
                print(f"{options.seconds:g} s are over: {case.job} and what follows is not timed")
                break
            if not options.no_gate and case.op not in tested and not _green(case.op):
                print(f"tests/test_{case.op}.py is red: nothing is timed", file=sys.stderr)
                return 1
            tested.add(case.op)
            for count in threads:
                torch.set_num_threads(count)
                found = _time(case, count, device, options, failed)
                records.keep(path, found)
                rows += found
        print(f"rows written to {path}")
    records.show(rows)
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return int(bool(failed))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=(*SUITES, "all"), default="selection")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", default="1e5,1e6,1e7", help="numbers of keys, comma separated, up to 1e8")
    parser.add_argument("--only", action="append", help="time only jobs whose name contains this; given again: or this")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no case after so many seconds")
    parser.add_argument("--budget", type=float, default=0.4, help="seconds per contender and case")
    parser.add_argument("--allocator", choices=("default", "tuned"), default="default", help="see benchmarks/README.md")
    parser.add_argument("--small", action="store_true", help="small inputs, to see that every call works")
    parser.add_argument("--billion", action="store_true", help="select among 10^9 float32 keys: time and peak memory")
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results"))
    parser.add_argument("--no-gate", action="store_true", help="skip the tests (they have just run)")
    return parser.parse_args()


def _cases(suite: str, options: argparse.Namespace, device: torch.device) -> Iterator[Case]:
    """The suite's cases; made one after another, so that their inputs are not all alive at once."""
    sizes = [10_000] if options.small else [int(float(size)) for size in options.sizes.split(",")]
    if suite == "selection":
        selection, plans = importlib.import_module("cases").selection, importlib.import_module("plan_cases").plans
        for size in sizes:
            yield from selection(size, device)
            yield from plans(size, device)
        for name in INPUTS[1:]:
            yield from selection(sizes[-1], device, name=name)
    elif suite == "loss":
        yield from importlib.import_module("loss_cases").suite(device, small=options.small)
    elif suite == "windows":
        yield from importlib.import_module("window_cases").windows(device, small=options.small)
    else:
        yield from importlib.import_module("step_cases").steps(device, small=options.small)


def _green(test: str) -> bool:
    path = ROOT / "tests" / f"test_{test}.py"
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", str(path)], cwd=ROOT, check=False).returncode == 0


def _time(
    case: Case, threads: int, device: torch.device, options: argparse.Namespace, failed: list[str]
) -> list[dict[str, object]]:
    """One row for each contender and one for the pass over the input; `failed` takes the names of those that raise."""
    contenders: dict[str, Call] = {"one pass": _one_pass(case.bytes_read, device), "stprune": case.ours}
    contenders |= {f"stprune, {name}": call for name, call in case.variants.items()}
    contenders |= case.rivals
    samples = _take_turns(contenders, device, options.budget, f"{case.job} n={case.size:.0e} {threads}T", failed)
    one_pass = float(np.median(samples["one pass"]))
    about = records.machine(device, options.allocator)
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
            "ns_per_item": float(np.median(times)) * 1e9 / max(1, case.size),
            **about,
        }
        for name, times in samples.items()
    ]


def _one_pass(count: int, device: torch.device) -> Call:
    """What moves so many bytes: a sum over them; on a GPU, whose sums are slower than its memory, a copy of half of them."""
    buffer = torch.ones(max(2, count // 4), device=device)
    if device.type != "cuda":
        return buffer.sum
    source, target = buffer.split((len(buffer) + 1) // 2)
    return lambda: target.copy_(source[: len(target)])


def _take_turns(
    contenders: dict[str, Call], device: torch.device, budget: float, title: str, failed: list[str]
) -> dict[str, list[float]]:
    """Seconds of each contender's calls, round by round, until each has used its budget.

    A first call warms up and is not counted, unless it alone is far over the budget; then it is the only one. A call marked
    `compiles`, and any on a GPU, is made once more before that, as its first one may be spent in a compiler.
    """
    samples: dict[str, list[float]] = {}
    active = []
    for name, call in contenders.items():
        try:
            first = _once(call, device)
            if device.type == "cuda" or getattr(call, "compiles", False):
                first = _once(call, device)
        except Exception:
            # Whatever it is, the other contenders are timed all the same; the run tells of it and ends with status 1.
            traceback.print_exc()
            failed.append(f"{title}: {name}")
            continue
        samples[name] = [first] if first > 5 * budget else []
        if not samples[name]:
            active.append(name)
    with tqdm(total=len(active), desc=title, leave=False, disable=None) as bar:
        while active:
            for name in tuple(active):
                samples[name].append(_once(contenders[name], device))
                spent = sum(samples[name])
                if (spent > budget and len(samples[name]) >= 3) or len(samples[name]) >= 200:
                    active.remove(name)
                    bar.update()
    return samples


def _once(call: Call, device: torch.device) -> float:
    if device.type == "cuda":
        # On the device's own clock, from an idle device: what the call takes to launch is in it, waking up after it is not.
        torch.cuda.synchronize()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _billion(options: argparse.Namespace, n: int = 10**9) -> int:
    """select the larger half of 10^9 keys (4 GB) into a buffer (4 GB); 1 when it takes over 5 % of both beside them."""
    k = n // 2
    before = records.peak_bytes()
    keys = torch.empty(n)
    # Filled piece by piece, without a second array of their size.
    for begin in range(0, n, 1 << 24):
        part = keys[begin : begin + (1 << 24)]
        part.normal_(generator=torch.Generator().manual_seed(begin))
    out = torch.zeros(k, dtype=torch.int64)
    keys.sum()
    passes = []
    for _ in range(3):
        start = time.perf_counter()
        keys.sum()
        passes.append(time.perf_counter() - start)
    start = time.perf_counter()
    chosen = stprune.select(keys, k, out=out)
    seconds = time.perf_counter() - start
    extra = records.peak_bytes() - before - 4 * n - 8 * k
    share = extra / (4 * n + 8 * k)
    # Ascending and within the keys; exactness is what the tests are for.
    right = int(chosen[-1]) < n and all(bool((p[1:] > p[:-1]).all()) for p in chosen.split(1 << 24))
    row = {
        "job": "select k=n/2, 10^9 keys, out=",
        "n": n,
        "threads": torch.get_num_threads(),
        "contender": "stprune, out=",
        "median_ms": seconds * 1e3,
        "runs": 1,
        "passes": seconds / float(np.median(passes)),
        "extra_bytes": extra,
        "extra_share": share,
        "ns_per_item": seconds * 1e9 / n,
        **records.machine(torch.device("cpu"), options.allocator),
    }
    records.keep(pathlib.Path(options.out) / "billion-cpu.jsonl", [row])
    print(f"{seconds:.2f} s, {row['passes']:.1f} passes, {extra / 1e6:.0f} MB beside keys and result ({share:.1%})")
    return 0 if right and share <= 0.05 else 1


if __name__ == "__main__":
    sys.exit(main())
