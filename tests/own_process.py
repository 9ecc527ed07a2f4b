"""Scripts that run in a process of their own: TRITON_INTERPRET must be set before a kernel is imported, and is not undone."""

import os
import pathlib
import subprocess
import sys

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
