"""finite_stats and finite_mean: what they promise."""

import math

import pytest
import torch

from stprune import testing
from stprune.ops.finite_mean import finite_mean, finite_stats

DTYPES = (torch.float32, torch.float64)


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
