"""The `stprune` command: what it prints, and one line and a status on bad input."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch

import stprune
from stprune import cli
from stprune.demo import headroom as demo_headroom
from stprune.demo import main as demo_main


def run(capsys, *arguments):
    status = cli.main(arguments)
    out, err = capsys.readouterr()
    return status, out, err


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"stprune {stprune.__version__}\n"


def test_without_a_command_the_help_names_all_commands(capsys):
    status, out, _ = run(capsys)
    assert status == 0
    assert "demo" in out
    assert "headroom" in out
    assert "info" in out


def test_help_of_demo_names_every_run_and_the_defaults(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for word in ("--data", "--keep-ratio", "--node-ratio", "--seeds", "infobatch", "nodes-long", "simbench"):
        assert word in text


def test_info_tells_versions_devices_and_libraries(capsys):
    status, out, _ = run(capsys, "info")
    assert status == 0
    lines = out.splitlines()
    assert f"stprune {stprune.__version__}" in lines
    assert f"torch {torch.__version__}" in lines
    assert f"numpy {np.__version__}" in lines
    has_triton = importlib.util.find_spec("triton") is not None
    assert ("triton not installed" in lines) != has_triton
    assert any(line.startswith("cpu: ") for line in lines)
    assert any(line.startswith("cuda: none") for line in lines) != torch.cuda.is_available()
    for name, status_of in stprune.library_status().items():
        line = next(line for line in lines if line.startswith(f"{name}: "))
        assert (status_of.path if status_of.loaded else status_of.reason) in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs: must be at least 1, got 0"),
        (["--seeds", "-1"], "--seeds: must be at least 1, got -1"),
        (["--batch-size", "0"], "--batch-size: must be at least 1, got 0"),
        (["--keep-ratio", "0"], "--keep-ratio: must lie in (0, 1], got 0.0"),
        (["--keep-ratio", "nan"], "--keep-ratio: must lie in (0, 1], got nan"),
        (["--node-ratio", "1.5"], "--node-ratio: must lie in (0, 1], got 1.5"),
        (["--steps-per-day", "0", "--data", "synthetic"], "--steps-per-day: must be at least 1, got 0"),
        (["--device", "nonsense"], "--device: nonsense cannot be used here"),
        (["--data", "no/such/file.npz"], "--data: must be simbench, synthetic or an existing path, got no/such/file.npz"),
    ],
)
def test_bad_input_gives_one_line_and_status_2(capsys, tmp_path, arguments, message):
    status, out, err = run(capsys, "demo", "--output", str(tmp_path / "out"), *arguments)
    assert status == 2
    assert out == ""
    assert err.startswith(f"stprune demo: error: {message}")
    assert err.count("\n") == 1
    assert not (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize("arguments", [["nonsense"], ["demo", "--method", "nonsense"], ["demo", "--epochs", "many"]])
def test_what_the_parser_does_not_know_exits_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "error" in capsys.readouterr().err


def test_a_file_that_is_no_series_is_refused(capsys, tmp_path):
    path = tmp_path / "series.npz"
    path.write_bytes(b"no archive")
    status, _, err = run(capsys, "demo", "--data", str(path), "--output", str(tmp_path / "out"))
    assert status == 2
    assert "series.npz" in err
    assert err.count("\n") == 1


def test_a_file_that_is_too_short_is_refused_before_training(capsys, tmp_path):
    path = tmp_path / "short.npz"
    np.savez(path, data=np.random.default_rng(0).normal(size=(119, 3, 1)).astype(np.float32))
    status, _, err = run(capsys, "demo", "--data", str(path), "--steps-per-day", "24", "--output", str(tmp_path))
    assert (status, err.count("\n")) == (2, 1)
    assert "the series must have at least 120 steps for a 6:2:2 split, got 119" in err


def test_an_output_that_is_a_file_is_refused_before_training(capsys, tmp_path):
    path = tmp_path / "taken"
    path.write_text("")
    status, _, err = run(capsys, "demo", "--data", "synthetic", "--output", str(path))
    assert status == 2
    assert "taken" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("module", ["tqdm", "matplotlib", "simbench"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(capsys, tmp_path, monkeypatch, module):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == module else find_spec(name, *rest))
    status, _, err = run(capsys, "demo", "--output", str(tmp_path))
    assert status == 2
    assert module in err
    assert "pip install" in err
    assert err.count("\n") == 1


def test_a_failure_while_running_gives_status_1(capsys, tmp_path, monkeypatch):
    def fail(options):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(demo_main, "run_demo", fail)
    status, _, err = run(capsys, "demo", "--output", str(tmp_path))
    assert (status, err) == (1, "stprune demo: error: out of memory\n")


def test_an_interrupt_gives_status_130(capsys, tmp_path, monkeypatch):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_main, "run_demo", interrupt)
    status, _, err = run(capsys, "demo", "--output", str(tmp_path))
    assert (status, err) == (130, "stprune demo: interrupted\n")


def test_options_reach_the_demo(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(demo_main, "run_demo", seen.append)
    line = "demo --data synthetic --model staeformer --epochs 3 --keep-ratio 0.4 --node-ratio 0.2 --method infobatch"
    line += (
        f" --method nodes --device cpu --seeds 2 --batch-size 8 --null-value 0 --steps-per-day 48 --output {tmp_path} --quick"
    )
    assert cli.main(line.split()) == 0
    (options,) = seen
    assert vars(options) == {
        "data": "synthetic",
        "model": "staeformer",
        "epochs": 3,
        "keep_ratio": 0.4,
        "node_ratio": 0.2,
        "runs": ("infobatch", "nodes"),
        "device": "cpu",
        "seeds": 2,
        "output": tmp_path,
        "batch_size": 8,
        "quick": True,
        "steps_per_day": 48,
        "null_value": 0.0,
    }


def test_headroom_prints_a_table_and_a_verdict(capsys):
    status, out, _ = run(capsys, "headroom", "--data", "synthetic", "--quick", "--seconds", "0.5", "--batch-size", "16")
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == "synthetic: 768 steps x 12 nodes, 437 training windows."
    assert lines[1].startswith("stid on ")
    assert lines[1].endswith("batch 16, after 1 epoch of training.")
    assert any(line.startswith("drawn nodes ") for line in lines)
    assert sum(line.startswith("- ") for line in lines) >= 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "-1"], "--epochs: must be at least 0, got -1"),
        (["--batch-size", "0"], "--batch-size: must be at least 1, got 0"),
        (["--seed", "-1"], "--seed: must be at least 0, got -1"),
        (["--seconds", "nan"], "--seconds: must be above 0, got nan"),
        (["--steps-per-day", "0"], "--steps-per-day: must be at least 1, got 0"),
        (["--device", "nonsense"], "--device: nonsense cannot be used here"),
        (["--data", "no/such/file.npz"], "--data: must be simbench, synthetic or an existing path, got no/such/file.npz"),
    ],
)
def test_bad_input_to_headroom_gives_one_line_and_status_2(capsys, arguments, message):
    status, out, err = run(capsys, "headroom", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"stprune headroom: error: {message}")
    assert err.count("\n") == 1


def test_options_reach_headroom(monkeypatch):
    seen = []
    monkeypatch.setattr(demo_headroom, "run_headroom", seen.append)
    line = "headroom --data synthetic --model staeformer --epochs 3 --seconds 5 --device cpu --batch-size 8 --seed 2"
    assert cli.main([*line.split(), "--null-value", "0", "--steps-per-day", "48", "--quick"]) == 0
    (options,) = seen
    assert vars(options) == {
        "data": "synthetic",
        "model": "staeformer",
        "epochs": 3,
        "seconds": 5.0,
        "device": "cpu",
        "batch_size": 8,
        "seed": 2,
        "quick": True,
        "steps_per_day": 48,
        "null_value": 0.0,
    }


def restarts(monkeypatch, argv):
    """What the program would be started as again, if it would."""
    seen = []
    monkeypatch.setattr(cli.sys, "argv", ["stprune", *argv])
    monkeypatch.setattr(cli.sys, "orig_argv", ["python", "/bin/stprune", *argv])
    monkeypatch.setattr(cli.os, "execve", lambda *call: seen.append(call))
    monkeypatch.setattr(demo_main, "run_demo", lambda options: None)
    assert cli.main() == 0
    return seen


def test_demo_restarts_once_with_threads_that_sleep_while_waiting(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY")
    ((program, line, environment),) = restarts(monkeypatch, ["demo", "--quick"])
    assert program == sys.executable
    assert line == [sys.executable, "/bin/stprune", "demo", "--quick"]
    assert environment["OMP_WAIT_POLICY"] == "passive"


def test_demo_does_not_restart_against_the_callers_choice(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert restarts(monkeypatch, ["demo", "--quick"]) == []


def test_info_does_not_restart(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert restarts(monkeypatch, ["info"]) == []


def test_the_module_can_be_run_as_a_program():
    code = "import sys; from stprune.cli import main; sys.exit(main(['info']))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"stprune {stprune.__version__}\n")
