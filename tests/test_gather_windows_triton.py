"""The Triton kernel of gather_windows: its results under Triton's interpreter, and that it compiles for real GPUs."""

import pytest
import torch
from own_process import needs_triton, run

from stprune.ops import gather_windows
from stprune.ops._registry import kernel_module
from stprune.testing import assert_same

# In a process of its own: TRITON_INTERPRET must be set before the kernel's module is imported, and is not undone.
INTERPRETED = """
import itertools
import torch
from triton_kernels import DRIVER, load
from stprune.reference.gather_windows import gather_windows as reference
from stprune.reference.precision import accumulator
from stprune.testing import assert_same

kernel = load("gather_windows")
generator = torch.Generator().manual_seed(0)
CODE = -32768


def same(series, start, node, tables, missing, fill, features, channels, normalize_target, dtype, axes, history, horizon):
    m = series.shape[1] if node is None else node.shape[1]
    width = series.shape[2] + (0 if features is None else features.shape[1])
    both = []
    for function in (reference, kernel.gather_windows):
        out = []
        for steps, count in ((history, width), (horizon, len(channels))):
            sizes = (start.numel(), steps, m, count)
            out.append(torch.full([sizes[a] for a in axes], 7, dtype=dtype).permute([axes.index(a) for a in range(4)]))
        function(series, start, node, *tables, missing, fill, features, channels, normalize_target, True, *out)
        both.append(out)
    for actual, expected in zip(both[1], both[0]):
        assert_same(actual.contiguous(), expected.contiguous())


def series_of(times, nodes, channels, dtype):
    values = torch.randn(times, nodes, channels, generator=generator, dtype=torch.float64) * 50 + 200
    values[torch.rand(values.shape, generator=generator) < 0.1] = torch.nan
    return values.nan_to_num(CODE).to(dtype) if dtype == torch.int16 else values.to(dtype)


def table(kind, nodes, channels, wide):
    shape = {1: (1, 1), 2: (nodes, channels)}[kind]
    return (torch.rand(shape, generator=generator, dtype=torch.float64) * 90 + 0.1).to(wide)


BTNC, BCNT, BNTC = (0, 1, 2, 3), (0, 3, 2, 1), (0, 2, 1, 3)
start = torch.tensor([0, 23, 5])
for case, (dtype, axes, drawn, kind) in enumerate(
    itertools.product(
        (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int16), (BTNC, BCNT), (False, True), (0, 1, 2)
    )
):
    if DRIVER is not None and case % 5:
        continue  # each is compiled anew
    series = series_of(40, 5, 3, dtype)
    if case % 4 == 3:
        series = series.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    wide = accumulator(dtype)
    # The interpreter cuts float32 to bfloat16 off instead of rounding.
    cuts = dtype == torch.bfloat16 and kind > 0 and DRIVER is None
    out = wide if case % 2 or cuts or dtype == torch.int16 else dtype
    node = torch.stack([torch.randperm(5, generator=generator)[:3] for _ in start]) if drawn else None
    tables = [None] * 4
    if kind:
        tables[:2] = [table(kind, 5, 3, wide), table(3 - kind, 5, 3, wide)]
        if dtype == torch.int16:
            tables[2:] = [table(3 - kind, 5, 3, wide), table(kind, 5, 3, wide)]
    features = torch.rand(40, 2, generator=generator).to(out) if out in (torch.float32, torch.float64) else None
    channels = [[0, 1, 2], [2, 0], [1]][case % 3]
    missing = CODE if dtype == torch.int16 else None
    fill = 1 / 3 if kind == 1 else None
    same(series, start, node, tables, missing, fill, features, channels, kind == 2, out, axes, 12, 5)

# Edges: one row, one node, more rows and values than a tile has, no windows, no nodes, repeated windows.
plain = dict(node=None, tables=[None] * 4, missing=None, fill=None, features=None, normalize_target=False)
plain["dtype"] = torch.float32
small = series_of(40, 1, 1, torch.float32)
same(small, torch.tensor([38, 0, 0]), channels=[0], axes=BTNC, history=1, horizon=1, **plain)
same(small, torch.tensor([2]), channels=[0], axes=BCNT, history=17, horizon=20, **plain)
same(small, torch.tensor([], dtype=torch.int64), channels=[0], axes=BTNC, history=1, horizon=1, **plain)
plain["node"] = torch.empty(1, 0, dtype=torch.int64)
same(small, torch.tensor([1]), channels=[0], axes=BTNC, history=1, horizon=1, **plain)
plain["node"] = None
for nodes in (127, 128, 129):
    wide_series = series_of(40, nodes, 2, torch.float32)
    for axes in (BTNC, BNTC):
        same(wide_series, torch.tensor([3]), channels=[0, 1], axes=axes, history=18, horizon=1, **plain)
# Numbers in place of NaN are of the arithmetic's precision, also those whose bits need 64 of them.
plain["node"] = None
for dtype in (torch.float32, torch.float64):
    for fill in (0.0, -0.1, 1e300 if dtype == torch.float64 else 1e-40):
        given = plain | {"fill": fill, "dtype": dtype}
        same(series_of(40, 5, 3, dtype), start, channels=[1], axes=BTNC, history=3, horizon=2, **given)
print("same")
"""


@needs_triton
def test_interpreted_results_are_those_of_the_reference():
    assert run(INTERPRETED, TRITON_INTERPRET="1").strip() == "same"


