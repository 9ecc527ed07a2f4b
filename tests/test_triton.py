"""The way to the Triton kernels: which one an op takes on a GPU, what a fault says, and on which device it is launched."""

import contextlib
import importlib
import importlib.machinery
import importlib.util
import pathlib
import sys
import types

import pytest
import torch
from graph_jobs import JOBS
from own_process import needs_triton
from torch._subclasses.fake_tensor import FakeTensorMode

import stprune
from stprune import cli
from stprune.ops import _registry

ROOT = pathlib.Path(__file__).resolve().parents[1]
series = torch.arange(24.0).view(12, 2, 1)


def gather_windows_as_on_a_gpu(start: int = 0, node: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = torch.zeros(1, 3, 2, 1), torch.zeros(1, 2, 2, 1)
    op = importlib.import_module("stprune.ops.gather_windows")
    op._cuda(series, torch.tensor([start]), node, None, None, None, None, None, None, None, [0], False, False, x, y)
    return x, y


@pytest.fixture
def installed(monkeypatch):
    """Says where triton is installed; forgets the kernels that were imported before and in the test."""
    find_spec = importlib.util.find_spec

    def say(spec):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "triton" else find_spec(name))

    _registry.kernel_module.cache_clear()
    yield say
    _registry.kernel_module.cache_clear()


@pytest.mark.parametrize("spec", [None, importlib.machinery.ModuleSpec("triton", None)], ids=["nothing", "a folder"])
def test_without_triton_the_reference_runs(installed, spec):
    installed(spec)
    assert not _registry.has_triton()
    x, y = gather_windows_as_on_a_gpu(4)
    assert torch.equal(torch.cat([x[0], y[0]]), series[4:9])
    with pytest.raises(RuntimeError, match=r"gather_windows: start must lie in \[0, 7\]"):
        gather_windows_as_on_a_gpu(8)
    with pytest.raises(RuntimeError, match=r"gather_windows: node must lie in \[0, 1\]"):
        gather_windows_as_on_a_gpu(4, torch.tensor([[0, 2]]))


def test_a_stub_in_place_of_triton_is_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", types.ModuleType("triton"))
    assert not _registry.has_triton()


FAULTS = pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("import trito", "ModuleNotFoundError: No module named 'trito'"),
        ("from json import no_such_name", "ImportError: cannot import name 'no_such_name'"),
        ("import json; json.no_such_name", "AttributeError: module 'json' has no attribute 'no_such_name'"),
        ("def (", "SyntaxError: "),
        ("raise OSError('libtriton.so: undefined symbol')", "OSError: libtriton.so: undefined symbol"),
    ],
)


@pytest.fixture
def broken(installed, monkeypatch, tmp_path):
    """Puts a fault into the file of a kernel, with Triton installed."""
    file, name = tmp_path / "gather_windows.py", "stprune.kernels.gather_windows"

    class Finder:
        """Comes before those of an editable install, which know the files of the package by name."""

        @staticmethod
        def find_spec(asked, path=None, target=None):
            return importlib.util.spec_from_file_location(name, file) if asked == name else None

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    monkeypatch.delitem(sys.modules, name, raising=False)
    installed(importlib.machinery.ModuleSpec("triton", None, origin="somewhere"))
    return file.write_text


@FAULTS
def test_a_triton_that_cannot_be_imported_is_an_error_with_its_reason_at_every_call(broken, fault, reason):
    broken(fault)
    for _ in range(2):
        with pytest.raises(RuntimeError) as caught:
            gather_windows_as_on_a_gpu()
        assert f"stprune: the Triton kernels of gather_windows cannot be imported ({reason}" in str(caught.value)


@needs_triton
@FAULTS
def test_info_shows_the_reason(broken, fault, reason):
    broken(fault)
    status = stprune.library_status()["triton"]
    assert (status.loaded, status.path) == (False, None)
    (line,) = [line for line in cli.info().splitlines() if line.startswith("triton: ")]
    assert line.startswith(f"triton: not loaded, stprune: the Triton kernels of gather_windows cannot be imported ({reason}")


@needs_triton
def test_info_names_triton_and_its_version(monkeypatch):
    status = stprune.library_status()["triton"]
    assert (status.loaded, status.reason) == (True, "")
    assert pathlib.Path(status.path, "gather_windows.py").is_file()
    assert f"triton {importlib.import_module('triton').__version__}" in cli.info().splitlines()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    (line,) = [line for line in cli.info().splitlines() if line.startswith("ops on cuda, triton: ")]
    compiled = {op for op, way in stprune.implementations("cuda").items() if way == "compiled"}
    assert line.removeprefix("ops on cuda, triton: ").split(", ") == sorted(_registry.BY_TRITON.keys() - compiled)


def test_what_runs_each_op_on_a_gpu(installed):
    """Of a build without the CUDA library: what has a Triton kernel, on plain torch where Triton is not installed."""
    compiled = {op for op, way in stprune.implementations("cuda").items() if way == "compiled"}
    assert (compiled != set()) == stprune.library_status()["_C_cuda"].loaded
    installed(importlib.machinery.ModuleSpec("triton", None, origin="somewhere"))
    triton = {op for op, way in stprune.implementations("cuda").items() if way == "triton"}
    assert triton == set(_registry.BY_TRITON) - compiled
    installed(None)
    assert {way for op, way in stprune.implementations("cuda").items() if op not in compiled} == {"torch"}
    with pytest.raises(ValueError, match="implementations: device must be 'cpu' or 'cuda', got 'cuda:0'"):
        stprune.implementations("cuda:0")


