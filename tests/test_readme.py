"""The README: its code runs, its commands exist, its figures are those of a committed row."""

import json
import pathlib
import re
import statistics
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader

import stprune

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_every_python_block_runs():
    torch.manual_seed(0)
    series = torch.rand(60, 5, 1)
    model = torch.nn.Linear(1, 1)
    store = pytest.importorskip("h5py").File("series.h5", "w", driver="core", backing_store=False)
    names = {
        "stprune": stprune,
        "torch": torch,
        "DataLoader": DataLoader,
        "train_set": stprune.WindowDataset(series, history=12, horizon=12),
        "series": series,
        "file": {"series": store.create_dataset("series", data=series, chunks=(10, 5, 1))},
        "model": lambda x, node=None: model(x),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }
    assert len(blocks("python")) >= 2
    for code in blocks("python"):
        exec(code, names)
    assert bool(torch.isfinite(names["loss"]))


def test_every_command_exists():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for code in blocks("sh"):
        for line in code.splitlines():
            words = line.split("#")[0].split()
            if words[:1] == ["make"]:
                assert words[1] in targets, line


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_the_result_table_is_a_committed_row():
    """Every number of the demo table stands in the newest row of benchmarks/results/demo.jsonl."""
    row = json.loads((ROOT / "benchmarks" / "results" / "demo.jsonl").read_text().splitlines()[-1])
    tables = [block for block in README.split("\n\n") if block.startswith("| run | test MAE |")]
    assert len(tables) == 1
    lines = tables[0].splitlines()[2:]
    assert len(lines) == len(row["rows"])
    for line, run in zip(lines, row["rows"], strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1] == f"{run['mae'][0]:.4f}", line
        assert cells[2] in ("", f"{run['mae_change'][0]:+.1f}%"), line
        assert cells[3:7] == [
            f"{run['epochs']:.0f}",
            f"{run['steps']:,.0f}",
            f"{run['seconds'][0]:.0f} s",
            f"{run['speedup'][0]:.2f}x",
        ], line
        assert cells[7] in ("", f"{run['overhead_of_full']:.1f}%"), line


def test_the_spread_over_seeds_is_a_committed_row():
    lines = (ROOT / "benchmarks" / "results" / "demo.jsonl").read_text().splitlines()
    row = [row for row in map(json.loads, lines) if row["settings"]["seeds"] == 3][-1]
    long = next(run for run in row["rows"] if run["name"] == "nodes-long")
    mean, spread = long["mae_change"]
    told = " ".join(README.split())
    assert f"test MAE was {-mean:.1f}% ± {spread:.1f}% lower than full training's in the same time" in told
    assert f"{long['speedup'][0]:.1f}" == "1.0"
    reached = next(text for text in row["findings"] if "reached the full run's best validation MAE" in " ".join(text.split()))
    share = " ".join(reached.split()).split("MAE after ")[1].split("%")[0]
    assert f"reached its best validation MAE in {share}% of it" in told


def test_the_comparison_of_graph_draws_is_that_of_committed_rows():
    lines = (ROOT / "benchmarks" / "results" / "graph_draws.jsonl").read_text().splitlines()
    rows = list(map(json.loads, lines))

    def mean(draw, key):
        return statistics.mean(row[key] for row in rows if row["draw"] == draw)

    told = " ".join(README.split())
    assert f"at random kept {mean('random', 'edges_kept'):.0%} of the drawn nodes' edges" in told
    assert f"one cluster {mean('one cluster', 'edges_kept'):.0%}" in told
    errors = [f"{mean(draw, 'validation_mae'):.2f}" for draw in ("random", "one cluster", "all nodes")]
    assert errors[0] == errors[1]
    assert f"the same validation MAE, {errors[0]} against {errors[2]} with all nodes" in told


def test_the_output_of_headroom_is_a_committed_one():
    """`stprune headroom > benchmarks/results/headroom.txt` made it; nobody typed it."""
    printed = (ROOT / "benchmarks" / "results" / "headroom.txt").read_text()
    assert printed.strip() in [block.strip() for block in blocks("text")]


def test_what_is_told_of_headroom_is_what_committed_rows_say():
    lines = (ROOT / "benchmarks" / "results" / "headroom.jsonl").read_text().splitlines()
    rows = list(map(json.loads, lines))
    told = " ".join(README.split())
    variances = [row for row in rows if row["kind"] == "variance" and "predicted_by_seed" in row]
    assert len({row["model"] for row in variances}) == 2
    worst = max(abs(row["predicted"] / row["measured"] - 1) for row in variances)
    assert f"within {worst:.0%} of the measured one" in told
    full, nodes = [row for row in rows if row["kind"] == "run"][-2:]
    assert f"{nodes['m']} of {full['m']} nodes for {nodes['epochs']} epochs against all nodes for {full['epochs']}" in told
    assert f"predicted {nodes['predicted_cost']:.0%} of the cost" in told
    assert f"measured {nodes['seconds'] / full['seconds']:.0%} of the time" in told
    assert f"MAE {nodes['validation_mae']:.4f} against {full['validation_mae']:.4f}" in told


def test_the_tables_of_speed_are_made_from_committed_rows():
    """Every line of them is one that benchmarks/plot.py prints."""
    section = README.split("## Speed")[1].split("\n## ")[0]
    lines = {line for line in section.splitlines() if line.startswith("| ")}
    made = set()
    for kind in ("selection", "loss"):
        command = [sys.executable, str(ROOT / "benchmarks" / "plot.py"), "--table", kind]
        made |= set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())
    assert len(lines) > 20
    assert lines <= made


def test_the_cost_of_the_tables_update_is_that_of_committed_rows():
    rows = list(map(json.loads, (ROOT / "benchmarks" / "results" / "loss-cpu.jsonl").read_text().splitlines()))

    def median(job, contender):
        return next(r["median_ms"] for r in rows if r["job"] == job and r["contender"] == contender and r["threads"] == 1)

    few, many = "ScoreTable.update B=64", "ScoreTable.update B=16384"
    told = " ".join(README.split())
    assert f"({median(few, 'stprune') * 1e3:.0f} against {median(few, 'index_copy_') * 1e3:.0f} us for 64 ids" in told
    assert f"{median(many, 'stprune'):.2f} against {median(many, 'index_copy_'):.2f} ms for 16,384 of 10^7)" in told
