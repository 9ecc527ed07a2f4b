"""Every op with exact results against its reference at any size, rank and seed, for any threads and instruction set."""

import pytest
import torch
from engine_cases import REFERENCES, SIZED, assert_all_same, kernel, outcome
from hypothesis import given, settings
from hypothesis import strategies as st

import stprune
from stprune import testing
from stprune.reference.random import words_at
from stprune.testing import assert_chi_square

LENGTHS = st.one_of(
    st.sampled_from(testing.SIZES),
    st.integers(1, 3 * testing.CHUNK),
    st.sampled_from([testing.CHUNK * 8 - 1, testing.CHUNK * 9]),
)
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


@settings(max_examples=400, deadline=None)
@given(
    name=st.sampled_from(list(SIZED)), n=LENGTHS, share=st.floats(0, 1), seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 2**32 - 1), way=WAYS, data=st.data(),
)  # fmt: skip
def test_matches_the_reference(name, n, share, seed, epoch, way, data):
    op, make = SIZED[name]
    every = [list(arguments) for arguments in make(n)]
    if not every:
        return
    arguments = every[data.draw(st.integers(0, len(every) - 1))]
    places = {argument.name: i for i, argument in enumerate(getattr(torch.ops.stprune, op).default._schema.arguments)}
    for argument, value in (("seed", seed), ("epoch", epoch)):
        if argument in places:
            arguments[places[argument]] = value
    if "k" in places:
        arguments[places["k"]] = round(share * max(others[places["k"]] for others in every))
    expected = outcome(op, REFERENCES[op], arguments)
    assert_all_same(called(way, lambda: outcome(op, kernel(op), arguments)), expected)


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
