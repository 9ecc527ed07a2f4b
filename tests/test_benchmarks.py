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
import re
import sys

import pytest
import torch

BENCHMARKS = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"
SIZE = int(float(os.environ.get("STPRUNE_BENCH_SIZE", "2e4")))
CPU = torch.device("cpu")


def modules(*names):
    """Files of the folder, which import each other by their names."""
    sys.path.append(str(BENCHMARKS))
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(BENCHMARKS))


def all_cases():
    cases, plans, loss = modules("cases", "plan_cases", "loss_cases")
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


def test_a_run_keeps_its_rows_and_stops_in_time(tmp_path, monkeypatch, capsys, threads):
    """Rows of the jobs asked for, and none of a job that would begin too late."""
    jobs = sorted({case.job for case in CASES if "select" in case.job})
    asked, other = jobs[0], next(job for job in jobs if jobs[0] not in job)
    (run,) = modules("run")
    threads(1)

    def printed(*options):
        command = ["run.py", "--sizes", "1e4", "--no-gate", "--budget", "0.001", "--out", str(tmp_path), "--only", asked]
        monkeypatch.setattr(sys, "argv", [*command, *options])
        assert run.main() == 0
        return capsys.readouterr().out

    assert f"{asked} and what follows is not timed" in printed("--seconds", "-1")
    assert not list(tmp_path.iterdir())
    printed("--only", "no such job")
    rows = (tmp_path / "selection-cpu.jsonl").read_text()
    assert f'"{asked}"' in rows
    assert f'"{other}"' not in rows


def test_a_contender_that_fails_costs_the_others_nothing(capsys):
    """It has no time, its name is told, and the run ends with status 1."""
    run, cases = modules("run", "cases")

    def broken():
        raise RuntimeError("illegal memory access")

    contenders, failed = {"broken": broken, "right": lambda: None}, []
    assert set(run._take_turns(contenders, CPU, 0.0, "a job", failed)) == {"right"}
    assert failed == ["a job: broken"]
    assert "illegal memory access" in capsys.readouterr().err
    options = ["run.py", "--suite", "loss", "--no-gate", "--out", os.devnull]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", options)
        patch.setattr(run, "_cases", lambda *_: [cases.Case("op", "a job", 1, 4, broken)])
        patch.setattr(run.records, "keep", lambda path, rows: None)
        assert run.main() == 1


def test_torch_knows_the_compilers_options():
    (loss,) = modules("loss_cases")
    for options in loss.COMPILERS.values():
        torch.compile(lambda x: x, options=options or None)
    with pytest.raises(RuntimeError):
        torch.compile(lambda x: x, options={"no such option": True})


def shape(job):
    """A job's name without its sizes."""
    return re.sub(r"[\d.,]+", "#", job)


def test_targets_on_a_gpu_name_what_is_timed():
    loss, windows, steps, targets = modules("loss_cases", "window_cases", "step_cases", "gpu_targets")
    series = windows.days(400, 20, CPU)
    made = [*CASES, *loss.losses((4, 12, 20), torch.bfloat16, CPU), *windows.epochs(series), *windows.statistics(series, 24)]
    made += [next(iter(steps.steps(CPU, small=True)))]
    known = {}
    for case in made:
        names = {"stprune", *case.rivals, *(f"stprune, {name}" for name in case.variants)}
        known.setdefault(shape(case.job), set()).update(names)
    # On a GPU only.
    only = {"DataLoader, 8 workers", "torch.compile, cooperative reductions"}
    for target in targets.TARGETS:
        assert set(target.rivals) <= known[shape(target.job)] | only, target.what
        assert set(target.ours) & known[shape(target.job)], target.what
    sizes = {(target.suite, target.job): target.size for target in targets.TARGETS if target.size}
    assert sizes["selection", "select k=n/2"] == 10**8
    windows_ = len(windows.UsualWindows(torch.empty(windows.TIMES, 0)))
    assert f"epoch of {windows_} windows, {windows.NODES} nodes" in {target.job for target in targets.TARGETS}


def test_the_table_of_a_gpu_holds_rows_against_targets(tmp_path):
    (targets,) = modules("gpu_targets")
    assert targets.table(tmp_path, short=True) == "GPU: not measured yet."
    empty = targets.table(tmp_path, short=False)
    assert empty.count("| not measured yet |") == len(targets.TARGETS)
    about = {"device": "a card", "driver": "5", "torch": "2", "triton": "3"}

    def some(job, size, **times):
        return [
            {"job": job, "n": size, "contender": name, "median_ms": ms, "passes": 2.5, **about} for name, ms in times.items()
        ]

    rows = some("select k=n/2", 10**8, **{"stprune, out=": 2.0, "stprune": 3.0, "torch.topk(sorted=False)": 18.0})
    rows += some("select k=n/2", 10**7, **{"stprune": 1.0, "torch.topk(sorted=False)": 99.0})
    steps = some(
        "STID step, 8600 nodes, float32", 5, **{"stprune": 10.0, "stprune, 30% of nodes": 3.0, "stprune, 10% of nodes": 2.0}
    )
    for suite, found in (("selection", rows), ("step", steps)):
        (tmp_path / f"{suite}-cuda.jsonl").write_text("".join(json.dumps(each) + "\n" for each in found))
    full, short = (targets.table(tmp_path, short=short) for short in (False, True))
    assert "| select n/2 of 10^8 float32 | 2.5 reads, missed | at most 2 reads |" in full
    assert "| select n/2 of 10^8 float32, against torch.topk | 9x | at least 8x |" in full
    assert "| STID step on 30% of 8,600 nodes, against all of them | 0.3x | at most 0.36x |" in full
    assert "| STID step on 10% of 8,600 nodes, against all of them | 0.2x, missed | at most 0.14x |" in full
    assert full.endswith("\n\na card: driver 5, torch 2, Triton 3.")
    assert set(short.splitlines()) < set(full.splitlines())


def row(n, contender, milliseconds, allocator="default"):
    about = {"device": "a processor", "cores": 2, "torch": "2", "numpy": "2", "date": "2026-01-01", "allocator": allocator}
    what = {"job": "select k=n/2", "n": n, "threads": 1, "contender": contender}
    return {**what, "median_ms": milliseconds, "passes": 1.0, **about}


def test_the_table_is_of_one_size_and_one_allocator(tmp_path, monkeypatch, capsys):
    """Rows of larger sizes, where slow rivals are left out, and of another allocator do not mix with it."""
    rows = [row(10**7, "stprune, out=", 2.0), row(10**7, "torch.sort", 50.0), row(10**7, "np.argpartition", 30.0)]
    more = [row(10**8, "stprune, out=", 40.0), row(10**8, "np.argpartition", 900.0)]
    more += [row(10**7, "stprune, out=", 1.0, "tuned"), row(10**7, "torch.sort", 8.0, "tuned")]
    (plot,) = modules("plot")
    file = tmp_path / "rows.jsonl"

    def table(content, *options):
        file.write_text("".join(json.dumps(one) + "\n" for one in content))
        monkeypatch.setattr(sys, "argv", ["plot.py", "--table", "--rows", str(file), *options])
        assert plot.main() == 0
        return capsys.readouterr().out

    tables = [table(content) for content in (rows, rows + more)]
    assert "| 2.00 ms | np.argpartition, 30.0 ms | 15.0x |" in tables[0]
    assert tables[1] == tables[0]
    tuned = table(rows + more, "--allocator", "tuned")
    assert "| 1.00 ms | torch.sort, 8.0 ms | 8.0x |" in tuned
    assert "; tuned allocator." in tuned
