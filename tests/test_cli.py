"""The `stprune` command: what it prints, and one line and a status on bad input."""

from __future__ import annotations

import importlib.util
import pathlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import stprune
from stprune import cli
from stprune.study import machine, presets, series
from stprune.study.grid import Block, Grid
from stprune.study.headroom import HeadroomOptions


def run(capsys, *arguments):
    """Status, output and error output; argparse leaves by SystemExit."""
    try:
        status = cli.main(arguments)
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


def refused(capsys, command, *arguments):
    """The one line that refuses bad input with status 2, without the beginning that all have."""
    status, out, err = run(capsys, command, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith(f"stprune {command}: error: ")
    return err.removeprefix(f"stprune {command}: error: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--version"], [f"stprune {stprune.__version__}"]),
        ([], ["demo", "study", "headroom", "info"]),
        (["demo", "--help"], ["--data", "--family", "--cost", "--seeds", "infobatch", "nodes-uniform", "simbench"]),
        (["study", "--help"], ["GRID", "--processes", "--minutes", "--output", "(default: stprune-study)"]),
        (["headroom", "--help"], ["--epochs", "(default: 6)"]),
    ],
)
def test_version_and_help(capsys, arguments, words):
    status, out, _ = run(capsys, *arguments)
    assert status == 0
    out = " ".join(out.split())  # lines are broken anywhere
    assert [word for word in words if word not in out] == []
    assert "default: None" not in out


def test_info_tells_versions_devices_and_libraries(capsys):
    status, out, _ = run(capsys, "info")
    assert status == 0
    lines = out.splitlines()
    assert f"stprune {stprune.__version__}" in lines
    assert f"torch {torch.__version__}" in lines
    assert f"numpy {np.__version__}" in lines
    assert f"triton {machine.versions()['triton']}" in lines
    assert any(line.startswith("cpu: ") for line in lines)
    assert any(line.startswith("cuda: none") for line in lines) != torch.cuda.is_available()
    for name, status_of in stprune.library_status().items():
        line = next(line for line in lines if line.startswith(f"{name}: "))
        assert (status_of.path if status_of.loaded else status_of.reason) in line
    told = {op for line in lines if line.startswith("ops on cpu, ") for op in line.split(": ")[1].split(", ")}
    assert told == set(stprune.implementations("cpu"))


SHARED = [
    (["--device", "nonsense"], "--device: nonsense cannot be used here"),
    (["--data", "no/such/file.npz"], "data must be"),
    (["--data", "demand?nodes=0"], "data must"),
]
OF_DEMO = [
    (["--seeds", "-1"], "study: seeds must be positive, got -1"),
    (["--cost", "0"], "study: cost must be positive, got 0.0"),
    (["--cost", "nan"], "study: cost must be positive, got nan"),
    (["--processes", "0"], "study: processes must be at least 1, got 0"),
    (["--minutes", "-1"], "study: minutes must not be negative, got -1.0"),
]
OF_HEADROOM = [
    (["--batch-size", "0"], "--batch-size: must be at least 1, got 0"),
    (["--epochs", "0"], "--epochs: must be at least 1, got 0"),
    (["--seed", "-1"], "--seed: must be at least 0, got -1"),
    (["--seconds", "nan"], "--seconds: must be above 0, got nan"),
]


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        *(("demo", *row) for row in SHARED + OF_DEMO),
        *(("headroom", *row) for row in SHARED + OF_HEADROOM),
    ],
)
def test_bad_input_gives_one_line_and_status_2(capsys, tmp_path, command, arguments, message):
    output = ["--output", str(tmp_path / "out")] if command == "demo" else []
    assert message in refused(capsys, command, *output, *arguments)
    assert not (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize("arguments", [["nonsense"], ["demo", "--family", "nonsense"], ["demo", "--seeds", "many"], ["study"]])
def test_what_the_parser_does_not_know_exits_with_2(capsys, arguments):
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert "error" in err


@pytest.mark.parametrize(("steps", "nodes", "options"), [(600, 5, ""), (900, 20, "&nodes=9&steps=700"), (900, 20, "&stride=4")])
def test_a_quick_run_takes_all_of_a_small_series(tmp_path, steps, nodes, options):
    path = tmp_path / "series.npz"
    np.savez(path, data=np.ones((steps, nodes, 1), np.float32))
    data = f"{path}?per_day=96{options}"
    whole = series.load(data).values.shape
    (cut,) = presets.demo(data=data, quick=True).blocks[0].data
    assert series.load(cut).values.shape == (min(800, whole[0]), min(12, whole[1]))


def test_files_that_cannot_serve_are_refused_before_training(capsys, tmp_path):
    bad, short, taken = (tmp_path / name for name in ("series.npz", "short.npz", "taken"))
    bad.write_bytes(b"no archive")
    assert "series.npz" in refused(capsys, "demo", "--data", str(bad), "--output", str(tmp_path / "out"))
    np.savez(short, data=np.random.default_rng(0).normal(size=(119, 3, 1)).astype(np.float32))
    message = refused(capsys, "demo", "--data", f"{short}?per_day=24", "--output", str(tmp_path))
    assert "the series must have at least 120 steps for a 6:2:2 split, got 119" in message
    taken.write_text("")
    assert "taken" in refused(capsys, "demo", "--data", "demand", "--output", str(taken))


@pytest.mark.parametrize("module", ["tqdm", "matplotlib", "jinja2", "simbench"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(capsys, tmp_path, monkeypatch, module):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == module else find_spec(name, *rest))
    message = refused(capsys, "demo", "--output", str(tmp_path))
    assert module in message
    assert "pip install" in message


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (RuntimeError("out of\nmemory"), 1, "error: out of memory\n"),
        (KeyboardInterrupt(), 130, "interrupted; finished runs are kept in {}: the same command goes on, and with --minutes 0"),
    ],
)
def test_a_failure_or_an_interrupt_while_running_has_a_status_of_its_own(capsys, tmp_path, monkeypatch, error, status, message):
    def stop(*_, **__):
        raise error

    monkeypatch.setattr(cli, "run_study", stop)
    *found, said = run(capsys, "demo", "--output", str(tmp_path))
    assert found == [status, ""]
    assert said.startswith(f"stprune demo: {message.format(tmp_path)}")
    assert said.count("\n") == 1


