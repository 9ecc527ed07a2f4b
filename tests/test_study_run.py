"""Studies: rows on disk, the order of the runs, processes, and studies that were killed."""

import contextlib
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace

import pytest
import torch
from study_rows import SPEC, row

from stprune.study import progress
from stprune.study import rows as storage
from stprune.study import run as running
from stprune.study.command import LABELS, run_study
from stprune.study.grid import Block, Grid
from stprune.study.problem import prepare
from stprune.study.rows import Row
from stprune.study.run import problem_of, run
from stprune.study.series import load
from stprune.study.spec import MODELS, OPTIMIZERS, RATE_SCHEDULES, Spec
from stprune.study.summary import summarize
from stprune.study.terminated import Terminated, raised_when_terminated
from stprune.study.train import VALIDATE_AT, evaluate, forecast, rate_at, train

ROOT = pathlib.Path(__file__).resolve().parents[1]
TINY = "demand?nodes=6&steps=300"
BLOCK = Block(
    data=(TINY,),
    families=("full", "nodes-uniform"),
    cost=0.5,
    seeds=2,
    batches=(32, 8),
    node_batches=((16, 4.0), (16, 1.0)),
    rate_factors=(0.5,),
    dim=4,
)


def numbers(found):
    """All of a row that must not depend on the machine's speed or the day."""
    values = asdict(found)
    for name in ("seconds", "cpu_seconds", "plan_seconds", "loss_seconds", "machine", "date"):
        del values[name]
    values["curve"] = [(point.cost, point.steps, point.validation_mae) for point in found.curve]
    return values


# --- rows ------------------------------------------------------------------------------------------------------------


def test_rows_survive_the_disk(tmp_path):
    rows = [row(), row(family="nodes-uniform", num_drawn=7, cost=0.1, mae=0.1 + 0.2, diverged=True)]
    storage.append(tmp_path / "rows.jsonl", rows[:1])
    storage.append(tmp_path / "rows.jsonl", rows[1:])
    assert storage.read(tmp_path / "rows.jsonl") == rows
    assert storage.read(tmp_path / "none.jsonl") == []


