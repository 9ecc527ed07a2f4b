"""The Triton kernel of window_stats: its results under Triton's interpreter, and that it compiles for real GPUs."""

import pathlib

from own_process import needs_triton, run

# In a process of its own: TRITON_INTERPRET must be set before the kernel's module is imported, and is not undone.
INTERPRETED = """
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


cases = [(4, 3, 1, 0), (3, 5, 1, 6), (1, 0, 1, 0), (6, 2, 3, 5), (2, 2, 9, 1), (5, 1, 1, 3)]
for case, shape in enumerate(cases):
    dtype, share = ((torch.float32, 0.0), (torch.float32, 0.3), (torch.float64, 0.8))[case % 3]
    series = 1e4 + torch.randn(19, 37, generator=generator, dtype=torch.float64)
    # A null value is compared in the series' own precision.
    nulls = (0.0, -0.1, 0.1)
    series[torch.rand(series.shape, generator=generator) < share] = math.nan if case % 2 else nulls[case % 3]
    series[5:16, 2] = 7.0
    series[:, 3] = math.nan
    inverse_std = torch.rand(37, generator=generator, dtype=torch.float64)
    inverse_std[4] = 0.0
    for per_node in (True, False):
        check(series.to(dtype), *shape, None if case % 2 else nulls[case % 3], inverse_std, per_node)

# Constant windows give exact zeros; an infinite entry is found.
series = torch.full((20, 3), 0.1)
series[0] = 5e5
constant, _ = kernel.window_stats(series, 3, 2, 1, 0, None, torch.ones(3, dtype=torch.float64), True)
assert bool((constant[1:5, 1:] == 0).all()) and bool((constant[1, 0] > 0).all())
series[11, 1] = math.inf
assert bool(kernel.window_stats(series, 3, 2, 1, 0, None, torch.ones(3, dtype=torch.float64), False)[1])

# Several blocks of windows and tiles of columns, the last ones not full; columns beyond one span are summed apart; one program
# goes round all groups. A window has the same bits wherever the series was cut, and whatever its neighbours lack.
kernel.COLUMNS_A_TILE, kernel.SCRATCH_BYTES, kernel.SPAN, reference_module.SPAN = 32, 1, 64, 64
series = 1e4 + torch.randn(49, 70, generator=generator)
std = torch.rand(70, generator=generator, dtype=torch.float64)
for per_node in (False, True):
    check(series, 9, 10, 1, 0, None, std, per_node)
    whole = kernel.window_stats(series, 9, 10, 1, 0, None, std, per_node)[0]
    assert torch.equal(kernel.window_stats(series[23:], 9, 10, 1, 23 % 19, None, std, per_node)[0], whole[:, 23:])
    gappy = series.clone()
    gappy[[24, 46]] = math.nan
    assert torch.equal(kernel.window_stats(gappy, 9, 10, 1, 0, None, std, per_node)[0][:, [0, 5, 25, 27]], whole[:, [0, 5, 25, 27]])

for null_value in (None, 0.5):
    series = torch.randn(1100, 37, generator=generator)
    series[torch.rand(series.shape, generator=generator) < 0.3] = 0.5
    series[:, 3] = math.nan
    series[:70, 5] = 0.5
    actual, expected = kernel.node_moments(series, null_value), reference_module.node_moments(series, null_value)
    assert torch.equal(actual[:, :2].nan_to_num(9.0), expected[:, :2].nan_to_num(9.0))
    assert torch.allclose(actual, expected, rtol=1e-13, atol=1e-11, equal_nan=True)
print("ok")
"""

COMPILED = """
from triton_kernels import assembly, load

kernel = load("window_stats")
types = {"inverse_std": "*fp64", "scratch": "*fp64", "infinite": "*i1", "gappy": "*i1"}
# What does not fit into registers: on an H200 (90) 13 of the 80 sums over nodes of eight windows.
cases = [("fp32", False, False, 90, 104), ("fp32", True, True, 100, 8), ("fp64", False, True, 80, 0), ("fp64", True, False, 90, 0)]
for dtype, per_node, gaps, capability, stack in cases:
    step = (kernel.GAPPY_STEP if gaps else kernel.STEP) // (1 + (dtype == "fp64"))
    constants = {"PER_NODE": per_node, "HAS_NULL": per_node, "DRIFT": True, "GAPS": gaps, "STEP": step, "LANES": kernel.LANES}
    pointers = {**types, "series": "*" + dtype, "out": "*fp32" if per_node else "*fp64"}
    assembly(kernel._window_stats_kernel, pointers, constants, capabilities=(capability,), stack=stack, **kernel.OPTIONS)
options = dict(kernel.MOMENT_OPTIONS)
constants = {"HAS_NULL": True, "BLOCK_ROWS": kernel.MOMENT_ROWS, "TILE": options.pop("TILE"), "LANES": kernel.LANES}
for dtype in ("fp32", "fp64"):
    assembly(kernel._moments_kernel, {"series": "*" + dtype, "out": "*fp64"}, constants, **options)
"""


@needs_triton
def test_matches_reference_in_the_interpreter() -> None:
    assert run(INTERPRETED, TRITON_INTERPRET="1").strip() == "ok"


@needs_triton
def test_compiles_ahead_of_time(tmp_path: pathlib.Path) -> None:
    assert len(run(COMPILED, TRITON_CACHE_DIR=str(tmp_path)).splitlines()) == 10
