"""The selection ops against the reference over named inputs, dtypes, sizes, ranks, thread counts and instruction sets."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import stprune
from stprune import testing
from stprune.reference import draw as reference_draw
from stprune.reference import draw_weighted as reference_weighted
from stprune.reference import order
from stprune.reference import shuffle as reference_shuffle
from stprune.reference.random import words_at
from stprune.testing import assert_chi_square

SIZES = st.one_of(
    st.sampled_from(testing.SIZES),
    st.integers(0, 3 * testing.CHUNK),
    st.sampled_from([testing.CHUNK * 8 - 1, testing.CHUNK * 9]),
)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])
SEEDS = st.integers(0, 2**63 - 1)
EPOCHS = st.integers(0, 2**32 - 1)
WAYS = st.tuples(st.sampled_from([1, 2, 3, 8]), st.sampled_from(testing.isas() or [None]))
"""Thread count and instruction set."""


@pytest.fixture(autouse=True, scope="module")
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def called(way, call):
    """The result of `call` with this many threads on this instruction set."""
    count, isa = way
    torch.set_num_threads(count)
    if isa is None:
        return call()
    with testing.isa(isa):
        return call()


def rank(share, n):
    return min(n, round(share * n))


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(testing.INPUTS), SIZES, DTYPES, st.floats(0, 1), st.booleans(), WAYS)
def test_select_and_topk(name, n, dtype, share, sorted, way):
    keys = testing.named_keys(name, n, dtype)
    k = rank(share, n)
    assert torch.equal(called(way, lambda: stprune.select(keys, k)), order.select(keys, k))
    values, indices = called(way, lambda: stprune.topk(keys, k, sorted=sorted))
    expected_values, expected_indices = order.topk(keys, k, sorted)
    assert torch.equal(indices, expected_indices)
    testing.assert_same(values, expected_values)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(testing.INPUTS), st.integers(1, 9), st.integers(0, 9000), DTYPES, st.floats(0, 1), WAYS)
def test_rows(name, rows, n, dtype, share, way):
    keys = testing.named_keys(name, rows * n, dtype).view(rows, n)
    k = rank(share, n)
    assert torch.equal(called(way, lambda: stprune.select(keys, k)), order.select(keys, k))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(testing.INPUTS), SIZES, st.sampled_from([torch.float32, torch.float64]), SEEDS, EPOCHS, WAYS)
def test_draw(name, n, dtype, seed, epoch, way):
    p = testing.named_keys(name, n, dtype).nan_to_num(0.5).clamp(0.0, 1.0)
    got = called(way, lambda: stprune.draw(p, seed=seed, epoch=epoch))
    assert torch.equal(got, reference_draw.draw(p, None, seed, epoch))
    count = round(float(p.double().sum()))
    got = called(way, lambda: stprune.draw(p, seed=seed, epoch=epoch, count=count))
    assert torch.equal(got, reference_draw.draw(p, count, seed, epoch))
    assert got.numel() == count


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(testing.INPUTS), SIZES, st.floats(0, 1), st.booleans(), SEEDS, EPOCHS, WAYS)
def test_draw_weighted(name, n, share, race, seed, epoch, way):
    w = testing.named_keys(name, n).nan_to_num(0.0, 3.0, 0.0).clamp(min=0.0)
    k = rank(share, int((w > 0).sum()))
    law = "race" if race else "priority"
    indices, weights = called(way, lambda: stprune.draw_weighted(w, k, seed=seed, epoch=epoch, law=law))
    expected_indices, expected_weights = reference_weighted.draw_weighted(w, k, seed, epoch, race)
    assert torch.equal(indices, expected_indices)
    assert race or torch.equal(weights, expected_weights)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.sampled_from([torch.int64, torch.uint8, torch.float64]), SEEDS, EPOCHS, WAYS)
def test_shuffle(n, dtype, seed, epoch, way):
    ids = torch.arange(n).to(dtype)
    got = called(way, lambda: stprune.shuffle(ids, seed=seed, epoch=epoch))
    assert torch.equal(got, reference_shuffle.shuffle(ids, seed, epoch))


@pytest.mark.slow
@pytest.mark.parametrize("draw", ["bernoulli", "systematic", "weighted"])
def test_inclusion_frequencies_beyond_2_to_the_24(draw):
    """Counts over stretches on both sides of 2^24 follow the probabilities."""
    n, stretch = (1 << 24) + (1 << 20), 1 << 19
    p = torch.full((n,), 0.25)
    p[::3] = 0.5
    if draw == "bernoulli":
        kept = stprune.draw(p, seed=5, epoch=6)
    elif draw == "systematic":
        kept = stprune.draw(p, seed=5, epoch=6, count=round(float(p.double().sum())))
    else:
        # So few are drawn that the chance of each is as its weight, to a thousandth.
        kept = stprune.draw_weighted(p, n // 1000, seed=5, epoch=6)[0]
    chance = p.double() * (kept.numel() / float(p.double().sum()))
    for phase in range(3):
        expected = torch.stack([part.sum() for part in chance[phase::3].split(stretch // 3)])
        observed = torch.histc(kept[kept % 3 == phase].double() // 3, expected.numel(), 0, expected.numel() * (stretch // 3))
        # A systematic draw spreads more evenly than chance does, so only the mean of each phase is compared for it.
        if draw == "systematic":
            assert float((observed - expected).abs().max()) < 4 * 512
        else:
            assert_chi_square(observed[:-1], expected[:-1])


def test_word_of_an_index_beyond_2_to_the_32():
    """No index is folded: the random words of i and i + 2^32 differ, and so do those of i + 2^24."""
    i = torch.arange(1000)
    words = [words_at(i + offset, seed=1, epoch=2, stream=0) for offset in (0, 1 << 24, 1 << 32)]
    for a in range(3):
        for b in range(a):
            assert int((words[a] == words[b]).sum()) == 0
