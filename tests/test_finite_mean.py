"""finite_stats and finite_mean against the reference bit for bit, and what they promise."""

import math

import pytest
import torch

from stprune import testing
from stprune.ops.finite_mean import finite_mean, finite_stats
from stprune.reference import finite_stats as reference

DTYPES = (torch.float32, torch.float64)


def assert_reference(values):
    stats = finite_stats(values)
    expected = reference.finite_stats(values).tolist()
    assert [stats.sum, stats.count, stats.least, stats.largest] == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", testing.INPUTS)
def test_matches_reference(name, dtype):
    for n in testing.SIZES:
        assert_reference(testing.named_keys(name, n, dtype))


def test_matches_reference_for_threads_and_instruction_sets(threads):
    values = testing.named_keys("inf", 300_001)
    for count in (1, 2, 3, 8):
        threads(count)
        assert_reference(values)
    for name in testing.isas():
        with testing.isa(name):
            for dtype in DTYPES:
                for n in testing.SIZES:
                    assert_reference(testing.named_keys("nan", n, dtype))


def test_is_the_mean_of_the_finite_entries():
    values = testing.named_keys("inf", 100_000, torch.float64)
    finite = values[values.isfinite()]
    stats = finite_stats(values)
    assert stats.count == finite.numel()
    assert stats.mean == pytest.approx(math.fsum(finite.tolist()) / finite.numel(), rel=1e-13)
    assert (stats.least, stats.largest) == (float(finite.min()), float(finite.max()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [0.1, 1 / 3, -7e-20, 3e30])
def test_mean_of_equal_values_is_exact(value, dtype):
    for n in (1, 3, 4097, 99_999):
        values = torch.full((n,), value, dtype=dtype)
        assert finite_mean(values) == float(values[0])


def test_sum_of_equal_float32_values_is_exact():
    values = torch.full((99_999,), 0.1)
    assert finite_stats(values).sum == 99_999 * float(values[0])


def test_nothing_finite():
    for values in (torch.empty(0), torch.full((5,), math.nan), torch.tensor([math.inf, -math.inf])):
        assert math.isnan(finite_mean(values))
        assert finite_stats(values).count == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_and_awkward_memory(dtype):
    values = testing.named_keys("normal", 5000, dtype)
    for x in testing.awkward(values):
        assert finite_mean(x) == finite_mean(values.float())


def test_errors():
    with pytest.raises(TypeError, match="finite_stats: values must be float32"):
        finite_stats(torch.arange(3))
    with pytest.raises(ValueError, match="finite_stats: values must have one dimension"):
        finite_stats(torch.ones(2, 2))


def test_opcheck():
    torch.library.opcheck(torch.ops.stprune.finite_stats.default, (torch.randn(5000),))