def test_a_row_that_a_kill_cut_off_is_no_row_and_the_next_one_is_whole(tmp_path):
    path = tmp_path / "rows.jsonl"
    storage.append(path, [row(), row(mae=2.0)])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in (first, first + 1, first + 40, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert storage.read(path) == [row()], cut
        storage.append(path, [row(mae=3.0)])
        assert storage.read(path) == [row(), row(mae=3.0)], cut


def test_a_line_that_is_no_row_is_refused_by_its_number(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(row().as_json() + '\n{"key": 1}\n' + row().as_json() + "\n")
    with pytest.raises(ValueError, match="line 2 must be a row of a study"):
        storage.read(path)


def test_specs_differ_by_key_in_every_field():
    others = [
        replace(SPEC, **{name: value})
        for name, value in {
            "data": "x", "model": "tsmixer", "family": "rs2", "batch_size": 1, "learning_rate": 1.0, "cost": 1.0,
            "num_drawn": 1, "keep_ratio": 0.5, "dim": 1, "rate_schedule": "constant", "optimizer": "sgd", "seed": 1,
            "device": "NVIDIA H200",
        }.items()
    ]  # fmt: skip
    assert len(others) == len(fields(Spec))
    assert len({spec.key for spec in [SPEC, *others]}) == 14
    assert Spec.of(json.loads(row().as_json())) == SPEC


def test_rows_without_a_device_are_the_cpus_and_keep_their_keys():
    path = ROOT / "benchmarks" / "results" / "study.jsonl"
    lines = path.read_text().splitlines()
    for line, found in zip(lines, storage.read(path), strict=True):
        assert found.spec.device == "cpu"
        assert found.spec.key == json.loads(line)["key"]
    values = json.loads(row().as_json())
    del values["device"]
    assert Row.from_json(json.dumps(values)) == row()


def test_rows_of_another_device_are_no_rows_of_the_grid(tmp_path, monkeypatch):
    here, there = row(Spec(TINY, "stid", "full", 8, 2e-3, 0.5, dim=4)), replace(SPEC, device="NVIDIA H200")
    grid = Grid((BLOCK,))
    assert grid.own([here]) == [here]
    assert here.spec not in grid.pending([here], lambda data: 6).specs
    other = replace(grid, device="NVIDIA H200")
    assert other.own([here]) == []
    assert replace(here.spec, device="NVIDIA H200") in other.pending([here], lambda data: 6).specs
    assert len(summarize([row(SPEC), row(there)], LABELS).cells) == 2
    left = grid.pending([], lambda data: 6).left.total()
    # A folder's rows of the CPU do not count where the runs are made elsewhere.
    storage.append(tmp_path / "rows.jsonl", [here])
    totals = []
    for name in ("cpu", "NVIDIA H200"):
        monkeypatch.setattr(running, "device_name", lambda device, name=name: name)
        run(grid, tmp_path, minutes=0, report=lambda state: totals.append(state.total - state.done))
    assert totals == [left - 1, left]


def test_a_spec_of_another_device_is_not_trained_here():
    with pytest.raises(ValueError, match="train: device of the spec must be 'cpu', where the problem is, got 'NVIDIA H200'"):
        train(Spec(TINY, "stid", "full", 8, 2e-3, 0.5, device="NVIDIA H200"), problem_of(TINY))


# --- which runs ------------------------------------------------------------------------------------------------------


def finished(spec):
    """Full training is best at batch 8 with its base rate, nodes at 1 node with a lower one."""
    mae = 1.0 + (spec.batch_size >= 32) + (spec.num_drawn == 2) / 2
    best_rate = 2e-3 if spec.family == "full" else 0.4e-3
    return row(spec, mae=mae + 0.1 * abs(math.log(spec.learning_rate / best_rate)))


def test_settings_come_first_then_rates_then_seeds_of_the_best():
    grid, rows, stages = Grid((BLOCK,)), [], []
    while specs := grid.pending(rows, lambda data: 6).specs:
        assert len(specs) <= grid.pending(rows, lambda data: 6).left.total()
        stages.append(specs)
        rows += [finished(spec) for spec in specs]
    full, nodes = (
        [found for stage in stages if (found := [spec for spec in stage if spec.family == name])] for name in BLOCK.families
    )
    assert [[(spec.batch_size, spec.learning_rate, spec.seed) for spec in stage] for stage in full] == [
        [(32, 2e-3, 0), (8, 2e-3, 0)],
        [(8, 1e-3, 0)],
        [(8, 5e-3, 0)],  # the best of the two rates is the largest
        [(8, 2e-3, 1)],
    ]
    assert [[(spec.batch_size, spec.num_drawn, spec.learning_rate, spec.seed) for spec in stage] for stage in nodes] == [
        [(16, 2, 2e-3, 0), (16, 1, 2e-3, 0)],
        [(16, 1, 1e-3, 0)],
        [(16, 1, 0.4e-3, 0)],  # so is the smallest, and once more
        [(16, 1, 0.16e-3, 0)],
        [(16, 1, 0.4e-3, 1)],
    ]
    assert len(rows) == len({each.spec for each in rows}) == 11


def test_a_grid_knows_the_rows_of_its_cells_families_and_budgets():
    grid = Grid((replace(BLOCK, curve=(0.5,)),))
    own = Spec(TINY, "stid", "full", 8, 2e-3, 0.5, dim=4)
    mine = [row(own), row(own, cost=0.25, batch_size=3, seed=7)]
    others = [
        row(own, **{name: value})
        for name, value in {
            "data": "demand", "model": "tsmixer", "family": "rs2", "cost": 1.0, "dim": 16, "rate_schedule": "constant",
            "optimizer": "sgd",
        }.items()
    ]  # fmt: skip
    assert grid.own([others[0], mine[0], *others[1:], mine[1]]) == mine


def test_equal_care_every_family_has_as_many_trials():
    block = replace(BLOCK, families=("full", "st-prune", "nodes-uniform", "windows-and-nodes"))
    specs = Grid((block,)).pending([], lambda data: 1000).specs
    assert {name: sum(spec.family == name for spec in specs) for name in block.families} == dict.fromkeys(block.families, 2)
    assert {spec.keep_ratio for spec in specs if spec.family in ("st-prune", "windows-and-nodes")} == {0.5}
    assert {spec.keep_ratio for spec in specs if spec.family in ("full", "nodes-uniform")} == {1.0}


def test_a_curve_repeats_the_best_setting_at_smaller_budgets():
    block, rows = replace(BLOCK, curve=(0.5,), curve_families=("full",)), []
    while specs := Grid((block,)).pending(rows, lambda data: 6).specs:
        rows += [finished(spec) for spec in specs]
    small = [each.spec for each in rows if each.spec.cost == 0.25]
    assert [(spec.family, spec.batch_size, spec.seed) for spec in small] == [("full", 8, 0), ("full", 8, 1)]
    assert Grid((block,)).pending(rows, lambda data: 6).left.total() == 0


def test_the_usual_protocol_has_rates_and_seeds_of_its_own():
    grid, rows = Grid((replace(BLOCK, families=("full",), batches=(64, 8), rate_factors=(0.4, 2.5), seeds=3),)), []
    while specs := grid.pending(rows, lambda data: 6).specs:
        rows += [finished(spec) for spec in specs]
    found = sorted((each.spec.batch_size, round(each.spec.learning_rate, 5), each.spec.seed) for each in rows)
    each = [(0.0008, 0), (0.002, 0), (0.002, 1), (0.002, 2), (0.005, 0)]
    assert found == [(batch, *one) for batch in (8, 64) for one in each]


def test_a_diverged_run_is_never_the_best():
    grid = Grid((replace(BLOCK, families=("full",), rate_factors=()),))
    specs = grid.pending([], lambda data: 6).specs
    rows = [row(spec, mae=9.0 - spec.batch_size, diverged=spec.batch_size == 32) for spec in specs]
    assert [(spec.batch_size, spec.seed) for spec in grid.pending(rows, lambda data: 6).specs] == [(8, 1)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": ("mlp",)}, "models must be among stid"),
        ({"families": ("nodes-uniform",)}, "families must hold 'full'"),
        ({"families": ("full", "best")}, "families must be among"),
        ({"data": ()}, "data must name at least one series"),
        ({"cost": -1.0}, "cost must be positive, got -1.0"),
        ({"cost": math.nan}, "cost must be positive, got nan"),
        ({"batches": (0,)}, "batches must be positive, got 0"),
        ({"batches": ()}, "batches must hold at least one"),
        ({"keep_ratio": 1.0}, r"keep_ratio must lie in \(0, 1\), got 1.0"),
        ({"optimizers": ("lion",)}, "optimizers must be among adam"),
        ({"curve": (0.5, 2.0)}, "curve must hold shares of the cost below 1, got 2.0"),
        ({"curve": (0.5,), "curve_families": ("nodes-uniform",)}, "curve_families must hold 'full', got nodes-uniform"),
        ({"models": ("stid", "staeformer"), "dim": 15}, "dim must be even with staeformer, got 15"),
        ({"models": ()}, "models must hold at least one, got none"),
        ({"rate_schedules": ()}, "rate_schedules must hold at least one, got none"),
    ],
)
def test_blocks_refuse_what_cannot_be_run(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(BLOCK, **settings)


def test_a_grid_is_read_from_json(tmp_path):
    path = tmp_path / "grid.json"
    path.write_text(json.dumps({"title": "Mine", "blocks": [asdict(BLOCK), {"data": ["simbench"]}]}))
    assert Grid.read(path) == Grid((BLOCK, Block(data=("simbench",))), "Mine")


def test_the_documented_keys_of_a_grid_are_its_fields(tmp_path):
    section = (ROOT / "benchmarks" / "README.md").read_text().split("### A grid of your own")[1].split("\n## ")[0]
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if line.startswith("| `")]
    own = {name.strip("`"): (what, unit, default.rstrip(" |").strip("`")) for name, what, unit, default in lines}
    assert list(own) == [each.name for each in fields(Block)]
    made = json.loads(json.dumps(asdict(Block(data=("demand",)))))
    for name, (what, unit, default) in own.items():
        assert what
        assert unit
        assert default == ("" if name == "data" else json.dumps(made[name])), name
    for name, choices in {"models": MODELS, "optimizers": OPTIMIZERS, "rate_schedules": RATE_SCHEDULES}.items():
        assert set(re.findall("`([a-z-]+)`", own[name][0])) == set(choices)
    path = tmp_path / "grid.json"
    path.write_text(section.split("```json\n")[1].split("```")[0])
    grid = Grid.read(path)
    assert (grid.title, len(grid.blocks), grid.blocks[0].cost) == ("My series", 1, 3.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be JSON"),
        ("[]", r"grid.json must be a JSON object with the key 'blocks', got \[\]"),
        ("{}", "grid.json must have the key 'blocks', got no key"),
        ('{"title": "Mine", "block": []}', "must have known keys, got 'block'; the nearest is 'blocks', all are title, blocks"),
        ('{"title": 1, "blocks": [{"data": ["x"]}]}', "title must be text, got 1"),
        ('{"blocks": []}', r"must be a list of at least one block, got \[\]"),
        ('{"title": "Mine", "blocks": {"data": ["x"]}}', "must be a list of at least one block, got {'data'"),
        ('{"blocks": ["x"]}', "a block in .* must be a JSON object with the key 'data', got 'x'"),
        ('{"blocks": [{"seeds": 1}]}', "a block in .* must have the key 'data', got seeds"),
        ('{"blocks": [{"data": ["x"], "seeds": 1e999}]}', "seeds must be a whole number, got inf"),
        ('{"blocks": [{"data": ["x"], "dim": NaN}]}', "dim must be a whole number, got nan"),
        ('{"blocks": [{"dta": ["x"]}]}', "must have known keys, got 'dta'; the nearest is 'data', all are data, models"),
        ('{"blocks": [{"data": ["x"], "batch": [4]}]}', "must have known keys, got 'batch'; the nearest is 'batches', all are"),
        ('{"blocks": [{"data": "x"}]}', "data must be a list, got 'x'"),
        ('{"blocks": [{"data": [1]}]}', "data must be text, got 1"),
        ('{"blocks": [{"data": ["x"], "seeds": 1.5}]}', "seeds must be a whole number, got 1.5"),
        ('{"blocks": [{"data": ["x"], "node_batches": [[64]]}]}', r"each element of .* must be .*, got \[64\]"),
        (
            '{"blocks": [{"data": ["x"], "node_batches": [64, 4]}]}',
            r"each element of node_batches must be \[windows, multiple\], got 64",
        ),
    ],
)
def test_a_file_that_is_no_grid_is_refused(tmp_path, text, message):
    (tmp_path / "grid.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        Grid.read(tmp_path / "grid.json")


# --- training --------------------------------------------------------------------------------------------------------


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "settings", [{}, {"family": "nodes-priority", "num_drawn": 2}, {"family": "st-prune", "keep_ratio": 0.5}]
)
def test_a_spec_gives_the_same_row_bit_for_bit(one_thread, settings):
    spec = replace(SPEC, data=TINY, batch_size=16, cost=1.5, dim=4, seed=3, **settings)
    found = train(spec, problem_of(TINY))
    torch.rand(7)  # the global random state plays no part
    assert numbers(train(spec, prepare(load(TINY), device=torch.device("cpu")))) == numbers(found)
    assert numbers(train(replace(spec, seed=4), problem_of(TINY)))["mae"] != found.mae


