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
from own_process import needs_triton

from stprune.ops import _registry

ROOT = pathlib.Path(__file__).resolve().parents[1]
series = torch.arange(24.0).view(12, 2, 1)


def gather_windows_as_on_a_gpu() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = torch.zeros(1, 3, 2, 1), torch.zeros(1, 2, 2, 1)
    op = importlib.import_module("stprune.ops.gather_windows")
    op._cuda(series, torch.tensor([4]), None, None, None, None, None, None, None, None, [0], False, False, x, y)
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
    x, y = gather_windows_as_on_a_gpu()
    assert torch.equal(torch.cat([x[0], y[0]]), series[4:9])


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("import trito", "ModuleNotFoundError: No module named 'trito'"),
        ("from json import no_such_name", "ImportError: cannot import name 'no_such_name'"),
        ("import json; json.no_such_name", "AttributeError: module 'json' has no attribute 'no_such_name'"),
        ("def (", "SyntaxError: "),
        ("raise OSError('libtriton.so: undefined symbol')", "OSError: libtriton.so: undefined symbol"),
    ],
)
def test_a_triton_that_cannot_be_imported_is_an_error_with_its_reason(installed, monkeypatch, tmp_path, fault, reason):
    file, name = tmp_path / "gather_windows.py", "stprune.kernels.gather_windows"
    file.write_text(fault)

    class Finder:
        """Comes before those of an editable install, which know the files of the package by name."""

        @staticmethod
        def find_spec(asked, path=None, target=None):
            return importlib.util.spec_from_file_location(name, file) if asked == name else None

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    monkeypatch.delitem(sys.modules, name, raising=False)
    installed(importlib.machinery.ModuleSpec("triton", None, origin="somewhere"))
    for _ in range(2):
        with pytest.raises(RuntimeError) as caught:
            gather_windows_as_on_a_gpu()
        assert f"stprune: the Triton kernels of gather_windows cannot be imported ({reason}" in str(caught.value)


@needs_triton
@pytest.mark.parametrize(("name", "file"), _registry.BY_TRITON.items())
def test_every_op_has_the_launcher_that_is_asked_for(name, file):
    assert callable(getattr(_registry.kernel_module(file), name))


def test_every_file_of_kernels_belongs_to_an_op_and_the_registry_is_the_only_way_to_it():
    assert {path.stem for path in (ROOT / "kernels").glob("*.py")} == set(_registry.BY_TRITON.values())
    ways = [path.name for path in (ROOT / "stprune").rglob("*.py") if "stprune.kernels" in path.read_text()]
    assert ways == ["_registry.py"]


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


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
def test_two_devices_in_one_process():
    """The current device stays the first one; what is on the second is computed there."""
    start = torch.arange(4)
    values = torch.randn(100, 7, 1, generator=torch.Generator().manual_seed(0))
    for device in ("cuda:0", "cuda:1"):
        module = importlib.import_module("stprune.ops.gather_windows")
        x, y = module.gather_windows(values.to(device), start, history=5, horizon=3)
        wanted = module.gather_windows(values, start, history=5, horizon=3)
        assert x.device == y.device == torch.device(device)
        assert torch.equal(x.cpu(), wanted[0])
        assert torch.equal(y.cpu(), wanted[1])
        assert torch.cuda.current_device() == 0
