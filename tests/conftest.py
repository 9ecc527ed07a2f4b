"""Settings every test runs under."""

import os

# An OpenMP team that spins between parallel regions costs milliseconds each time a neighbour holds a core.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Without it cuBLAS does not promise that a product has the same bits on another stream, as a captured step has one.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pathlib

import pytest
import torch

ABOVE = pathlib.Path(__file__).resolve().parents[2:4]
DATA = next((folder / "shared" / "data" for folder in ABOVE if (folder / "shared" / "data").is_dir()), None)


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """torch.empty hands out NaN, so an output that a kernel forgot to write is seen."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = before


@pytest.fixture
def threads():
    """Set torch's thread count for one test: `threads(3)`."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """Folder of the real series, beside the checkout."""
    if DATA is None:
        pytest.skip("the real series are not beside this checkout (../shared/data)")
    return DATA