def test_a_run_spends_its_budget_and_no_more_than_a_step_over(one_thread):
    problem = problem_of(TINY)
    for settings in ({}, {"family": "nodes-uniform", "num_drawn": 2}, {"family": "nodes-roots", "num_drawn": 4}):
        spec = replace(SPEC, data=TINY, batch_size=16, cost=0.7, dim=4, **settings)
        found = train(spec, problem)
        step = 16 * (spec.num_drawn or 6)
        assert 0.7 * problem.pairs <= found.pairs < 0.7 * problem.pairs + step
        assert found.cost == found.pairs / problem.pairs
        assert [point.steps for point in found.curve][-1] == found.steps == math.ceil(0.7 * problem.pairs / step)
        assert len(found.curve) <= len(VALIDATE_AT)
        assert found.best_mae == min(point.validation_mae for point in found.curve)
        # Values of x: 12 steps of one value and two time channels; of y: 12 steps; 4 bytes each. Of 4 nodes 1 is a root.
        targets = found.windows if spec.family == "nodes-roots" else found.pairs
        assert found.num_bytes == (found.pairs * 3 + targets) * 12 * 4


def test_the_learning_rate_follows_the_budget():
    assert [round(rate_at(share), 3) for share in (0.0, 0.5, 1.0, 1.2)] == [1.0, 0.505, 0.01, 0.01]
    assert rate_at(0.9, "constant") == 1.0


