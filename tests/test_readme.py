"""The READMEs tell what committed rows say."""

import json
import pathlib
import re
import statistics
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BENCHMARKS = (ROOT / "benchmarks" / "README.md").read_text()
TOLD, TOLD_OF_SPEED = (" ".join(text.split()) for text in (README, BENCHMARKS))


def rows(name):
    return [json.loads(line) for line in (ROOT / "benchmarks" / "results" / f"{name}.jsonl").read_text().splitlines()]


def run_of(row, name):
    return next(run for run in row["rows"] if run["name"] == name)


def reached(row, who):
    """Share of full training's time after which a run reached its best validation MAE, as the row's findings say."""
    text = next(text for text in row["findings"] if who in text and "best validation MAE after" in text)
    return text.split("MAE after ")[1].split("%")[0]


def test_the_table_of_results_is_the_newest_row_of_the_demo():
    row = rows("demo")[-1]
    (table,) = [block for block in README.split("\n\n") if block.startswith("| run | test MAE |")]
    lines = table.splitlines()[2:]
    for line, run in zip(lines, row["rows"], strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1:] == [
            f"{run['mae'][0]:.4f}",
            "" if run["name"] == "full" else f"{run['mae_change'][0]:+.1f}%",
            f"{run['epochs']:.0f}",
            f"{run['steps']:,.0f}",
            f"{run['seconds'][0]:.0f} s",
            f"{run['speedup'][0]:.2f}x",
        ], line
    long = run_of(row, "nodes-long")
    times = " against ".join(f"{run_of(row, name)['seconds'][0]:.0f} s" for name in ("nodes-long", "full"))
    assert f"{-long['mae_change'][0]:.1f}% lower than full training, in {times}" in TOLD
    assert f"best validation MAE in {reached(row, 'long')}% of full training's time" in TOLD


def test_the_spread_over_seeds_is_a_committed_row():
    row = [row for row in rows("demo") if row["settings"]["seeds"] == 3][-1]
    mean, spread = run_of(row, "nodes-long")["mae_change"]
    assert f"test MAE was {-mean:.1f}% ± {spread:.1f}% lower than full training's in the same time" in TOLD
    assert f"{run_of(row, 'nodes-long')['speedup'][0]:.1f}" == "1.0"


def test_the_comparison_of_graph_draws_is_that_of_committed_rows():
    def mean(draw, key):
        return statistics.mean(row[key] for row in rows("graph_draws") if row["draw"] == draw)

    assert f"at random kept {mean('random', 'edges_kept'):.0%} of the drawn nodes' edges" in TOLD_OF_SPEED
    assert f"one cluster {mean('one cluster', 'edges_kept'):.0%}" in TOLD_OF_SPEED
    errors = [f"{mean(draw, 'validation_mae'):.2f}" for draw in ("random", "one cluster", "all nodes")]
    assert errors[0] == errors[1]
    assert f"the same validation MAE, {errors[0]} against {errors[2]} with all nodes" in TOLD_OF_SPEED


def test_the_table_of_headroom_is_made_from_committed_rows():
    command = [sys.executable, str(ROOT / "benchmarks" / "headroom_check.py"), "--table"]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert made.count("\n") > 3
    assert f"\n\n{made}\n" in BENCHMARKS


@pytest.mark.parametrize("kind", ["short", "selection", "loss"])
def test_the_tables_of_speed_are_made_from_committed_rows(kind):
    """Every line that benchmarks/plot.py prints stands in one of the READMEs, and no other line of its tables."""
    command = [sys.executable, str(ROOT / "benchmarks" / "plot.py"), "--table", kind]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    tables = [block for block in made.split("\n\n") if block.startswith("|")]
    assert tables
    for table in tables:
        assert table.strip() + "\n\n" in (README if kind == "short" else BENCHMARKS)


def test_the_cost_of_the_tables_update_is_that_of_committed_rows():
    def median(job, contender):
        return next(r["median_ms"] for r in rows("loss-cpu") if (r["job"], r["contender"], r["threads"]) == (job, contender, 1))

    few, many = "ScoreTable.update B=64", "ScoreTable.update B=16384"
    small, large = ([median(job, name) for name in ("stprune", "index_copy_")] for job in (few, many))
    assert f"({small[0] * 1e3:.0f} against {small[1] * 1e3:.0f} us for 64 ids" in TOLD_OF_SPEED
    assert f"{large[0]:.2f} against {large[1]:.2f} ms for 16,384 of 10^7)" in TOLD_OF_SPEED


def test_the_results_of_examples_are_those_of_committed_rows():
    """Every `a ± b` of an example's line stands in what the example printed."""
    printed = {row["job"]: " ".join(row["printed"].split()) for row in rows("examples")}
    section = README.split("## Examples")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|") and ".py" in line]
    assert len(lines) == len(printed) == 9
    for line in lines:
        job = re.search(r"(\w+)\.py( --\w+)?", line)
        (name,) = [name for name in printed if name.removesuffix(" --shuffled") == job[1] + (job[2] or "")]
        figures = re.findall(r"[\d.]+ ± [\d.]+", line)
        assert figures
        for figure in figures:
            assert figure in printed[name], (name, figure)
