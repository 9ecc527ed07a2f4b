"""select and topk against the reference, bit for bit."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import stprune
from stprune import testing
from stprune.reference import order as reference

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", testing.INPUTS)
def test_matches_reference(name, dtype):
    for n in testing.SIZES:
        keys = testing.named_keys(name, n, dtype)
        for k in testing.ranks(n):
            assert torch.equal(stprune.select(keys, k), reference.select(keys, k)), (n, k)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", testing.INPUTS)
@pytest.mark.parametrize("sorted", [True, False])
def test_topk_matches_reference(name, dtype, sorted):
    for n in (0, 1, 65, 5000, 40_001):
        keys = testing.named_keys(name, n, dtype)
        for k in testing.ranks(n):
            values, indices = stprune.topk(keys, k, sorted=sorted)
            expected_values, expected_indices = reference.topk(keys, k, sorted)
            assert torch.equal(indices, expected_indices), (n, k)
            testing.assert_same(values, expected_values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_rank_of_a_bracketed_input(dtype):
    """Ranks next to both ends and around ties take the rare paths: bracket ends, misses, the radix search."""
    n = 20_000
    keys = testing.named_keys("normal", n, dtype)
    keys[100:3000] = 0.25
    keys[5000:5100] = math.nan
    keys[7000:7300] = math.inf
    keys[9000:9300] = -math.inf
    order = reference.descending_order(keys)
    for k in [*range(1, 500, 7), *range(7000, 11_000, 31), *range(n - 700, n + 1, 13)]:
        assert torch.equal(stprune.select(keys, k), order[:k].sort().values), k


def test_sample_that_lies():
    """Keys that differ from the sample's by construction force the bracket to miss; the result stays exact."""
    n, run = 50_000, 16
    mask = (1 << 64) - 1
    keys = torch.zeros(n)
    for i in range(int(1.5 * n ** (2 / 3)) // run + 1):
        x = (i + 1) * 0x9E3779B97F4A7C15 & mask
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
        x ^= x >> 31
        first = (x * (n // run) >> 64) * run
        keys[first : first + run] = torch.arange(1, run + 1).float() + run * i
    rest = keys == 0
    keys[rest] = -torch.rand(int(rest.sum()), generator=torch.Generator().manual_seed(1))
    for k in (1, 100, n // 2, n - 5):
        assert torch.equal(stprune.select(keys, k), reference.select(keys, k))
        assert torch.equal(stprune.select(-keys, k), reference.select(-keys, k))


@pytest.mark.parametrize("isa", testing.isas())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_neighbours_that_resemble_each_other(isa, dtype):
    """A sample takes runs of neighbours: like keys side by side make it worth less, and gather candidates in few chunks."""
    n = 5 * testing.CHUNK + 13
    generator = torch.Generator().manual_seed(3)
    stairs = torch.arange(n) // 300 % 17 + torch.rand(n, generator=generator) / 8
    plateau = torch.randn(n, generator=generator) * 100
    plateau[testing.CHUNK : 2 * testing.CHUNK] = torch.rand(testing.CHUNK, generator=generator)
    with testing.isa(isa):
        for keys in (stairs.to(dtype), plateau.to(dtype)):
            for k in (20, n // 10, n // 2, n - 9):
                assert torch.equal(stprune.select(keys, k), reference.select(keys, k)), k


@pytest.mark.parametrize("isa", testing.isas())
@pytest.mark.parametrize("n", [4097, 2 * testing.CHUNK, 2 * testing.CHUNK + 64, 3 * testing.CHUNK + 63])
def test_candidates_at_the_edges_of_words_and_chunks(isa, n, threads):
    """The keys around the threshold, some of them equal, are the first and last of words and chunks and the very last."""
    edges = [i for start in (0, 64, 2048, testing.CHUNK, 2 * testing.CHUNK, n) for i in (start - 1, start) if 0 <= i < n]
    for ties in (1, 3):
        keys = torch.where(torch.rand(n, generator=torch.Generator().manual_seed(n)) < 0.5, -1e6, 1e6)
        keys += torch.arange(n)
        for place, i in enumerate(edges):
            keys[i] = float(place // ties)
        above = int((keys > 1e5).sum())
        with testing.isa(isa):
            for k in range(above - 2, above + len(edges) + 3):
                for count in (1, 3):
                    threads(count)
                    assert torch.equal(stprune.select(keys, k), reference.select(keys, k)), (k, ties)


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


def test_strided_and_misaligned_keys():
    keys = testing.named_keys("normal", 20_001)
    expected = reference.select(keys, 5000)
    for view in testing.awkward(keys):
        assert torch.equal(stprune.select(view, 5000), expected)


def test_input_is_not_modified_and_needs_no_gradient():
    keys = testing.named_keys("nan", 5000).requires_grad_()
    before = keys.detach().clone()
    values, indices = stprune.topk(keys, 100)
    testing.assert_same(keys.detach(), before)
    assert not values.requires_grad
    assert indices.dtype == torch.int64


@pytest.mark.parametrize("op", [stprune.select, stprune.topk], ids=["select", "topk"])
def test_errors(op):
    keys = torch.rand(10)
    with pytest.raises(ValueError, match=r"k must lie in \[0, 10\], got 11"):
        op(keys, 11)
    with pytest.raises(ValueError, match=r"k must lie in \[0, 10\], got -1"):
        op(keys, -1)
    with pytest.raises(TypeError, match="k must be an integer"):
        op(keys, 2.0)
    with pytest.raises(TypeError, match="k must be an integer"):
        op(keys, True)
    with pytest.raises(TypeError, match="keys must be float32"):
        op(torch.arange(10), 2)
    with pytest.raises(TypeError, match="keys must be a tensor"):
        op([1.0, 2.0], 1)
    with pytest.raises(ValueError, match="keys must have at least one dimension"):
        op(torch.tensor(1.0), 1)
    with pytest.raises(ValueError, match=r"k must lie in \[0, 5\], got 6"):
        op(torch.rand(2, 5), 6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["normal", "tie_at_k", "inf"])
def test_rows(name, dtype, threads):
    """Every row on its own, in short rows (side by side) and long ones (each on all threads)."""
    for shape in ((3, 5, 70), (7, 4097), (40, 3000), (2, 9 * testing.CHUNK + 5), (1, 40_000), (0, 9), (3, 0)):
        keys = testing.named_keys(name, math.prod(shape), dtype).view(shape)
        for k in testing.ranks(shape[-1]):
            expected = reference.select(keys, k)
            values, indices = reference.topk(keys, k, True)
            for count in (1, 3):
                threads(count)
                testing.assert_same(stprune.select(keys, k), expected)
                got = stprune.topk(keys, k)
                testing.assert_same(got.values, values)
                testing.assert_same(got.indices, indices)
    rows = keys = testing.named_keys(name, 6000, dtype).view(6, 1000)
    for row, got in zip(rows, stprune.select(rows, 77), strict=True):
        assert torch.equal(got, reference.select(row, 77))


def test_topk_is_torch_topk_where_keys_differ():
    keys = torch.randn(4, 3, 500, generator=torch.Generator().manual_seed(1))
    for dim in (-1, 2, 1, 0, -3):
        k = keys.shape[dim] // 2
        got, expected = stprune.topk(keys, k, dim), torch.topk(keys, k, dim)
        assert torch.equal(got.values, expected.values)
        assert torch.equal(got.indices, expected.indices)
    with pytest.raises(ValueError, match=r"dim must lie in \[-3, 2\], got 3"):
        stprune.topk(keys, 1, 3)


@pytest.mark.parametrize("isa", testing.isas())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_16_bit_key(isa, dtype):
    """All 65,536 bit patterns are read as torch reads them, by every instruction set, at every alignment of the tail."""
    keys = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype)
    order = reference.descending_order(keys)
    with testing.isa(isa):
        for k in (1, 1000, 1024, 30_000, 32_768, 65_535):
            assert torch.equal(stprune.select(keys, k), order[:k].sort().values)
        values, indices = stprune.topk(keys, 65_536)
        assert torch.equal(indices, order)
        assert torch.equal(values.view(torch.int16), keys[order].view(torch.int16))
        for start in range(1, 40, 3):
            part = keys[start::997].clone()
            assert torch.equal(stprune.topk(part, part.numel()).indices, reference.descending_order(part))


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