def test_test_errors_are_those_of_the_definitions(one_thread):
    problem = problem_of(TINY)
    problem.values[:, 2][problem.values[:, 2] > problem.values[:, 2].median()] = math.nan
    problem = prepare(replace(load(TINY), values=problem.values.numpy().copy()), device=torch.device("cpu"))
    torch.manual_seed(0)
    from stprune.study.networks import build

    model = build(replace(SPEC, data=TINY, dim=4), problem)
    part = problem.split.test
    x, y = problem.cut(part, torch.arange(len(part)))
    with torch.no_grad():
        error = (forecast(model, problem, x) - y).double()[..., 0]
    found = evaluate(model, problem, part)
    assert found.mae == pytest.approx(float(error.abs().nanmean()), rel=1e-5)
    assert found.rmse == pytest.approx(float(error.square().nanmean().sqrt()), rel=1e-5)
    large = y[..., 0].abs() >= problem.mape_floor
    assert found.mape == pytest.approx(float(100 * (error.abs() / y[..., 0].abs())[large].mean()), rel=1e-5)
    assert found.horizon_mae == pytest.approx(error.abs().nanmean((0, 2)).tolist(), rel=1e-5)
    windows, nodes = error.abs().nanmean((1, 2)), error.abs().nanmean((0, 1))
    count = max(1, round(0.05 * len(windows)))
    assert found.hard_windows_mae == pytest.approx(float(windows.sort().values[-count:].mean()), rel=1e-5)
    assert found.hard_nodes_mae == pytest.approx(float(nodes.max()), rel=1e-5)
    problem_of.cache_clear()


