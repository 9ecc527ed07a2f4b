"""Which kernel an op takes on a GPU: Triton's, or the reference where Triton is not installed."""

import importlib
import importlib.machinery
import importlib.util
import sys

import pytest
import torch

from stprune.ops._triton import kernel_module

series = torch.arange(24.0).view(12, 2, 1)


def gather_windows_as_on_a_gpu() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = torch.zeros(1, 3, 2, 1), torch.zeros(1, 2, 2, 1)
    op = importlib.import_module("stprune.ops.gather_windows")
    op._cuda(series, torch.tensor([4]), None, None, None, None, None, None, None, None, [0], False, False, x, y)
    return x, y


@pytest.fixture
def installed(monkeypatch):
    """Says whether triton is installed; forgets the kernels that were imported before and in the test."""
    find_spec = importlib.util.find_spec

    def say(spec):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "triton" else find_spec(name))

    kernel_module.cache_clear()
    yield say
    kernel_module.cache_clear()


def test_without_triton_the_reference_runs(installed):
    installed(None)
    x, y = gather_windows_as_on_a_gpu()
    assert torch.equal(torch.cat([x[0], y[0]]), series[4:9])


@pytest.mark.parametrize("fault", ["import trito", "from triton import langauge", "x = undefined", "def ("])
def test_a_fault_in_a_kernel_file_is_raised(installed, monkeypatch, tmp_path, fault):
    file, name = tmp_path / "gather_windows.py", "stprune.kernels.gather_windows"
    file.write_text(fault)

    class Finder:
        """Comes before those of an editable install, which know the files of the package by name."""

        @staticmethod
        def find_spec(asked, path=None, target=None):
            return importlib.util.spec_from_file_location(name, file) if asked == name else None

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    monkeypatch.delitem(sys.modules, name, raising=False)
    installed(importlib.machinery.ModuleSpec("triton", None))
    with pytest.raises((ImportError, NameError, SyntaxError)):
        gather_windows_as_on_a_gpu()