@needs_triton
@pytest.mark.parametrize(("name", "file"), _registry.BY_TRITON.items())
def test_every_op_has_the_launcher_that_is_asked_for(name, file):
    assert callable(getattr(_registry.kernel_module(file), name))


def test_the_registry_is_the_only_way_to_the_kernels():
    words = ("stprune.kernels", "import triton", "from triton")
    ways = {path.name for path in (ROOT / "stprune").rglob("*.py") if any(word in path.read_text() for word in words)}
    assert ways == {"_registry.py"}


class OnGpu(torch.Tensor):
    """A tensor that says it lives on a GPU; its memory is the host's."""

    is_cuda = True


def test_an_id_out_of_range_is_named_by_the_ops_that_index_on_a_gpu():
    """Without a compiled library, as here: indexing's own assertion on the device would name neither op nor argument."""
    module = importlib.import_module("stprune.ops.gather_nodes")
    x, node = torch.rand(1, 2, 5, 3), torch.tensor([[0, 4]])
    assert torch.equal(module._plain(x.as_subclass(OnGpu), node), x[:, :, [0, 4]])
    with pytest.raises(RuntimeError, match=r"gather_nodes: node must lie in \[0, 4\]"):
        module._plain(x.as_subclass(OnGpu), node + 1)
    sizes = {"num_windows": 9, "num_nodes": 5, "count": 2, "seed": 0}
    laws = {"Priority": stprune.Priority(), "Observed": stprune.Observed(torch.rand(9, 5) > 0.5)}
    for name, law in laws.items():
        bound, index = law.bind(**sizes), torch.tensor([8])
        assert torch.equal(bound.draw(index.as_subclass(OnGpu), 1)[0], bound.draw(index, 1)[0])
        for wrong in (index + 1, index - 9):
            with pytest.raises(RuntimeError, match=rf"{name}.draw: index must lie in \[0, 8\]"):
                bound.draw(wrong.as_subclass(OnGpu), 1)


def test_forgetting_looks_at_ids_on_a_gpu_before_it_changes_anything():
    class Elsewhere(torch.Tensor):
        device = torch.device("cuda:0")

        def cpu(self):
            return self.as_subclass(torch.Tensor)

    table = stprune.ScoreTable(9)
    table.update(torch.arange(9), torch.ones(9))
    with pytest.raises(ValueError, match=r"ScoreTable.forget: index must lie in \[0, 8\], got 9"):
        table.forget(torch.tensor([0, 9]).as_subclass(Elsewhere))
    assert torch.equal(table.scores, torch.ones(9))


class OnSecondGpu(torch.Tensor):
    """A tensor that says it lives on the second GPU; its memory is the host's."""

    is_cuda = True
    device = torch.device("cuda:1")


@pytest.mark.parametrize("place", [0, 1], ids=["first", "second"])
def test_a_kernel_is_launched_on_the_device_of_its_tensors(monkeypatch, place):
    current, seen = [torch.device("cuda:0")], []

    @contextlib.contextmanager
    def device(chosen):
        current.append(chosen)
        yield
        current.pop()

    def launcher(*arguments):
        seen.append((current[-1], arguments))
        return "result"

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(_registry, "BY_TRITON", {})
    monkeypatch.setattr(_registry, "kernel_module", lambda file: types.SimpleNamespace(op=launcher) if file == "home" else None)
    run = _registry.by_triton("op", lambda *arguments: "reference", file="home")
    # Tables may be absent, and then are not the first tensor.
    arguments = (*[None] * place, torch.ones(2).as_subclass(OnSecondGpu), 3)
    assert run(*arguments) == "result"
    assert seen == [(torch.device("cuda:1"), arguments)]
    assert current == [torch.device("cuda:0")]
    assert run(*[None] * place, torch.ones(2), 3) == "result"
    assert seen[1][0] == torch.device("cuda:0"), "without a GPU, as in the interpreter, there is no device to choose"


def test_a_compiler_that_traces_an_op_does_not_enter_it(monkeypatch):
    """Fake tensors on a GPU, as torch.compile has them, take the op's fake kernel."""
    monkeypatch.setattr(_registry, "kernel_module", None)
    ops = torch.ops.stprune
    sizes = {"series": (30, 5), "cube": (30, 5, 1), "weights": (4, 5), "x": (4, 12, 5, 1), "y": (4, 6, 5, 1)}
    with FakeTensorMode():
        index, std = torch.empty(4, dtype=torch.int64, device="cuda:1"), torch.empty(5, dtype=torch.float64, device="cuda:1")
        series, cube, weights, x, y = (torch.empty(size, device="cuda:1") for size in sizes.values())
        results = [
            ops.draw_nodes(index, 5, 2, 1, 2),
            *ops.draw_nodes_weighted(weights, index, 2, 1, 2),
            *ops.window_stats(series, 12, 6, 1, 0, None, std, True),
        ]
        assert ops.gather_windows(cube, index, *[None] * 8, [0], False, True, x, y) is None
    assert all(result.device == torch.device("cuda:1") for result in results)
    assert [tuple(result.shape) for result in results] == [(4, 2), (4, 2), (4, 2), (6, 13, 5), (1,)]


@pytest.mark.parametrize("name", JOBS)
def test_jobs_of_the_graphs_that_a_gpu_captures_run_here(name):
    """So that they keep up with the package where no GPU is."""
    make, first, second = JOBS[name]
    job, before = make(first.device), first.clone()
    results = [job(x).clone() for x in (first, second, first)]
    assert torch.equal(results[0], results[2])
    assert not torch.equal(results[0], results[1])
    assert torch.equal(first, before)
