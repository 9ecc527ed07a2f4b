"""What benchmarks/ranks.py states on paper, against what two real processes count."""

import importlib
import pathlib
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"


def test_the_numbers_on_paper_are_those_counted(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    ranks = importlib.import_module("ranks")
    sys.modules.pop("records")
    samples, keep_ratio = 200_000, 0.3
    paper = ranks.on_paper(samples, 2, keep_ratio)
    for found in ranks.measured(samples, 2, keep_ratio):
        assert found["kept"] == 60_000
        assert found["messages"] < 30
        dealt, scored = found["largest"]
        assert dealt == pytest.approx(paper["dealt"], rel=0.05)
        assert scored == pytest.approx(paper["scored"], rel=0.05)
        assert found["sent"] - dealt - scored == pytest.approx(paper["small"], rel=0.25)
        assert found["held"] == pytest.approx(paper["held"], rel=0.05)
    large = ranks.on_paper(1e10, 1024, 0.3)
    assert large["small"] < 10e6 < large["dealt"] + large["scored"] < 110e6
