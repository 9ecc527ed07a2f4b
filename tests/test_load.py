"""The compiled library: loaded when built, reported and replaced by the references when not."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from own_process import needs_triton
from own_process import run as run_alone

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
    clean = {name: value for name, value in os.environ.items() if name != "STPRUNE_DISABLE_NATIVE"}
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
        (b"\x7fELF stprune-contract:0123456789abcdef;", "built for other op schemas of stprune; build it again"),
        (b"\x7fELF stprune-contract:%s;" % _load.contract().encode(), "could not be loaded"),
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
    monkeypatch.delenv("STPRUNE_LIBRARY_DIR", raising=False)
    status = _load._load_one("_C", _load._folders([str(tmp_path)]), "")
    assert not status.loaded
    assert "pip install" in status.reason


def test_an_install_further_down_the_path_is_found(tmp_path, monkeypatch):
    (tmp_path / "stprune").mkdir()
    (tmp_path / "stprune" / "_C.so").write_bytes(b"library")
    monkeypatch.setattr(sys, "path", ["", str(tmp_path)])
    monkeypatch.delenv("STPRUNE_LIBRARY_DIR", raising=False)
    assert _load._find("_C", _load._folders(["/nowhere"])) == tmp_path / "stprune" / "_C.so"


@needs_triton
def test_a_checkout_that_is_not_installed_finds_its_triton_kernels(tmp_path):
    """benchmarks/gpu.sh runs one: the wheel gives it compiled libraries only."""
    root = pathlib.Path(__file__).resolve().parents[1]
    shutil.copytree(root / "stprune", tmp_path / "stprune", ignore=shutil.ignore_patterns("kernels"))
    shutil.copytree(root / "kernels", tmp_path / "kernels")
    # An editable install's finder comes before the path.
    script = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "Redirect" not in type(finder).__name__]
sys.path.insert(0, sys.argv[1])
import stprune
print(stprune.library_status()["triton"].path)
print(stprune.kernels.table_update.__file__)
"""
    found = run_alone(script, str(tmp_path)).splitlines()
    assert found == [str(tmp_path / "kernels"), str(tmp_path / "kernels" / "table_update.py")]


def contract_of(package):
    script = pathlib.Path(__file__).resolve().parents[1] / "cmake" / "contract.py"
    return subprocess.run([sys.executable, script, package], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("ops/select.py", '"select(Tensor keys, SymInt k,', '"select(Tensor keys, int k,'),
        ("reference/plan_weights.py", "MIN_STRATUM = 30", "MIN_STRATUM = 31"),
        ("reference/random.py", "SHUFFLE = 2", "SHUFFLE = 2  # the same number"),
    ],
)
def test_a_library_is_built_for_the_schemas_and_constants_of_its_sources(tmp_path, file, old, new):
    """What cmake/contract.py finds in the source files is what the imported package has; only a change of meaning counts."""
    package = tmp_path / "stprune"
    shutil.copytree(next(path for path in map(pathlib.Path, stprune.__path__) if (path / "ops").is_dir()), package)
    assert contract_of(package) == _load.contract()
    text = (package / file).read_text()
    assert text.count(old) == 1
    (package / file).write_text(text.replace(old, new))
    assert (contract_of(package) == _load.contract()) == ("same" in new)


def test_a_fresh_interpreter_finds_the_models():
    run_alone("import stprune; stprune.models.STID")


def test_the_version_stands_once():
    """Builds read it from the file where it stands."""
    root = pathlib.Path(__file__).resolve().parents[1]
    project = (root / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in project
    assert not re.search(r'^version = "', project, re.MULTILINE)
    found = re.findall(r'^__version__ = "(.*)"$', (root / "stprune" / "__init__.py").read_text(), re.MULTILINE)
    assert found == [stprune.__version__]
