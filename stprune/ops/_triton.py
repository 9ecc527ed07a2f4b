"""The Triton kernels, imported when an op first needs one: Triton is an optional dependency."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType


@functools.cache
def kernel_module(name: str) -> ModuleType | None:
    """`stprune.kernels.<name>`, or None where the package triton is not installed.

    An error inside the kernel's file is raised: a fault there must not look like a missing package.
    """
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module(f"stprune.kernels.{name}")
