"""The READMEs tell what committed rows say."""

import importlib
import json
import pathlib
import re
import subprocess
import sys

import pytest

from stprune.study.command import LABELS
from stprune.study.results import compare
from stprune.study.rows import read
from stprune.study.summary import summarize

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BENCHMARKS = (ROOT / "benchmarks" / "README.md").read_text()
TOLD, TOLD_OF_SPEED = (" ".join(text.split()) for text in (README, BENCHMARKS))


def rows(name):
    return [json.loads(line) for line in (ROOT / "benchmarks" / "results" / f"{name}.jsonl").read_text().splitlines()]


def test_the_blocks_of_the_study_are_what_committed_rows_say():
    """README's first sentences, those of the demo, and the tables: `python benchmarks/study.py --write` makes them."""
    command = [sys.executable, str(ROOT / "benchmarks" / "study.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_defaults_are_what_the_study_found():
    """What `PruningSampler`'s docstring says of its defaults."""
    cells = summarize(read(ROOT / "benchmarks" / "results" / "study.jsonl"), LABELS).cells
    found = [{family.name: family.result for family in cell.families} for cell in cells]
    names = ("st-prune", "soft-random")
    dropped = [compare(cell[name], cell["full"]) for cell in found for name in names if cell.get(name)]
    assert sum(change.outside and change.mean < 0 for change in dropped) <= 0.1 * len(dropped)
    windows = []
    for cell in found:
        if cell.get("st-prune") and cell.get("soft-random"):
            assert not compare(cell["st-prune"], cell["soft-random"]).outside
        drawn = cell["nodes-uniform"] if cell.get("nodes-uniform") else None
        if drawn:
            assert drawn.setting.batch_size in (16, 64)
            windows.append(drawn.setting.batch_size * drawn.setting.num_drawn / drawn.runs[0].num_nodes)
    assert sum(size < 1.1 for size in windows) > 0.5 * len(windows)
    for name in ("nodes-priority", "nodes-stratified", "nodes-cluster", "nodes-frequency", "nodes-batch", "nodes-partition"):
        changes = [compare(cell[name], cell["nodes-uniform"]) for cell in found if cell.get(name)]
        assert len(changes) >= 5
        assert sum(change.outside and change.mean < 0 for change in changes) < len(changes) / 2, name


@pytest.mark.parametrize(
    ("series", "words"), [("LosLoop", "road speeds at 207 sensors"), ("ERA5", "temperatures at 600 to 1,617")]
)
def test_these_series_gained_nothing_beyond_the_seeds(series, words):
    cells = summarize(read(ROOT / "benchmarks" / "results" / "study.jsonl"), LABELS).cells
    found = [cell.find("nodes-uniform").result.change.better for cell in cells if series in cell.data]
    assert found == [False] * 3
    assert words in " ".join(README.split())


def test_the_longest_training_gained_from_drawing_nodes_too():
    cells = summarize(read(ROOT / "benchmarks" / "results" / "study.jsonl"), LABELS).cells
    longest = max(cells, key=lambda cell: cell.cost)
    assert f"{longest.cost:g} passes over {longest.num_nodes} nodes, gained from drawing nodes" in " ".join(README.split())
    assert not longest.smallest_is_best
    assert longest.find("nodes-uniform").result.change.better


def test_the_table_of_headroom_is_made_from_committed_rows():
    command = [sys.executable, str(ROOT / "benchmarks" / "headroom_check.py"), "--table"]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert made.count("\n") > 3
    assert f"\n\n{made}\n" in BENCHMARKS


@pytest.mark.parametrize("kind", ["short", "selection", "loss", "gpu", "gpu-short"])
def test_the_tables_of_speed_are_made_from_committed_rows(kind, monkeypatch, capsys):
    """Every line that benchmarks/plot.py prints stands in one of the READMEs, and no other line of its tables."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(sys, "argv", ["plot.py", "--table", kind])
    assert importlib.import_module("plot").main() == 0
    made = capsys.readouterr().out
    text = README if "short" in kind else BENCHMARKS
    tables = [block for block in made.split("\n\n") if block.startswith("|")]
    assert tables or (kind == "gpu-short" and made.strip() in text)
    for table in tables:
        assert table.strip() + "\n\n" in text


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
