"""The dynamic symbols of a compiled library, as nm lists them."""

import re
import shutil
import subprocess

import pytest

needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")


def symbols(path, which):
    """Pairs (kind, name) of the symbols that the library needs ("undefined") or has ("defined")."""
    listing = subprocess.run(["nm", "-D", f"--{which}-only", path], capture_output=True, text=True, check=True).stdout
    return [tuple(line.split()[-2:]) for line in listing.splitlines()]


def torch_symbols(path):
    """What the library needs of torch, after a check that it is of the stable ABI, and the rest of the C and C++ runtimes.

    Mangled names of torch (c10::, at::, torch::), of the Python C API or of CUDA would appear here without a version: CUDA's
    runtime is linked in, its driver is found when it is used.
    """
    found = [name for _, name in symbols(path, "undefined")]
    of_torch = [name for name in found if re.match(r"(aoti_torch_|torch_)", name)]
    for name in set(found) - set(of_torch):
        # Versioned symbols come from glibc, libstdc++ or libgcc; the rest are weak hooks of the C runtime.
        versioned = re.search(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+$", name)
        runtime = name in {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__"}
        assert versioned or runtime, f"{name} is no part of the stable ABI"
    return of_torch
