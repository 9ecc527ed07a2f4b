"""Names that tsl imports from torch_sparse and torch_scatter, which take half an hour to compile and are in no wheel.

Where the packages are there, they are taken. Nothing that stands in here is ever called: the tests' graphs have no edges.
"""

import contextlib
import importlib.machinery
import importlib.util
import sys
import types

import torch


# TorchScript compiles tsl's functions that name these, so they need types.
def gather_csr(src: torch.Tensor, indptr: torch.Tensor) -> torch.Tensor:
    raise NotImplementedError


def segment_csr(src: torch.Tensor, indptr: torch.Tensor, reduce: str = "sum") -> torch.Tensor:
    raise NotImplementedError


def scatter(
    src: torch.Tensor,
    index: torch.Tensor,
    dim: int = -1,
    out: torch.Tensor | None = None,
    dim_size: int | None = None,
    reduce: str = "sum",
) -> torch.Tensor:
    raise NotImplementedError


def broadcast(src: torch.Tensor, other: torch.Tensor, dim: int) -> torch.Tensor:
    raise NotImplementedError


MODULES = {
    "torch_sparse": {
        name: type(name, (), {}) for name in ("SparseTensor", "cat", "fill_diag", "matmul", "remove_diag", "set_diag")
    },
    "torch_scatter": {function.__name__: function for function in (gather_csr, segment_csr, scatter)},
    "torch_scatter.utils": {"broadcast": broadcast},
}


@contextlib.contextmanager
def importable():
    """Let tsl be imported inside; afterwards nobody finds what stood in."""
    missing = {name for name in MODULES if importlib.util.find_spec(name.partition(".")[0]) is None}
    if missing:
        import torch_geometric.data
        import torch_geometric.nn  # noqa: F401  it looks for the same packages, and must not find these
    for name in missing:
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(MODULES[name])
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]
