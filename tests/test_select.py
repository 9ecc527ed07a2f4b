"""select and topk: rare inputs; tests/test_ops.py compares them with the reference."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import stprune
from stprune import testing
from stprune.reference import order as reference

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_property_small_pools(data):
    pool = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 1e-42, 3.5])
    values = data.draw(st.lists(pool, max_size=200))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    k = data.draw(st.integers(0, len(values)))

    def rank(i):
        return (0 if math.isnan(values[i]) else 1, 0.0 if math.isnan(values[i]) else -values[i], i)

    expected = sorted(range(len(values)), key=rank)[:k]
    keys = torch.tensor(values, dtype=dtype)
    assert stprune.topk(keys, k).indices.tolist() == expected
    assert stprune.select(keys, k).tolist() == sorted(expected)


@pytest.mark.parametrize("n", [300, 30_000])
def test_every_nan_is_the_same_largest_key(n):
    """A NaN with the sign bit set, or with a payload, is no smaller than another."""
    bits = testing.named_keys("normal", n).view(torch.int32)
    bits[5::7] = 0x7FC00000
    plain = bits.clone().view(torch.float32)
    bits[5::14] = -0x400000 + 3
    keys = bits.view(torch.float32)
    assert torch.equal(keys.isnan(), plain.isnan())
    for k in testing.ranks(n):
        assert torch.equal(stprune.select(keys, k), reference.select(plain, k))
        assert torch.equal(reference.select(keys, k), reference.select(plain, k))
        assert torch.equal(stprune.topk(keys, k).indices, reference.topk(plain, k, True)[1])


def test_input_is_not_modified_and_needs_no_gradient():
    keys = testing.named_keys("nan", 5000).requires_grad_()
    before = keys.detach().clone()
    values, indices = stprune.topk(keys, 100)
    testing.assert_same(keys.detach(), before)
    assert not values.requires_grad
    assert indices.dtype == torch.int64


def test_topk_is_torch_topk_where_keys_differ():
    keys = torch.randn(4, 3, 500, generator=torch.Generator().manual_seed(1))
    for dim in (-1, 2, 1, 0, -3):
        k = keys.shape[dim] // 2
        got, expected = stprune.topk(keys, k, dim), torch.topk(keys, k, dim)
        assert torch.equal(got.values, expected.values)
        assert torch.equal(got.indices, expected.indices)
    with pytest.raises(ValueError, match=r"dim must lie in \[-3, 2\], got 3"):
        stprune.topk(keys, 1, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_values_are_the_keys_bit_for_bit(dtype):
    keys = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype)
    values, indices = stprune.topk(keys, 1 << 16)
    assert torch.equal(values.view(torch.int16), keys[indices].view(torch.int16))


def test_16_bit_keys_are_not_copied():
    for dtype in (torch.float16, torch.bfloat16):
        keys = testing.named_keys("normal", 200_000, dtype)
        with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            stprune.select(keys, 10)
        assert max(event.cpu_memory_usage for event in profile.events()) < 4096


@pytest.mark.slow
def test_more_keys_than_a_float_can_count():
    n = (1 << 24) + 1001
    keys = torch.zeros(n)
    keys[-1000:] = torch.arange(1, 1001).float()
    assert torch.equal(stprune.select(keys, 500), torch.arange(n - 500, n))
    assert stprune.select(keys, n - 5)[-1] == n - 1
