"""Named inputs, instruction sets and asserts that tests and benchmarks share. Nothing shipped imports this."""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Iterator, Sequence

import torch

import stprune

CHUNK = 16384
"""Elements a compiled kernel handles at a time (csrc/cpu/kernels.h); sizes around it are edges."""

SIZES = (0, 1, 63, 64, 65, 4095, 4096, 4097, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 77)
"""Lengths at and around the blocks of the kernels, and an odd one."""

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""The dtypes of scores and errors."""

INPUTS = (
    "normal",
    "all_equal",
    "two_values",
    "tie_at_k",
    "sorted",
    "reversed",
    "nan",
    "all_nan",
    "inf",
    "signed_zero",
    "denormal",
)
"""Names `named_keys` knows; one_element and empty are the sizes 1 and 0."""


def ranks(n: int) -> list[int]:
    """The k worth testing for n keys: 0, 1, n/10, n/2, n - 1, n."""
    return sorted({0, min(1, n), n // 10, n // 2, max(0, n - 1), n})


def named_keys(name: str, n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Keys [n] of one of the kinds in INPUTS, the same at every call."""
    generator = torch.Generator().manual_seed(1234 + INPUTS.index(name))
    normal = torch.randn(n, generator=generator, dtype=torch.float64)
    uniform = torch.rand(n, generator=generator, dtype=torch.float64)
    if name == "all_equal":
        keys = torch.full((n,), 0.5, dtype=torch.float64)
    elif name == "two_values":
        keys = (uniform < 0.5).double()
    elif name == "tie_at_k":
        # Two thirds of all keys share one value, so that every middle rank falls on it.
        keys = torch.where(uniform < 2 / 3, torch.ones_like(normal), normal)
    elif name == "sorted":
        keys = torch.arange(n, dtype=torch.float64)
    elif name == "reversed":
        keys = -torch.arange(n, dtype=torch.float64)
    elif name == "nan":
        keys = normal.masked_fill(uniform < 0.3, math.nan)
    elif name == "all_nan":
        keys = torch.full((n,), math.nan, dtype=torch.float64)
    elif name == "inf":
        keys = normal.masked_fill(uniform < 0.4, math.inf).masked_fill(uniform > 0.8, -math.inf)
        keys = keys.masked_fill((uniform > 0.7) & (uniform < 0.75), math.nan)
    elif name == "signed_zero":
        keys = torch.where(uniform < 0.5, -0.0, 0.0).double() + torch.where(uniform > 0.9, normal, 0.0)
        keys = torch.where((keys == 0) & (uniform < 0.5), -torch.zeros_like(keys), keys)
    elif name == "denormal":
        keys = normal * (torch.finfo(dtype).tiny / 64)
    else:
        keys = normal
    return keys.to(dtype)


def awkward(x: torch.Tensor) -> list[torch.Tensor]:
    """The same values contiguous, strided, and starting off any vector's alignment."""
    strided = torch.empty((*x.shape, 2), dtype=x.dtype)[..., 0]
    shifted = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape)
    return [x, strided.copy_(x), shifted.copy_(x)]


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal dtype, shape and values, NaN being equal to NaN."""
    assert actual.dtype == expected.dtype, f"{actual.dtype} is not {expected.dtype}"
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    if actual.is_floating_point():
        assert torch.equal(actual.isnan(), expected.isnan())
        actual, expected = actual.nan_to_num(nan=0.0), expected.nan_to_num(nan=0.0)
    assert torch.equal(actual, expected)


def isas() -> list[str]:
    """Instruction sets this machine and build can run the kernels on; none without the compiled library."""
    library = _library()
    if library is None:
        return []
    found = [name for i, name in enumerate(("baseline", "avx2", "avx512")) if library.stprune_set_isa(i) == 0]
    library.stprune_set_isa(-1)
    return found


@contextlib.contextmanager
def isa(name: str) -> Iterator[None]:
    """Run the kernels on one instruction set of `isas()`, then on the widest again."""
    library = _library()
    if library is None or library.stprune_set_isa(("baseline", "avx2", "avx512").index(name)) != 0:
        raise RuntimeError(f"isa: {name} is not available here")
    try:
        yield
    finally:
        library.stprune_set_isa(-1)


def _library() -> ctypes.CDLL | None:
    path = stprune.library_status()["_C"].path
    if path is None:
        return None
    library = ctypes.CDLL(path)
    library.stprune_set_isa.argtypes = [ctypes.c_int64]
    library.stprune_set_isa.restype = ctypes.c_int64
    return library


def assert_chi_square(
    observed: torch.Tensor | Sequence[float], expected: torch.Tensor | Sequence[float], *, sigmas: float = 4.5
) -> None:
    """Pearson's statistic of counts against their expectation is neither too large nor, as far, too small.

    The statistic is turned into standard deviations by Wilson and Hilferty's cube root; 4.5 of them are one failure in
    150,000 for a right sampler. The seeds of tests are fixed, so a test that passed keeps passing.
    """
    observed = torch.as_tensor(observed, dtype=torch.float64).flatten()
    expected = torch.as_tensor(expected, dtype=torch.float64).flatten()
    assert observed.shape == expected.shape
    assert float(expected.min()) >= 5, "too few expected for a chi-square test"
    freedom = observed.numel() - 1
    statistic = float(((observed - expected) ** 2 / expected).sum())
    spread = 2 / (9 * freedom)
    score = ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    assert abs(score) < sigmas, f"chi-square {statistic:.1f} for {freedom} degrees of freedom: {score:+.1f} sigmas"
