"""The kernels as they are compiled for a GPU, run on a simulated one: PTX of Triton's kernels against the references.

Triton's interpreter runs what the source says, one program after the other. Here runs what the compiler made of it, thread by
thread in several orders: barriers, layouts, shuffles and atomics, alignment, bounds of memory, races. The CUDA library's turn
is tests/test_simulated_cuda.py. What this cannot see: time, and whatever differs between a GPU and PTX's definition.
"""

import ctypes
import pathlib
import shutil

import pytest
import torch
from own_process import made_once, needs_triton, simulated

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
pytestmark = [needs_triton, needs_compiler]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    device = pytest.importorskip("gpu.device")
    return made_once(tmp_path_factory, "libgpu.so", device.build)


def script(file, name):
    return getattr(__import__(file), name)


SCRIPTS = [
    ("test_draw_nodes_triton", "INTERPRETED", "ok"),
    ("test_gather_windows_triton", "INTERPRETED", "same"),
    ("test_loss_triton", "INTERPRETED", "ok"),
    ("test_step_triton", "TABLE", "ok"),
    ("test_step_triton", "STEP", "ok"),
    ("test_window_stats_triton", "SIMULATED", "ok"),
]


@pytest.mark.parametrize(("file", "name", "says"), SCRIPTS, ids=[f"{file[5:-7]} {name.lower()}" for file, name, _ in SCRIPTS])
def test_compiled_kernels_match_the_reference(library, tmp_path, file, name, says):
    # Threads in a random order, from the last block to the first.
    assert simulated(script(file, name), library, tmp_path, seed=7).strip() == says


TRAFFIC = """
import torch
from triton_kernels import DRIVER, load

def moved(name, unit, call):
    DRIVER.gpu.set()
    results = call()
    reads, writes = (x / unit for x in DRIVER.gpu.traffic)
    print(f"| {name} | {DRIVER.gpu.launches} | {reads:.1f} | {writes:.1f} |")
    return results

loss, back, cut, stats = map(load, ("pruned_loss", "pruned_loss_backward", "gather_windows", "window_stats"))
generator = torch.Generator().manual_seed(0)
for dtype in (torch.float32, torch.bfloat16):
    prediction, target = (torch.randn(4, 12, 860, generator=generator).to(dtype) for _ in range(2))
    unit, rule = 2 * prediction.nbytes, (0.0, 0.0, 0, 1.0)
    kind = str(dtype)[6:]
    _, _, _, count, _ = moved(f"loss, {kind}", unit, lambda: loss.pruned_loss(
        prediction, target, *[None] * 5, *rule, 0.5, 0.5, False))
    moved(f"its gradient, {kind}", unit, lambda: back.pruned_loss_backward(
        torch.tensor(1.0), None, prediction, target, *[None] * 5, *rule, count, False))
series, start = torch.randn(60, 700, 1, generator=generator), torch.arange(0, 36, 4)
node = torch.stack([torch.randperm(700, generator=generator)[:70].sort().values for _ in range(9)])
for name, nodes in (("all nodes", None), ("a tenth of them", node)):
    x, y = (torch.empty(9, 12, 700 if nodes is None else 70, 1) for _ in range(2))
    moved(f"windows of {name}", x.nbytes + y.nbytes, lambda: cut.gather_windows(
        series, start, nodes, *[None] * 7, [0], False, True, x, y))
series, inverse_std = torch.randn(600, 300, generator=generator), torch.ones(300, dtype=torch.float64)
moved("`window_stats`", series.nbytes, lambda: stats.window_stats(series, 12, 12, 1, 0, None, inverse_std, False))
"""


def test_bytes_moved_are_those_of_the_readme(library, tmp_path):
    readme = (pathlib.Path(__file__).resolve().parents[1] / "kernels" / "README.md").read_text().splitlines()
    rows = simulated(TRAFFIC, library, tmp_path).splitlines()
    assert len(rows) == 7
    assert [row for row in rows if row not in readme] == []


