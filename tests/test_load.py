"""The compiled library: loaded when built, reported and replaced by the references when not."""

import os
import pathlib
import subprocess
import sys

import pytest

import stprune
from stprune import _load

WORK = """
import sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import stprune
    import torch
    scores = torch.arange(200.0) % 17 + 1
    plan = stprune.plan_epoch(scores, method="st-prune", keep_ratio=0.25, epoch=1, seed=3)
    index, weight = stprune.draw_weighted(scores, 20, seed=1, epoch=2)
    loss = stprune.residual_stats(torch.ones(3, 4, 5), torch.zeros(3, 4, 5)).loss
print(sum("compiled CPU library" in str(w.message) for w in caught))
print(plan.indices.tolist(), plan.order(0, 10).tolist(), index.tolist(), weight.tolist(), loss.tolist())
print(stprune.library_status()["_C"].reason)
"""


def run(**environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STPRUNE_")}
    result = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=False, env=clean | environment)
    assert result.returncode == 0, result.stderr
    warned, values, reason = result.stdout.split("\n")[:3]
    return int(warned), values, reason


def test_it_is_loaded_here():
    status = stprune.library_status()["_C"]
    assert status.loaded, status.reason
    assert pathlib.Path(status.path).is_file()


@pytest.mark.parametrize(
    ("library", "reason"),
    [
        (None, "switched off by STPRUNE_DISABLE_NATIVE=1"),
        (b"\x7fELF stprune-abi:0;", "built for another version"),
        (b"\x7fELF stprune-abi:%d;" % _load.ABI_VERSION, "could not be loaded"),
        (b"", "could not be loaded"),
    ],
)
def test_without_it_results_are_the_same_and_one_warning_says_why(tmp_path, library, reason):
    warned, expected, nothing = run()
    assert (warned, nothing) == (0, "")
    if library is None:
        warned, values, why = run(STPRUNE_DISABLE_NATIVE="1")
        assert warned == 0  # asked for
    else:
        (tmp_path / "_C.so").write_bytes(library)
        warned, values, why = run(STPRUNE_LIBRARY_DIR=str(tmp_path))
        assert warned == 1
    assert reason in why
    assert values == expected


def test_a_library_that_was_never_built(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    status = _load._load_one("_C", _load._folders([str(tmp_path)]))
    assert not status.loaded
    assert "pip install" in status.reason


def test_an_install_further_down_the_path_is_found(tmp_path, monkeypatch):
    (tmp_path / "stprune").mkdir()
    (tmp_path / "stprune" / "_C.so").write_bytes(b"library")
    monkeypatch.setattr(sys, "path", ["", str(tmp_path)])
    assert _load._find("_C", _load._folders(["/nowhere"])) == tmp_path / "stprune" / "_C.so"