# The interpreter leaves assertions out unless it is told, and takes those of one condition only.
ASSERTED = """
import numpy, torch
from triton.runtime import interpreter
from triton_kernels import load

kernel = load("gather_windows")
interpreter.interpreter_builder.options = interpreter.InterpreterOptions(debug=True, sanitize_overflow=False)


def create_assert(self, condition, message):
    assert numpy.all(condition), message


interpreter.InterpreterBuilder.create_assert = create_assert
series = torch.arange(40.0).view(10, 4, 1)


def gather(start, node):
    x, y = torch.zeros(1, 3, len(node), 1), torch.zeros(1, 2, len(node), 1)
    tensors = torch.tensor([start]), torch.tensor([node])
    kernel.gather_windows(series, *tensors, *[None] * 6, None, [0], False, False, x, y)
    return torch.cat([x, y], 1)[0, :, :, 0]


assert torch.equal(gather(5, [3, 0]), series[5:, [3, 0], 0])
for start, node in ((6, [0, 3]), (-1, [0, 3]), (2, [0, 4]), (2, [-1, 0])):
    try:
        gather(start, node)
        print("nothing")
    except interpreter.InterpreterError as error:
        while error.__cause__:
            error = error.__cause__
        print(error)
"""


@needs_triton
def test_an_id_outside_the_series_stops_the_device_with_the_name_of_op_and_argument():
    start = "gather_windows: start must lie in [0, number of rows - history - horizon]"
    node = "gather_windows: node must lie in [0, number of nodes - 1]"
    assert run(ASSERTED, TRITON_INTERPRET="1").splitlines() == [start, start, node, node]


COMPILED = """
import re
from triton_kernels import assembly, load

module = load("gather_windows")


def compiled(target, dtype, out, kind, drawn, features, targets):
    constants = dict(
        SERIES_CHANNELS=3, NUM_FEATURES=features, NUM_TARGETS=targets, HAS_NODE=drawn, HAS_CHANNEL=targets < 3, MEAN=kind,
        STD=kind, SCALE=kind if dtype == "i16" else 0, OFFSET=kind if dtype == "i16" else 0, HAS_MISSING=dtype == "i16",
        HAS_FILL=kind == 1, NORMALIZE_TARGET=int(kind == 2), DOUBLE=dtype == "fp64", BLOCK_TIME=module.BLOCK_TIME,
        BLOCK_VALUE=module.BLOCK_VALUE,
    )
    wide = "*fp64" if dtype == "fp64" else "*fp32"
    types = {"series": "*" + dtype, "x": "*" + out, "y": "*" + out, "features": "*" + out}
    types |= dict.fromkeys(("mean", "std", "scale", "offset"), wide)
    types |= dict.fromkeys(("start", "node", "channel"), "*i64") | dict.fromkeys(("series_time", "x_window", "y_window"), "i64")
    options = {"num_warps": module.NUM_WARPS, "capabilities": (target,), "enable_fp_fusion": False}
    options |= {"debug": True, "sanitize_overflow": False}
    (text,) = assembly(module._gather_windows_kernel, types, constants, **options)
    # Of start, and of node for x and for y; the integers' own are left out.
    assert len(re.findall(r"call.uni[^;]*__assertfail", text)) == (3 if drawn else 1)
    assert "fma.rn.f32" not in text and "fma.rn.f64" not in text, "a product and a sum were rounded once"
    assert "div.full.f32" not in text, "an approximate division"
    if kind and dtype != "fp64":
        assert "div.rn.f32" in text
    if kind and out == "bf16":
        assert "cvt.rn.bf16" in text, "bfloat16 is not rounded to nearest"


for target in (80, 90, 100):
    compiled(target, "i16", "fp32", 2, True, 2, 2)
    compiled(target, "bf16", "bf16", 1, False, 0, 3)
compiled(90, "fp32", "fp32", 0, False, 0, 3)
compiled(90, "fp16", "fp16", 2, True, 0, 1)
compiled(90, "fp64", "fp64", 2, False, 2, 2)
print("compiled")
"""


@needs_triton
def test_compiles_to_machine_code_for_every_supported_gpu(tmp_path):
    assert run(COMPILED, TRITON_CACHE_DIR=str(tmp_path)).splitlines()[-1] == "compiled"


@needs_triton
def test_the_installed_package_finds_its_kernel():
    kernel = kernel_module("gather_windows")
    assert kernel is not None
    assert kernel.__name__ == "stprune.kernels.gather_windows"


def test_importing_the_package_does_not_import_triton():
    run("""
import sys, torch
before = "triton" in sys.modules
import stprune, stprune.ops
assert ("triton" in sys.modules) == before and "stprune.kernels.gather_windows" not in sys.modules
""")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int16])
@pytest.mark.parametrize("layout", ["BTNC", "BCNT", "BNTC"])
def test_results_on_the_gpu_are_those_on_the_cpu(dtype, layout):
    generator = torch.Generator().manual_seed(0)
    series = (torch.randn(500, 300, 3, generator=generator, dtype=torch.float64) * 50 + 200).to(dtype)
    start = torch.randint(0, 470, (64,), generator=generator)
    node = torch.stack([torch.randperm(300, generator=generator)[:90] for _ in start])
    decode = {"scale": 0.1, "offset": torch.tensor([1.0, 2.0, 3.0]), "missing": 200} if dtype == torch.int16 else {}
    for drawn in (None, node):
        for options in ({}, {"mean": 201.3, "std": torch.linspace(1, 9, 300)[:, None], "fill": 0.0, "target_channels": 1}):
            arguments = {"history": 18, "horizon": 12, "layout": layout, "node": drawn, **decode, **options}
            want = gather_windows(series, start, **arguments)
            got = gather_windows(series.cuda(), start, **arguments)
            for actual, expected in zip(got, want, strict=True):
                assert actual.is_cuda
                assert_same(actual.cpu(), expected)