ASSERTED = """
import torch
from triton_kernels import load
from stprune.nodes.pair_table import PairTable

def refused(call):
    try:
        call()
    except AssertionError as error:
        print(error)

draw, cut, columns = load("draw_nodes"), load("gather_windows"), PairTable(9, 40).columns
x, y = torch.empty(1, 2, 3, 1), torch.empty(1, 2, 3, 1)
for window, start, node in ((8, 5, 4), (9, 9, 4), (-1, -1, 4), (0, 0, 5), (0, 0, -1)):
    refused(lambda: draw.draw_nodes_by_score(*columns, torch.tensor([window]), 40, 30, 0.25, 7, 8))
    nodes = torch.tensor([[0, node, 1]])
    refused(lambda: cut.gather_windows(
        torch.rand(10, 5, 1), torch.tensor([start]), nodes, *[None] * 7, [0], False, True, x, y
    ))
"""


def test_wrong_ids_stop_the_kernels_by_name(library, tmp_path):
    said = simulated(ASSERTED, library, tmp_path).splitlines()
    start = "gather_windows: start must lie in [0, number of rows - history - horizon]"
    node = "gather_windows: node must lie in [0, number of nodes - 1]"
    window = "Priority.draw: index must lie in [0, number of windows - 1]"
    assert said == [f"device check failed: {x}" for x in (window, start, window, start, node, node)]


