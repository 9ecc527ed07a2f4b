"""What the benchmarks call: that every contender runs and that rivals do the job ours does.

Under pytest-benchmark the same calls compare two states of the code (rows and ratios are made by benchmarks/run.py, which
takes turns with the rivals):

    pytest tests/test_benchmarks.py --benchmark-enable --benchmark-autosave
    pytest tests/test_benchmarks.py --benchmark-enable --benchmark-compare
"""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch

BENCHMARKS = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"
SIZE = int(float(os.environ.get("STPRUNE_BENCH_SIZE", "2e4")))
CPU = torch.device("cpu")


def all_cases():
    sys.path.append(str(BENCHMARKS))
    try:
        cases, plans, loss = (importlib.import_module(name) for name in ("cases", "plan_cases", "loss_cases"))
    finally:
        sys.path.remove(str(BENCHMARKS))
    yield from cases.selection(SIZE, CPU)
    for name in cases.INPUTS[1:]:
        yield from cases.selection(SIZE, CPU, name=name)
    yield from plans.plans(SIZE, CPU)
    yield from loss.losses((8, 12, 17), torch.float32, CPU)
    yield from loss.residuals((8, 12, 17), CPU)
    yield from loss.table_updates(64, 1000, CPU)


CASES = list(all_cases())
by_job = pytest.mark.parametrize("case", CASES, ids=[case.job for case in CASES])


@by_job
def test_ours(benchmark, case):
    benchmark.group = case.op
    benchmark.extra_info["n"] = case.size
    benchmark(case.ours)


@by_job
def test_every_other_contender_runs(case):
    for call in [*case.variants.values(), *case.rivals.values()]:
        # Compiling takes most of a minute; test_loss.py compiles a step with the loss.
        if not getattr(call, "compiles", False):
            call()


def test_every_job_has_a_name_of_its_own():
    assert len({(case.job, case.size) for case in CASES}) == len(CASES)


def ids_of(result):
    """The set of ids a contender of `select` gave: a tensor or an array, a pair with values, a column."""
    ids = result.indices if isinstance(result, tuple) else result
    return set(torch.as_tensor(ids).flatten().tolist())


def test_rivals_of_select_choose_the_same_keys():
    compared = 0
    for case in CASES:
        if case.job in ("select k=n/2", "select k=n/10"):
            expected = ids_of(case.ours())
            assert len(expected) == SIZE // (2 if case.job.endswith("2") else 10)
            for name, call in {**case.variants, **case.rivals}.items():
                result = call()
                if name == "torch.sort":
                    result = result.indices[-len(expected) :]
                assert ids_of(result) == expected, name
                compared += 1
    assert compared == 12


def test_rivals_of_the_draws_draw_as_many():
    jobs = {case.job: case for case in CASES}
    for job in ("draw Bernoulli", "threshold draw (mean, Bernoulli, ids, weights)", "draw_weighted k=n/2 priority"):
        case = jobs[job]
        sizes = {"ours": case.ours()} | {name: call() for name, call in {**case.variants, **case.rivals}.items()}
        counts = {name: len(drawn[0] if isinstance(drawn, tuple) else drawn) for name, drawn in sizes.items()}
        # Five standard deviations of a binomial count, at most.
        assert max(counts.values()) - min(counts.values()) < 5 * SIZE**0.5, counts


def test_rivals_of_the_loss_have_its_value():
    jobs = {case.job: case for case in CASES}
    for job in ("PrunedLoss masked (8, 12, 17) float32", "PrunedLoss unmasked (8, 12, 17) float32"):
        value = jobs[job].ours().item()
        for name, call in jobs[job].rivals.items():
            if not getattr(call, "compiles", False):
                assert call().item() == pytest.approx(value, rel=1e-5), name


def printed(*command, **options):
    """What a command that must succeed printed."""
    result = subprocess.run(command, capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


STUB = """#!/bin/sh
echo "$*" >>"$LOG"
"""


def test_the_gpu_check_fits_its_nine_minutes_and_calls_what_there_is(tmp_path):
    """The script with `timeout` and what it runs replaced by stubs that write down how they are called."""
    for name in ("timeout", "python", "nvcc", "compute-sanitizer"):
        stub = tmp_path / name
        stub.write_text(STUB)
        stub.chmod(0o755)
    log = tmp_path / "log"
    stubs = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(tmp_path / "python"), "LOG": str(log)}
    printed("bash", BENCHMARKS / "gpu.sh", tmp_path / "out", env={**os.environ, **stubs}, timeout=60)
    steps = [line.split() for line in log.read_text().splitlines() if line.startswith("--kill-after=5 ")]
    total = sum(int(step[1]) for step in steps)
    assert total <= 540
    assert f"add up to {total} s" in (BENCHMARKS / "gpu.sh").read_text()
    timed = [step[step.index("benchmarks/run.py") :] for step in steps if "benchmarks/run.py" in step]
    assert {"--suite", "loss"} <= {word for step in timed for word in step}
    known = printed(sys.executable, BENCHMARKS / "run.py", "--help")
    assert all(word in known for step in timed for word in step if word.startswith("--"))


def test_a_run_keeps_its_rows_and_stops_in_time(tmp_path):
    """Rows of the jobs asked for, and none of a job that would begin too late."""
    jobs = sorted({case.job for case in CASES if "select" in case.job})
    asked, other = jobs[0], next(job for job in jobs if jobs[0] not in job)
    command = [sys.executable, BENCHMARKS / "run.py", "--sizes", "1e4", "--no-gate", "--budget", "0.001", "--out", tmp_path]
    assert f"{asked} and what follows is not timed" in printed(*command, "--only", asked, "--seconds", "-1")
    assert not list(tmp_path.iterdir())
    printed(*command, "--only", asked, "--only", "no such job")
    rows = (tmp_path / "selection-cpu.jsonl").read_text()
    assert f'"{asked}"' in rows
    assert f'"{other}"' not in rows


def row(n, contender, milliseconds, allocator="default"):
    about = {"device": "a processor", "cores": 2, "torch": "2", "numpy": "2", "date": "2026-01-01", "allocator": allocator}
    what = {"job": "select k=n/2", "n": n, "threads": 1, "contender": contender}
    return {**what, "median_ms": milliseconds, "passes": 1.0, **about}


def test_the_table_is_of_one_size_and_one_allocator(tmp_path):
    """Rows of larger sizes, where slow rivals are left out, and of another allocator do not mix with it."""
    rows = [row(10**7, "stprune, out=", 2.0), row(10**7, "torch.sort", 50.0), row(10**7, "np.argpartition", 30.0)]
    more = [row(10**8, "stprune, out=", 40.0), row(10**8, "np.argpartition", 900.0)]
    more += [row(10**7, "stprune, out=", 1.0, "tuned"), row(10**7, "torch.sort", 8.0, "tuned")]
    tables = []
    for content in (rows, rows + more):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(one) + "\n" for one in content))
        command = [sys.executable, "plot.py", "--table", "--rows", str(file)]
        tables.append(printed(*command, cwd=BENCHMARKS))
    assert "| 2.00 ms | np.argpartition, 30.0 ms | 15.0x |" in tables[0]
    assert tables[1] == tables[0]
    tuned = printed(*command, "--allocator", "tuned", cwd=BENCHMARKS)
    assert "| 1.00 ms | torch.sort, 8.0 ms | 8.0x |" in tuned
    assert "; tuned allocator." in tuned
