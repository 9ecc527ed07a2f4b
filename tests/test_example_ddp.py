"""examples/ddp.py by torchrun: stopped on two ranks in the middle of an epoch, resumed on three."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from example_checks import EXAMPLES, example

SHORT = ["--epochs", "3", "--days", "6", "--batch", "48", "--method", "infobatch"]


def torchrun(ranks, *options):
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    ended = subprocess.run(
        [*command, str(EXAMPLES / "ddp.py"), *SHORT, *options], env=environment, capture_output=True, text=True, timeout=100
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


def report_of(path, ranks):
    return [json.loads(pathlib.Path(f"{path}.{rank}").read_text())["epochs"] for rank in range(ranks)]


@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_stops_and_goes_on_with_another_number_of_ranks(tmp_path, sharded):
    kept = ["--checkpoint", str(tmp_path / "run.pt"), *(["--sharded"] if sharded else [])]
    printed = torchrun(2, "--stop-after", "4", "--report", str(tmp_path / "first"), *kept)
    assert "epoch 0: 96 of 133 windows of 265 planned for 2 ranks" in printed
    ranks = 2 if sharded else 3  # a sharded sampler's states would have to be made those of three ranks
    torchrun(ranks, "--resume", "--report", str(tmp_path / "second"), *kept)
    before, after = report_of(tmp_path / "first", 2), report_of(tmp_path / "second", ranks)
    first, rest, second, last = (
        [id for rank in run for epoch in rank if epoch["epoch"] == number for id in epoch["ids"]]
        for run, number in ((before, 0), (after, 0), (after, 1), (after, 2))
    )
    assert len(first) == len(set(first)) == 192
    assert set(first) | set(rest) == set(last) == set(range(265))
    assert len(set(first) & set(rest)) == len(rest) - 73 < ranks  # padding
    assert len(set(second)) == after[0][1]["planned"] < 265


@pytest.mark.slow
def test_a_sharded_run_goes_on_where_not_all_ranks_wrote_their_last_checkpoint(tmp_path):
    """As if rank 1 had been killed before it wrote that of epoch 1: all ranks go on from the end of epoch 0."""
    kept = ["--checkpoint", str(tmp_path / "run.pt"), "--sharded"]
    torchrun(2, "--stop-after", "9", *kept)  # epoch 0 has 6 steps
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"run.pt.{rank}.{last}" for rank in (0, 1) for last in "ab"]
    (tmp_path / "run.pt.1.b").unlink()
    torchrun(2, "--resume", "--report", str(tmp_path / "again"), *kept)
    assert [[epoch["epoch"] for epoch in each] for each in report_of(tmp_path / "again", 2)] == [[1, 2]] * 2


def test_help_and_one_rank(capsys):
    ddp = example("ddp")
    with pytest.raises(SystemExit, match="0"):
        ddp.main(["--help"])
    found = ddp.main(["--epochs", "2", "--days", "6"])
    assert [(len(each["ids"]), each["planned"]) for each in found["epochs"]] == [(265, 265)] * 2
    assert found["epochs"][1]["loss"] < found["epochs"][0]["loss"]
    assert "265 windows of 265 planned for 1 ranks" in capsys.readouterr().out