def test_an_interrupted_headroom_has_nothing_to_go_on_with(capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_headroom", stop)
    assert run(capsys, "headroom") == (130, "", "stprune headroom: interrupted\n")


def test_options_reach_the_command(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(cli, "run_study", lambda *values, **named: seen.append((*values, named)))
    line = "--data there --model tsmixer --cost 3 --family infobatch --family nodes-uniform --seeds 2 --minutes 5 --processes 3"
    assert cli.main(["demo", *line.split(), "--output", "here"]) == 0
    grid, folder, named = seen.pop()
    block = presets.DEMO
    given = {"data": ("there",), "models": ("tsmixer",), "cost": 3.0, "seeds": 2}
    assert grid == Grid((replace(block, **given, families=("full", "infobatch", "nodes-uniform")),))
    assert folder == pathlib.Path("here")
    assert named == {"processes": 3, "minutes": 5.0, "device": "auto", "command": "demo"}
    (tmp_path / "grid.json").write_text('{"blocks": [{"data": ["there"]}]}')
    assert cli.main(["study", str(tmp_path / "grid.json"), "--device", "cpu"]) == 0
    grid, folder, named = seen.pop()
    assert grid == Grid((Block(data=("there",)),))
    assert folder == pathlib.Path("stprune-study")
    assert named == {"processes": None, "minutes": None, "device": "cpu", "command": "study"}


def test_headroom_prints_a_verdict_and_a_table(capsys):
    status, out, _ = run(capsys, "headroom", "--data", "demand", "--quick", "--seconds", "0.5", "--batch-size", "16")
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == "demand, nodes=12, steps=800: 800 steps x 12 nodes, 457 training windows, 6 passes."
    assert lines[1].startswith("stid on ")
    assert lines[1].endswith("batch 16.")
    assert lines[4].startswith("- A smaller batch alone")
    assert any(line.startswith("nodes drawn ") for line in lines)


def test_options_reach_headroom(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "run_headroom", seen.append)
    line = "headroom --data there --model tsmixer --dim 8 --epochs 3 --seconds 5 --seed 2 --batch-size 9"
    assert cli.main(line.split()) == 0
    given = {"data": "there", "model": "tsmixer", "dim": 8, "epochs": 3, "seconds": 5.0, "seed": 2, "batch_size": 9}
    assert vars(seen[0]) == vars(HeadroomOptions()) | given


def restarts(monkeypatch, argv):
    """What the program would be started as again, if it would."""
    seen = []
    monkeypatch.setattr(cli.sys, "argv", ["stprune", *argv])
    monkeypatch.setattr(cli.sys, "orig_argv", ["python", "/bin/stprune", *argv])
    monkeypatch.setattr(cli.os, "execve", lambda *call: seen.append(call))
    monkeypatch.setattr(cli, "run_study", lambda *_, **__: None)
    assert cli.main() == 0
    return seen


def test_demo_restarts_once_with_threads_that_sleep_while_waiting(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY")
    ((program, line, environment),) = restarts(monkeypatch, ["demo", "--seeds", "2"])
    assert program == sys.executable
    assert line == [sys.executable, "/bin/stprune", "demo", "--seeds", "2"]
    assert environment["OMP_WAIT_POLICY"] == "passive"


def test_neither_info_nor_a_demo_against_the_callers_choice_restarts(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert restarts(monkeypatch, ["demo", "--seeds", "2"]) == []
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert restarts(monkeypatch, ["info"]) == []


def test_the_package_can_be_run_as_a_program():
    command = [sys.executable, "-W", "ignore", "-m", "stprune", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"stprune {stprune.__version__}\n"), done.stderr
