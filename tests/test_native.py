"""The compiled CPU library: what it holds and what it may depend on."""

import ctypes
import pathlib
import re

import pytest
from library_symbols import needs_nm, symbols, torch_symbols

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


@needs_library
@needs_nm
def test_library_needs_only_the_stable_abi_and_the_c_and_cpp_runtimes():
    assert "torch_parallel_for" in torch_symbols(LIBRARY)


@needs_library
@needs_nm
def test_library_exports_only_its_own_names():
    functions = {name.split("@")[0] for kind, name in symbols(LIBRARY, "defined") if kind in "TDB"}
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
