"""Scripts that run in a process of their own: TRITON_INTERPRET must be set before a kernel is imported, and is not undone."""

import fcntl
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest

from stprune.ops._registry import has_triton

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed")


def run(script: str, *arguments: str, **environment: str) -> str:
    """What the script printed; its error output fails the test."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = [str(pathlib.Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *arguments],
        env={**clean, "PYTHONPATH": os.pathsep.join(path), **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


def simulated(script: str, library: pathlib.Path, cache: pathlib.Path, *, seed: int = 0, capability: int = 90) -> str:
    """What a script printed whose kernels were compiled for a GPU and ran on the simulated one.

    seed: of the order in which threads run, 0 for one after the other. cache: a folder, with the script as a file in it.
    """
    file = cache / "script.py"
    file.write_text(script)
    start = f"import runpy; runpy.run_path({str(file)!r})"
    return run(start, SIMULATED_GPU=f"{library},{seed},{capability}", TRITON_CACHE_DIR=str(cache / "triton"))


def made_once(
    tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[pathlib.Path], pathlib.Path]
) -> pathlib.Path:
    """A file that takes long to make, in a folder that `make` is given: one of the run's test processes makes it for all."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = folder / name
        # A process that is stopped leaves nothing half made.
        return made if made.exists() else make(tmp_path_factory.mktemp("made")).rename(made)