HEAD = ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 k_out)\n{\n"
HEAD += ".reg .pred %p<9>;\n.reg .b32 %r<19>;\n.reg .b64 %d<19>;\n.shared .align 4 .b8 cells[256];\n"
# %r1: the thread, %r2: its neighbour, %d2 and %d3: their places in memory, %r4 and %r5: in shared memory, %r6: the block.
HEAD += """
  ld.param.u64 %d1, [k_out];
  mov.u32 %r1, %tid.x;
  mov.u32 %r6, %ctaid.x;
  xor.b32 %r2, %r1, 1;
  mul.wide.u32 %d4, %r1, 4;
  mul.wide.u32 %d5, %r2, 4;
  add.s64 %d2, %d1, %d4;
  add.s64 %d3, %d1, %d5;
  mov.u32 %r3, cells;
  shl.b32 %r4, %r1, 2;
  shl.b32 %r5, %r2, 2;
  add.s32 %r4, %r4, %r3;
  add.s32 %r5, %r5, %r3;
"""
EXCHANGE = "st.shared.u32 [%r4], %r1; {} ld.shared.u32 %r7, [%r5]; st.global.u32 [%d2], %r7;"
RULES = {
    "a barrier": (1, EXCHANGE.format("bar.sync 0;"), None),
    "no barrier": (1, EXCHANGE.format(""), "races with a|read before it is written"),
    "a barrier of the warp": (1, EXCHANGE.format("bar.warp.sync -1;"), None),
    "nothing written": (1, "ld.shared.u32 %r7, [%r5]; st.global.u32 [%d2], %r7;", "shared memory is read before"),
    "out of shared memory": (1, "st.shared.u32 [%r4+256], %r1;", "outside of shared memory"),
    "out of memory": (1, "st.global.u32 [%d2+4096], %r1;", "writes outside of the memory"),
    "not aligned": (1, "st.global.v2.u32 [%d2], {%r1, %r1};", "not a multiple of 8"),
    "two barriers": (1, "setp.gt.u32 %p1, %r1, 3; @%p1 bar.sync 0; @!%p1 bar.sync 1;", "wait for each other for ever"),
    "a barrier of more than there are": (1, "setp.gt.u32 %p1, %r1, 3; @%p1 bar.sync 0, 64;", "wait for each other for ever"),
    "a shuffle of half a warp": (
        1,
        "setp.gt.u32 %p1, %r1, 15; @%p1 bra DONE; shfl.sync.bfly.b32 %r7|%p2, %r1, 1, 31, -1; DONE: ret;",
        "wait for each other for ever",
    ),
    "two blocks write": (2, "st.global.u32 [%d1], %r6;", "races with a write of thread"),
    "two blocks add": (2, "atom.global.add.u32 %r7, [%d1], 1;", None),
    "read beside another block's write": (
        2,
        "setp.eq.u32 %p1, %r6, 0; @%p1 st.global.u32 [%d1+4], 9; @!%p1 ld.global.u32 %r7, [%d1+4];",
        "races with a",
    ),
    "a release that another block acquires": (
        2,
        """setp.ne.u32 %p2, %r1, 0; @%p2 ret; setp.eq.u32 %p1, %r6, 0; @!%p1 bra WAIT;
           st.global.u32 [%d1+4], 9; red.release.gpu.global.add.u32 [%d1], 1; ret;
           WAIT: ld.acquire.gpu.global.u32 %r7, [%d1]; setp.eq.u32 %p3, %r7, 0; @%p3 bra WAIT; ld.global.u32 %r7, [%d1+4];""",
        None,
    ),
    "a flag without release": (
        2,
        """setp.ne.u32 %p2, %r1, 0; @%p2 ret; setp.eq.u32 %p1, %r6, 0; @!%p1 bra WAIT;
           st.global.u32 [%d1+4], 9; red.relaxed.gpu.global.add.u32 [%d1], 1; ret;
           WAIT: ld.acquire.gpu.global.u32 %r7, [%d1]; setp.eq.u32 %p3, %r7, 0; @%p3 bra WAIT; ld.global.u32 %r7, [%d1+4];""",
        "races with a write of thread 0 of block 0",
    ),
    "a trap": (1, "trap;", "trap"),
}
ROUNDED = """mov.b32 %r7, 0f3F800000; cvt.rn.f32.u32 %r8, %r1; {} %r7, %r7, %r8; st.global.u32 [%d2], %r7;"""


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", [0, 2, 12])
def test_rules_are_enforced(library, rule, seed):
    from gpu.device import Gpu

    blocks, body, why = RULES[rule]
    gpu = Gpu(library)
    gpu.define(f"{HEAD}{body}\nret;\n}}")
    out = torch.zeros(32, dtype=torch.int32)
    gpu.set(seed)
    gpu.forget()
    gpu.allow(out.data_ptr(), 128)
    if why is None:
        gpu.launch("k", (blocks, 1, 1), 32, 0, [ctypes.c_void_p(out.data_ptr())])
        if "st.shared" in body:
            assert out.tolist() == [t ^ 1 for t in range(32)]
    else:
        with pytest.raises(AssertionError, match=why):
            gpu.launch("k", (blocks, 1, 1), 32, 0, [ctypes.c_void_p(out.data_ptr())])


@pytest.mark.parametrize(("division", "nearest"), [("div.rn.f32", True), ("div.full.f32", False), ("div.approx.f32", False)])
def test_an_approximation_is_not_the_nearest_float(library, division, nearest):
    """So that a kernel that promises bits and has one does not match its reference."""
    from gpu.device import Gpu

    gpu = Gpu(library)
    gpu.define(f"{HEAD}{ROUNDED.format(division)}\nret;\n}}")
    out = torch.zeros(32)
    gpu.forget()
    gpu.allow(out.data_ptr(), 128)
    gpu.launch("k", (1, 1, 1), 32, 0, [ctypes.c_void_p(out.data_ptr())])
    exact = 1 / torch.arange(32.0)
    assert torch.equal(out[1:] == exact[1:], torch.full((31,), nearest))
    torch.testing.assert_close(out, exact, rtol=2e-7, atol=0)


def test_what_is_not_known_is_refused(library):
    from gpu.device import Gpu
    from gpu.program import Unknown

    for text in (
        "wgmma.fence;",
        "mov.u32 %r1, %smid;",
        "cvt.rz.f32.f64 %r1, %d1;",
        "mul.rz.f32 %r1, %r1, %r1;",
        "mov.u32 %r1, nowhere;",
    ):
        with pytest.raises(Unknown, match=text.split()[0].split(".")[0]):
            Gpu(library).define(f"{HEAD}{text}\nret;\n}}")
