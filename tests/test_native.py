"""The compiled CPU library: what it holds and what it may depend on."""

import ctypes
import pathlib
import re
import shutil
import subprocess

import pytest

import stprune
from stprune import testing

LIBRARY = stprune.library_status()["_C"].path
needs_library = pytest.mark.skipif(LIBRARY is None, reason="the compiled CPU library is not built")


@needs_library
def test_library_holds_every_op_of_the_sources():
    # Without this, an op that was left out of the build would run in Python and pass its tests.
    sources = (pathlib.Path(__file__).parents[1] / "csrc" / "cpu").glob("*.cpp")
    names = {name for source in sources for name in re.findall(r'm\.impl\("(\w+)"', source.read_text())}
    library = pathlib.Path(LIBRARY).read_bytes()
    assert "window_stats" in names
    assert [name for name in names if name.encode() + b"\0" not in library] == []


def undefined_symbols(path):
    listing = subprocess.run(["nm", "-D", "--undefined-only", path], capture_output=True, text=True, check=True).stdout
    return [line.split()[-1] for line in listing.splitlines()]


@needs_library
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_library_needs_only_the_stable_abi_and_the_c_and_cpp_runtimes():
    torch_symbols, others = [], []
    for symbol in undefined_symbols(LIBRARY):
        (torch_symbols if re.match(r"(aoti_torch_|torch_)", symbol) else others).append(symbol)
    assert "torch_parallel_for" in torch_symbols
    for symbol in others:
        # Versioned symbols come from glibc, libstdc++ or libgcc; the rest are weak hooks of the C runtime. Mangled names
        # of torch (c10::, at::, torch::) or of the Python C API would appear here without a version.
        versioned = re.search(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+$", symbol)
        runtime = symbol in {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__"}
        assert versioned or runtime, f"{symbol} is no part of the stable ABI"
        assert not symbol.startswith("Py")


@needs_library
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_library_exports_only_its_own_names():
    listing = subprocess.run(["nm", "-D", "--defined-only", LIBRARY], capture_output=True, text=True, check=True).stdout
    functions = {line.split()[-1].split("@")[0] for line in listing.splitlines() if line.split()[1] in "TDB"}
    assert functions == {"stprune_isa", "stprune_set_isa"}


@needs_library
def test_instruction_sets_can_be_forced():
    library = ctypes.CDLL(LIBRARY)
    library.stprune_isa.restype = ctypes.c_char_p
    widest = library.stprune_isa()
    names = testing.isas()
    assert names[0] == "baseline"
    for name in names:
        with testing.isa(name):
            assert library.stprune_isa() == name.encode()
        assert library.stprune_isa() == widest
    library.stprune_set_isa.restype = ctypes.c_int64
    assert library.stprune_set_isa(7) == -1
    assert library.stprune_isa() == widest
