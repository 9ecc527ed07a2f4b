"""A writer cut at any byte, or killed in any phase, leaves the last checkpoint as it was."""

import os
import re
import resource
import subprocess
import sys

import pytest
import torch

import stprune

LAST, NEXT = ({"epoch": epoch, "scores": torch.full((3,), float(epoch))} for epoch in (1, 2))


def epoch_of(path):
    state = stprune.checkpoint.load(path)
    assert state["scores"].tolist() == [state["epoch"]] * 3
    return state["epoch"]


def test_a_state_comes_back_and_nothing_else_stays(tmp_path):
    path = tmp_path / "run.pt"
    for state in (LAST, NEXT):
        stprune.checkpoint.save(state, str(path))
        assert epoch_of(path) == state["epoch"]
    assert os.listdir(tmp_path) == ["run.pt"]


def test_a_write_that_fails_at_any_byte_leaves_the_last_file(tmp_path):
    """As on a full disk: the system refuses to let the file grow beyond so many bytes."""
    path = tmp_path / "run.pt"
    stprune.checkpoint.save(LAST, path)
    size = path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for length in range(size):
            resource.setrlimit(resource.RLIMIT_FSIZE, (length, before[1]))
            with pytest.raises(OSError, match=f"checkpoint.save: path .*{re.escape(str(path))}"):
                stprune.checkpoint.save(NEXT, path)
            assert os.listdir(tmp_path) == ["run.pt"], length
            assert epoch_of(path) == 1, length
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    stprune.checkpoint.save(NEXT, path)
    assert epoch_of(path) == 2


KILLED = """
import os, signal, sys, resource
import torch, stprune
path, phase = sys.argv[1], sys.argv[2]
kill = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
state = {"epoch": 2, "scores": torch.full((3,), 2.0)}
for case in sys.argv[2:]:
    child = os.fork()
    if child == 0:
        phase, _, byte = case.partition(":")
        if phase == "write":
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(byte), int(byte)))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the system kills the process at that byte
        elif phase == "open":
            torch.save = kill
        elif phase == "fsync":
            os.fsync = kill
        elif phase == "rename":
            os.replace = kill
        elif phase == "renamed":
            replace = os.replace
            os.replace = lambda *names: (replace(*names), kill())
        stprune.checkpoint.save(state, path)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status), (case, status)
    print(case, stprune.checkpoint.load(path)["epoch"])
"""


def test_a_writer_killed_in_any_phase_leaves_a_whole_file(tmp_path):
    path = tmp_path / "run.pt"
    stprune.checkpoint.save(LAST, path)
    size = path.stat().st_size
    cases = ["open", *(f"write:{byte}" for byte in range(0, size, 50)), f"write:{size - 1}", "fsync", "rename", "renamed"]
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(path), *cases]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout.split("\n")[:-1]
    assert lines == [f"{case} {2 if case == 'renamed' else 1}" for case in cases]
    assert epoch_of(path) == 2
    assert sum(name.endswith(".part") for name in os.listdir(tmp_path)) == len(cases) - 1
    stprune.checkpoint.save(LAST, path)  # what killed writers left disturbs nobody
    assert epoch_of(path) == 1


def test_a_cut_file_is_refused_at_every_length(tmp_path):
    path = tmp_path / "run.pt"
    stprune.checkpoint.save(LAST, path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"checkpoint.load: path .*{re.escape(str(path))}"):
            stprune.checkpoint.load(path)


def test_what_cannot_be_read_or_written_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.pt"):
        stprune.checkpoint.load(tmp_path / "missing.pt")
    with pytest.raises(OSError, match=r"path must be writable, got .*nowhere/run\.pt"):
        stprune.checkpoint.save(LAST, tmp_path / "nowhere" / "run.pt")
    torch.save({"code": os.path.join}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match=r"code\.pt"):
        stprune.checkpoint.load(tmp_path / "code.pt")


def test_a_sampler_continues_from_a_checkpoint(tmp_path):
    first, second = (stprune.PruningSampler(16, num_epochs=4, method="soft-random") for _ in range(2))
    first.set_epoch(1)
    ids = list(first)
    first.update(torch.tensor(ids[:3]), torch.ones(3))
    stprune.checkpoint.save(first.state_dict(), tmp_path / "sampler.pt")
    second.load_state_dict(stprune.checkpoint.load(tmp_path / "sampler.pt"))
    assert list(second) == ids[3:]


def test_file_and_folder_are_flushed_to_the_disk(tmp_path, monkeypatch):
    """A machine that loses its power keeps what was flushed alone: the file before its new name, the name after it."""
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("rename"), replace(*names)))
    stprune.checkpoint.save(LAST, tmp_path / "run.pt")
    part, *after = calls
    assert part.endswith(".part")
    assert after == ["rename", str(tmp_path)]