def test_a_run_that_diverges_ends_and_says_so(one_thread):
    found = train(replace(SPEC, data=TINY, batch_size=16, cost=2.0, dim=4, learning_rate=1e30), problem_of(TINY))
    assert found.diverged
    assert found.steps < 30
    assert math.isfinite(found.mae)
    assert Row.from_json(found.as_json()).diverged


# --- studies ---------------------------------------------------------------------------------------------------------

QUICK = replace(BLOCK, rate_factors=())


def test_a_study_makes_every_run_once_and_then_none(tmp_path):
    seen = []
    rows = run(Grid((QUICK,)), tmp_path, processes=2, report=seen.append)
    assert len(rows) == 6 == len({each.spec for each in rows})
    assert [state.last for state in seen if state.last] == rows
    assert [state.done for state in seen if state.last] == list(range(1, 7))
    assert {state.total for state in seen} == {6}
    # What runs is known before anything has finished, and a time as soon as something has.
    assert [(len(state.running), state.seconds_left) for state in seen[:2]] == [(0, None), (2, None)]
    assert all(state.seconds_left > 0 for state in seen if 0 < state.done < 6)
    assert seen[-1].seconds_left == 0
    assert storage.read(tmp_path / "rows.jsonl") == rows
    assert run(Grid((QUICK,)), tmp_path) == rows


