"""The counter-based random numbers: known answers, layout, independence of streams."""

import pytest
import torch

from stprune.reference import random
from stprune.reference.random import MASK_32, philox4x32, split_seed, words, words_at
from stprune.testing import assert_chi_square

# Random123's kat_vectors for philox4x32-10: counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MASK_32,) * 4, (MASK_32,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_known_answers(counter, key, result):
    assert tuple(int(word) for word in philox4x32(counter, key)) == result


def test_layout_of_the_words():
    """Index i takes word (i >> 4) & 3 of counter 16 * (i >> 6) + (i & 15)."""
    got = words(200, seed=7 << 32 | 5, epoch=9, stream=3)
    for i in (0, 15, 16, 63, 64, 150):
        four = philox4x32((16 * (i >> 6) + (i & 15), 0, 9, 3), (5, 7))
        assert int(got[i]) == int(four[(i >> 4) & 3])


def test_words_at_and_start_agree_with_words():
    all_words = words(1000, seed=5, epoch=3, stream=1)
    some = torch.tensor([0, 17, 999, 64, 640])
    assert torch.equal(words_at(some, seed=5, epoch=3, stream=1), all_words[some])
    assert torch.equal(words(400, seed=5, epoch=3, stream=1, start=576), all_words[576:976])


def test_high_indices_use_the_high_counter_word():
    index = torch.tensor([(1 << 40) - 1])
    c = 16 * (int(index) >> 6) + (int(index) & 15)
    four = philox4x32((c & MASK_32, c >> 32, 2, 0), split_seed(1))
    assert int(words_at(index, seed=1, epoch=2, stream=0)) == int(four[(int(index) >> 4) & 3])


def test_every_part_of_the_key_matters():
    base = {"seed": 1, "epoch": 1, "stream": 1}
    first = words(4096, **base)
    for change in ({"seed": 2}, {"seed": 1 + (1 << 32)}, {"epoch": 2}, {"stream": 2}):
        other = words(4096, **{**base, **change})
        # 4,096 equal 32-bit pairs by chance: 10^-6.
        assert not bool((first == other).any())
        bits = sum(((first ^ other) >> b & 1).sum() for b in range(32))
        assert abs(float(bits) / (32 * 4096) - 0.5) < 0.01


def test_words_are_uniform():
    w = words(1 << 16, seed=3, epoch=0, stream=0)
    for shift in (0, 24):
        assert_chi_square(torch.bincount((w >> shift) & 255, minlength=256), torch.full((256,), 256.0))


def test_streams_are_distinct():
    streams = [random.DRAW, random.WEIGHTED, random.SHUFFLE, random.SYSTEMATIC, random.NODES]
    assert len(set(streams)) == len(streams)
