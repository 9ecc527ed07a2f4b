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

# Constant windows give exact zeros; an infinite entry is found; fewer programs than groups go round.
series = torch.full((20, 3), 0.1)
series[0] = 5e5
constant, _ = kernel.window_stats(series, 3, 2, 1, 0, None, torch.ones(3, dtype=torch.float64), True)
assert bool((constant[1:5, 1:] == 0).all()) and bool((constant[1, 0] > 0).all())
series[11, 1] = math.inf
assert bool(kernel.window_stats(series, 3, 2, 1, 0, None, torch.ones(3, dtype=torch.float64), False)[1])
# Columns beyond one span are summed apart.
kernel.SPAN = reference_module.SPAN = 32
check(torch.randn(12, 70, generator=generator), 2, 2, 1, 0, 0.1, torch.ones(70, dtype=torch.float64), False)
kernel.SCRATCH_BYTES = 1
check(torch.randn(20, 5, generator=generator), 2, 2, 1, 0, None, torch.ones(5, dtype=torch.float64), False)
print("ok")
"""

COMPILED = """
from triton_kernels import assembly, load

kernel = load("window_stats")
for dtype in ("fp32", "fp64"):
    types = {"series": "*" + dtype, "inverse_std": "*fp64", "scratch": "*fp64", "sums": "*fp64"}
    types |= {"nodes": "*fp32", "infinite": "*i1"}
    for per_node in (True, False):
        constants = {"PER_NODE": per_node, "HAS_NULL": per_node}
        constants |= {name: getattr(kernel, name) for name in ("BLOCK_NODE", "NUM_ARRAYS")}
        assembly(kernel._window_stats_kernel, types, constants, **kernel.OPTIONS)
"""


@needs_triton
def test_matches_reference_in_the_interpreter() -> None:
    assert run(INTERPRETED, TRITON_INTERPRET="1").strip() == "ok"


@needs_triton
def test_compiles_ahead_of_time(tmp_path: pathlib.Path) -> None:
    assert len(run(COMPILED, TRITON_CACHE_DIR=str(tmp_path)).splitlines()) == 12
