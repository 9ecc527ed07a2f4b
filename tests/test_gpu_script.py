"""benchmarks/gpu.sh: its stages, limits and summary, with programs that write down how they are called in place of Python."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
STAGES = ["library", "tests", "sanitizer", "selection", "loss", "windows", "step", "train"]
# Writes down its arguments; fails or goes on for ever, with a child, where they hold $FAILS or $HANGS; writes a study's rows.
STUB = """#!/bin/sh
echo "$0 $*" >>"$LOG"
echo '{"a": "row"}'
case "$*" in
  *"${FAILS:-nothing}"*) exit 3 ;;
  *"${HANGS:-nothing}"*) sleep 600 & echo $! >>"$LOG.children"; wait ;;
esac
while [ $# -gt 0 ]; do
  if [ "$1" = --output ]; then mkdir -p "$2" && echo '{}' >"$2/rows.jsonl"; fi
  shift
done
"""


@pytest.fixture
def start(tmp_path):
    """Starts the script with arguments and settings; what it leaves is in tmp_path: out, log."""
    started = []

    def begin(*arguments, tools=("compute-sanitizer", "nvcc"), **settings):
        for name in ("python", *tools):
            (tmp_path / name).write_text(STUB)
            (tmp_path / name).chmod(0o755)
        # None of the machine's own tools of a GPU.
        paths = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHON": tmp_path / "python", "LOG": tmp_path / "log"}
        paths |= {"PREBUILT": tmp_path / "dist", "SHARED": tmp_path / "shared"}
        command = ["bash", str(SCRIPT), *(str(each) for each in arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        # A test that is run in the background hands on that Ctrl-C is ignored.
        started.append(
            subprocess.Popen(
                command,
                env={**os.environ, **{name: str(path) for name, path in paths.items()}, **settings},
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                **pipes,
            )
        )
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def run(start, tmp_path):
    """Runs the script to its end: status, what it printed, calls."""

    def to_the_end(*arguments, **settings):
        process = start(*arguments, **settings)
        printed, _ = process.communicate(timeout=60)
        log = tmp_path / "log"
        return process.returncode, printed, log.read_text().splitlines() if log.exists() else []

    return to_the_end


def test_every_stage_runs_and_calls_what_there_is(run, tmp_path):
    (tmp_path / "shared" / "data").mkdir(parents=True)
    program, wheel = (tmp_path / "dist" / name for name in ("cuda_library", "stprune-1-py3-none-linux_x86_64.whl"))
    program.parent.mkdir()
    program.write_text(STUB)
    program.chmod(0o755)
    wheel.touch()
    status, printed, calls = run(tmp_path / "out")
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert status == 0
    assert printed.endswith(summary)
    assert re.findall(r"^(\w+): passed, \d+ s$", summary, re.M) == STAGES
    assert re.search(r"all stages passed in \d+ s\n$", summary)
    assert all(re.search(rf"^# {stage} +\w", SCRIPT.read_text(), re.M) for stage in STAGES)
    for called, source in (("benchmarks/run.py", "benchmarks/run.py"), ("stprune.cli study", "stprune/cli.py")):
        known = (ROOT / source).read_text()
        made = [call for call in calls if called in call]
        assert made
        assert all(f'"{word}"' in known for call in made for word in call.split() if word.startswith("--"))
    files = {word for call in calls for word in call.split() if re.search(r"\.(py|json|cu)$", word)}
    assert len(files) > 8
    assert all((ROOT / file).is_file() for file in files)
    assert {suite for call in calls for suite in re.findall(r"--suite (\w+)", call)} == {"selection", "loss", "windows", "step"}
    assert sum("--tool" in call for call in calls) == 2
    assert f"{program} 8" in calls
    assert (tmp_path / "out" / "cuda_library.jsonl").read_text() == '{"a": "row"}\n'
    assert any("-m pip install" in call and call.endswith(f" {wheel}") for call in calls)
    assert "missing" not in summary


def test_a_stage_alone(run, tmp_path):
    status, printed, calls = run(tmp_path / "out", "windows")
    assert status == 0
    assert re.findall(r"^(\w+): passed", printed, re.M) == ["library", "windows"] * 2
    assert not any("--suite step" in call or "-m pytest" in call for call in calls)


def test_a_failure_is_told_and_the_next_stages_run(run, tmp_path):
    status, printed, _ = run(tmp_path / "out", "loss", "windows", FAILS="--suite loss")
    assert status == 1
    assert printed.endswith("FAILED\n")
    assert re.findall(r"^loss: FAILED with status 3, \d+ s$", printed, re.M)
    assert re.findall(r"^windows: passed", printed, re.M)


def test_without_its_library_nothing_runs(run, tmp_path):
    status, printed, calls = run(tmp_path / "out", "loss", FAILS="library_status")
    assert status == 1
    assert "library: FAILED" in printed
    assert not any("--suite" in call for call in calls)


@pytest.mark.skipif(torch.cuda.device_count() > 0, reason="there is a GPU")
def test_without_a_gpu_it_says_so_before_anything_is_compiled(run, tmp_path):
    status, printed, calls = run(tmp_path / "out", "loss", PYTHON=sys.executable)
    assert (status, calls) == (1, [])
    assert f"\ngpu.sh: torch {torch.__version__} finds no GPU; --dry needs none\nlibrary: FAILED" in printed
    assert "pip" not in printed


def test_rows_behind_red_tests_are_kept_apart(run, tmp_path):
    status, printed, calls = run(tmp_path / "out", "tests", "loss", FAILS="-m pytest")
    assert status == 1
    assert "tests: FAILED" in printed
    assert any("--suite loss --budget 0.05 --seconds 75" in call and f"--out {tmp_path}/out/red" in call for call in calls)


def test_a_stage_ends_with_its_time(run, tmp_path):
    begun = time.monotonic()
    status, printed, _ = run(tmp_path / "out", "loss", "windows", HANGS="--suite loss", STAGE_LIMIT="1")
    assert status == 1
    assert re.findall(r"^loss: FAILED: not done after 1 s, \d+ s$", printed, re.M)
    assert re.findall(r"^windows: passed", printed, re.M)
    assert time.monotonic() - begun < 20
    assert int(re.search(r"LIMIT:-(\d+)", SCRIPT.read_text())[1]) == 100


def alive(process):
    status = pathlib.Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_everything(start, tmp_path, kind):
    process = start(tmp_path / "out", "train", "windows", HANGS="stprune.cli study")
    children = tmp_path / "log.children"
    end = time.monotonic() + 30
    while not children.exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(kind)
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "train: stopped\nmissing" in printed
    assert printed.endswith("FAILED\n")
    assert "windows" not in printed
    assert not any(alive(int(child)) for child in children.read_text().split())


def test_what_is_missing_is_told(run, tmp_path):
    _, printed, _ = run(tmp_path / "out", tools=(), FAILS="find_spec")
    told = re.findall(r"^missing: (.*?)[:,]? ", printed, re.M)
    for what in ("pytest-xdist", "compute-sanitizer", "a", f"{tmp_path}/dist/cuda_library", "simbench"):
        assert any(line.startswith(what) for line in told), what
    assert f"missing: {tmp_path}/shared/data: no real series were trained on" in printed


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_is_the_comment_at_the_top(run, option):
    status, printed, calls = run(option)
    assert (status, calls) == (0, [])
    assert all(re.search(rf"^{stage} +\w", printed, re.M) for stage in STAGES)
    for words in ("FOLDER [stage ...]", "summary.txt go to FOLDER", "--dry runs every stage's commands"):
        assert words in printed
    assert "set -" not in printed
    assert not re.search("^#", printed, re.M)


def test_refusals(run, tmp_path):
    status, printed, calls = run(tmp_path / "out", "loss", "lost")
    assert (status, calls) == (2, [])
    assert f"gpu.sh: stage must be one of {' '.join(STAGES)}, got lost" in printed
    for arguments in ((), ("--dry",), ("--wet", tmp_path / "out")):
        status, printed, calls = run(*arguments)
        assert (status, calls) == (2, [])
        assert printed.startswith("usage: benchmarks/gpu.sh [--dry] FOLDER [stage ...]")


def test_the_stage_tests_finds_every_test_of_a_gpu():
    """It looks for names, in files that ask for a GPU."""
    without = r"@(?:gpu|pytest\.mark\.skipif\(\s*not torch\.cuda\.is_available\(\).*?\))\n(?:@.*\n)*def (test_\w+)"
    found = 0
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        if path.name == "test_cuda.py":
            continue  # every one of its tests has the file's name
        for name in re.findall(without, path.read_text()):
            assert re.search("cuda|gpu", name), f"{path.name}: {name} needs gpu or cuda in its name"
            found += 1
    assert found >= 4
