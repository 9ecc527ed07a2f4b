"""The compiled CPU library: what it may depend on, and that it changes no result."""

import ctypes
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import stprune
from stprune import testing

LIBRARY = stprune.library_status()["_C"].path
needs_library = pytest.mark.skipif(LIBRARY is None, reason="the compiled CPU library is not built")

# Every op once or twice, on inputs that need no random generator; prints one digest a line.
DIGESTS = """
import hashlib, torch, stprune
from stprune import testing

def show(name, *tensors):
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    print(name, digest.hexdigest())

for kind in ("normal", "tie_at_k", "inf"):
    keys = testing.named_keys(kind, 30_000)
    show(f"select {kind}", stprune.select(keys, 9_000))
    show(f"topk {kind}", *stprune.topk(keys.double(), 700))
p = testing.named_keys("normal", 30_000).sigmoid()
show("draw", stprune.draw(p, seed=1, epoch=2))
show("draw count", stprune.draw(p, seed=1, epoch=2, count=round(float(p.double().sum()))))
w = testing.named_keys("normal", 30_000).relu()
show("priority", *stprune.draw_weighted(w, 2_000, seed=1, epoch=2))
show("race", stprune.draw_weighted(w, 2_000, seed=1, epoch=2, law="race")[0])
show("shuffle", stprune.shuffle(torch.arange(30_000), seed=1, epoch=2))
show("shuffle few", stprune.shuffle(torch.arange(300), seed=1, epoch=2))
show("draw_nodes", stprune.draw_nodes(torch.arange(50), num_nodes=300, count=90, seed=1, epoch=2))
"""


def digests(**environment):
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DIGESTS],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return dict(line.rsplit(" ", 1) for line in result.stdout.splitlines())


@needs_library
def test_same_bits_without_the_library():
    compiled, reference = digests(), digests(STPRUNE_DISABLE_NATIVE="1")
    assert len(compiled) == 13
    assert compiled == reference


def test_digests_cover_every_op_of_the_selection_engine():
    for name in ("select", "topk", "draw", "draw_weighted", "shuffle", "draw_nodes"):
        assert f"stprune.{name}(" in DIGESTS


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