def test_the_time_left_is_that_of_the_series_or_else_of_all_and_knows_what_runs_take_beside_training(monkeypatch):
    now = iter([100.0, 130.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    short, long = row(seconds=10.0), row(data="traffic", seconds=40.0)
    clock = progress.TimeLeft(2)
    assert clock.seconds([], Counter(demand=3)) is None
    assert clock.seconds([short, long], Counter(demand=3, traffic=1)) == (3 * 10 + 40) / 2
    assert clock.seconds([short, long], Counter(other=1)) == 25 / 2
    clock.began(SPEC)
    clock.finished(short)  # 30 s in all, 10 of them training
    assert clock.seconds([short], Counter(demand=4)) == 4 * 10 * 3 / 2


def test_a_study_says_at_once_what_runs_and_how_many_runs_there_are(capsys):
    node = replace(SPEC, family="nodes-uniform", num_drawn=7, seed=1)
    with progress.Bar() as bar:
        bar.show(progress.State(1, 9, (), None, None))
        assert capsys.readouterr().err == ""
        bar.show(progress.State(1, 9, (SPEC, node), None, None))
        said = capsys.readouterr().err
        bar.show(progress.State(2, 9, (node,), row(best_mae=1.25), 125.4))
    assert said.splitlines()[:3] == [
        "8 runs to make, 1 made before, 2 at a time. Now:",
        "  full on demand, stid, batch 64, rate 0.002, seed 0",
        "  nodes-uniform on demand, stid, batch 64, 7 nodes, rate 0.002, seed 1",
    ]
    last = capsys.readouterr().err.splitlines()[-1]
    assert "2/9 runs" in last
    assert "about 0:02:05 left; full on demand, stid, batch 64, rate 0.002, seed 0: val MAE 1.25, 80 s" in last


def test_no_run_begins_after_the_minutes(tmp_path):
    assert run(Grid((QUICK,)), tmp_path, minutes=0) == []
    rows = run(Grid((QUICK,)), tmp_path, minutes=1e-9)
    assert len(rows) <= 1
    with pytest.raises(ValueError, match="minutes must not be negative, got -1"):
        run(Grid((QUICK,)), tmp_path, minutes=-1)
    with pytest.raises(ValueError, match="processes must be at least 1, got 0"):
        run(Grid((QUICK,)), tmp_path, processes=0)


CODE = """
import pathlib, sys
sys.path.insert(0, sys.argv[2])
from test_study_run import QUICK
from stprune.study.grid import Grid
from stprune.study.run import run

if __name__ == "__main__":
    run(Grid((QUICK,)), pathlib.Path(sys.argv[1]))
"""


def test_a_report_is_of_the_grid_and_not_of_all_rows_in_its_folder(tmp_path, capsys):
    quick, whole = replace(SPEC, data="demand?nodes=12&steps=800", cost=2.0), [row(), row(seed=1)]
    storage.append(tmp_path / "rows.jsonl", [row(quick), *whole])
    grid = Grid((Block(data=("demand",)),))
    assert run_study(grid, tmp_path, minutes=0) == whole
    assert "Left out: 1 rows of other grids" in capsys.readouterr().out
    for name in ("report.html", "table.md"):
        assert "2 runs: 1 series" in (tmp_path / name).read_text()
    assert len(storage.read(tmp_path / "rows.jsonl")) == 3
    with pytest.raises(RuntimeError, match="no run has finished"):
        run_study(Grid((Block(data=("demand?days=9",)),)), tmp_path, minutes=0)


WAITING = """
import os, time
from stprune.study.run import _workers

if __name__ == "__main__":
    with _workers(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(600)
"""


def test_workers_end_with_a_study_that_was_killed(tmp_path):
    script = tmp_path / "study.py"
    script.write_text(WAITING)
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, start_new_session=True)
    assert int(process.stdout.readline()) != process.pid
    process.kill()
    try:
        process.communicate(timeout=20)  # ends with the last process that holds the other end of the pipe
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_terminated_study_keeps_its_rows_and_ends_in_order(tmp_path):
    """Nothing is left: the pipe ends with the last process that holds it, and the tracker of semaphores has no complaint."""
    grid = tmp_path / "grid.json"
    grid.write_text(json.dumps({"blocks": [asdict(replace(QUICK, seeds=20))]}))
    line = [sys.executable, "-m", "stprune.cli", "study", grid, "--output", tmp_path, "--processes", "1"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    path = tmp_path / "rows.jsonl"
    try:
        while not (path.exists() and path.read_text()) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 128 + signal.SIGTERM
    assert said.splitlines()[-1].startswith("stprune study: terminated; finished runs are kept in ")
    assert "leaked" not in said
    assert len(storage.read(path)) >= 1


def test_sigterm_is_an_exception_inside_the_block_only():
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    def terminated():
        with raised_when_terminated():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)  # a second one does not disturb the end

    with pytest.raises(Terminated):
        terminated()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    def own(number, frame):
        raise AssertionError

    signal.signal(signal.SIGTERM, own)
    try:
        with raised_when_terminated():
            assert signal.getsignal(signal.SIGTERM) == own
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def elsewhere():
        with raised_when_terminated():
            return signal.getsignal(signal.SIGTERM)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(elsewhere).result() == signal.SIG_DFL


def test_a_killed_study_goes_on_where_it_stopped(tmp_path):
    script = tmp_path / "study.py"
    script.write_text(CODE)
    here = str(pathlib.Path(__file__).parent)
    process = subprocess.Popen([sys.executable, script, tmp_path, here], start_new_session=True)
    path, deadline = tmp_path / "rows.jsonl", time.monotonic() + 60
    while not (path.exists() and path.read_text().count("\n") >= 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(RuntimeError, match="another study runs in"):
        run(Grid((QUICK,)), tmp_path)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = storage.read(path)
    assert 2 <= len(before) < 6
    rows = run(Grid((QUICK,)), tmp_path)
    assert rows[: len(before)] == before
    alone = run(Grid((QUICK,)), tmp_path / "alone")
    assert {each.spec: numbers(each) for each in rows} == {each.spec: numbers(each) for each in alone}
