"""The Triton kernel of window_stats: its results under Triton's interpreter, and that it compiles for real GPUs."""

import pathlib

from own_process import needs_triton, run

# In a process of its own: TRITON_INTERPRET must be set before the kernel's module is imported, and is not undone.
START = """
import math
import torch
from triton_kernels import load
from stprune.reference import window_stats as reference_module
from stprune.reference.window_stats import window_stats as reference

kernel = load("window_stats")
generator = torch.Generator().manual_seed(0)


def check(series, history, horizon, stride, phase, null_value, inverse_std, per_node):
    arguments = (series, history, horizon, stride, phase, null_value, inverse_std, per_node)
    actual, infinite = kernel.window_stats(*arguments)
    expected, wanted = reference(*arguments)
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.allclose(actual, expected, rtol=2e-7, atol=1e-8, equal_nan=True), arguments[1:]
    assert bool(infinite) == bool(wanted)
    return actual
"""

CASES = """
cases = [(4, 3, 1, 0), (3, 5, 1, 6), (1, 0, 1, 0), (6, 2, 3, 5), (2, 2, 9, 1), (5, 1, 1, 3)]
for case, shape in enumerate(cases):
    dtype, share = ((torch.float32, 0.0), (torch.float32, 0.3), (torch.float64, 0.8))[case % 3]
    series = 1e4 + torch.randn(19, 7, generator=generator, dtype=torch.float64)
    # A null value is compared in the series' own precision.
    nulls = (0.0, -0.1, 0.1)
    series[torch.rand(series.shape, generator=generator) < share] = math.nan if case % 2 else nulls[case % 3]
    series[5:16, 2] = 7.0
    series[:, 3] = math.nan
    inverse_std = torch.rand(7, generator=generator, dtype=torch.float64)
    inverse_std[4] = 0.0
    for per_node in (True, False)[case % 2 :]:
        check(series.to(dtype), *shape, None if case % 2 else nulls[case % 3], inverse_std, per_node)

# Constant windows give exact zeros; an infinite entry is found.
series = torch.full((20, 3), 0.1)
series[0] = 5e5
constant, _ = kernel.window_stats(series, 3, 2, 1, 0, None, torch.ones(3, dtype=torch.float64), True)
assert bool((constant[1:5, 1:] == 0).all()) and bool((constant[1, 0] > 0).all())
series[11, 1] = math.inf
assert bool(kernel.window_stats(series, 3, 2, 1, 0, None, torch.ones(3, dtype=torch.float64), False)[1])
"""

BLOCKS = """
# Several blocks of windows and tiles of columns, the last ones not full; columns beyond one span are summed apart; one program
# goes round all groups. A window has the same bits wherever the series was cut, and whatever its neighbours lack.
kernel.COLUMNS_A_TILE, kernel.SCRATCH_BYTES, kernel.SPAN, reference_module.SPAN = 30, 1, 64, 64
series = 1e4 + torch.randn(32, 66, generator=generator)
std = torch.rand(66, generator=generator, dtype=torch.float64)
gappy = series.clone()
gappy[30] = math.nan
for per_node in (False, True):
    whole = check(series, 9, 3, 1, 0, None, std, per_node)
    other, _ = kernel.window_stats(gappy, 9, 3, 1, 0, None, std, per_node)
    assert torch.equal(other[:, :19], whole[:, :19])
    # Windows far apart, the first of them in the middle of a group.
    check(gappy[:, :5], 6, 2, 11, 5, None, std[:5], per_node)
cut, _ = kernel.window_stats(series[17:], 9, 3, 1, 17 % 12, None, std, True)
assert torch.equal(cut, whole[:, 17:])

for null_value in (None, 0.5):
    series = torch.randn(1060, 35, generator=generator)
    series[torch.rand(series.shape, generator=generator) < 0.3] = 0.5
    series[:, 3] = math.nan
    series[:70, 5] = 0.5
    actual, expected = load("node_moments").node_moments(series, null_value), reference_module.node_moments(series, null_value)
    assert torch.equal(actual[:, :2].nan_to_num(9.0), expected[:, :2].nan_to_num(9.0))
    assert torch.allclose(actual, expected, rtol=1e-13, atol=1e-11, equal_nan=True)
print("ok")
"""

INTERPRETED = START + CASES + BLOCKS
# On the simulated GPU, too; with fewer windows in a block, as that many are compiled sooner.
SIMULATED = f"{START}kernel.STEP = 2{BLOCKS}"

COMPILED = """
from triton_kernels import assembly, load

kernel = load("window_stats")
types = {"inverse_std": "*fp64", "scratch": "*fp64", "infinite": "*i1", "gappy": "*i1"}
for case in (("fp32", False, False, 90), ("fp32", True, True, 100), ("fp64", False, True, 80)):
    dtype, per_node, gaps, capability = case
    # Of eight windows 13 of the 40 sums over nodes do not fit into registers.
    stack = 104 if case == ("fp32", False, False, 90) else 8
    step = (kernel.GAPPY_STEP if gaps else kernel.STEP) // (1 + (dtype == "fp64"))
    constants = {"PER_NODE": per_node, "HAS_NULL": per_node, "DRIFT": True, "GAPS": gaps, "STEP": step, "LANES": kernel.LANES}
    pointers = {**types, "series": "*" + dtype, "out": "*fp32" if per_node else "*fp64"}
    options = {"capabilities": (capability,), "stack": stack, **kernel.OPTIONS}
    (ptx,) = assembly(kernel._window_stats_kernel, pointers, constants, **options)
    # Each thread reads what it saved itself.
    assert "bar.sync" not in ptx
moments = load("node_moments")
constants = {"HAS_NULL": True, "BLOCK_ROWS": moments.MOMENT_ROWS, "TILE": moments.TILE, "LANES": moments.LANES}
assembly(moments._moments_kernel, {"series": "*fp32", "out": "*fp64"}, constants, stack=8, **moments.OPTIONS)
"""


@needs_triton
def test_matches_reference_in_the_interpreter() -> None:
    assert run(INTERPRETED, TRITON_INTERPRET="1").strip() == "ok"


@needs_triton
def test_compiles_ahead_of_time(tmp_path: pathlib.Path) -> None:
    assert len(run(COMPILED, TRITON_CACHE_DIR=str(tmp_path)).splitlines()) == 6
