"""draw against the law it promises; tests/test_ops.py compares it with the reference."""

import math

import pytest
import torch
from named_inputs import probabilities

import stprune
from stprune import testing
from stprune.reference import draw as reference
from stprune.reference.random import DRAW, words
from stprune.testing import assert_chi_square

DTYPES = (torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_never_one_always(dtype):
    p = probabilities("mixed", 30_000, dtype)
    for count in (None, round(float(p.double().sum()))):
        for epoch in range(20):
            kept = torch.zeros(30_000, dtype=torch.bool)
            kept[stprune.draw(p, seed=1, epoch=epoch, count=count)] = True
            assert bool(kept[p == 1].all())
            assert not bool(kept[p == 0].any())


def test_result_is_ascending_and_distinct():
    p = probabilities("uniform", 50_000, torch.float32)
    for count in (None, round(float(p.double().sum()))):
        kept = stprune.draw(p, seed=1, epoch=0, count=count)
        assert bool((kept.diff() > 0).all())
        assert count in (None, kept.numel())


@pytest.mark.parametrize("off", [-0.5, -0.4, 0.4, 0.5])
@pytest.mark.parametrize("n", [3, 5000])
def test_count_half_an_item_off(n, off):
    """The rest is spread over the items: exactly count are drawn."""
    p = torch.full((n,), 0.5, dtype=torch.float64)
    count = (n + 1) // 2
    p *= (count - off) / float(p.sum())
    for epoch in range(10):
        assert stprune.draw(p, seed=0, epoch=epoch, count=count).numel() == count


def test_one_item_of_one_half_rounds_either_way():
    p = torch.tensor([0.5])
    assert stprune.draw(p, seed=0, epoch=0, count=0).tolist() == []
    assert stprune.draw(p, seed=0, epoch=0, count=1).tolist() == [0]


def test_rest_that_saturates_items_takes_more_rounds():
    """Few free items close to their bounds cannot take their share in one round."""
    p = torch.zeros(9000, dtype=torch.float64)
    p[::3] = 1.0
    for values, count in (([0.99, 0.7], 3002), ([0.9999, 0.9, 0.8], 3003), ([1e-4, 0.3], 3000), ([1e-9, 1e-4, 0.4], 3000)):
        p[1], p[4], p[7] = (*values, 0.0)[:3]
        spread = reference.spread(reference.fixed_point(p), count)
        assert int(spread.sum()) == count << 32
        assert int(spread.min()) >= 0
        assert int(spread.max()) <= 1 << 32
        assert stprune.draw(p, seed=3, epoch=1, count=count).numel() == count


def test_spread_changes_rounded_probabilities_by_almost_nothing():
    p = torch.rand(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p *= 40_000 / float(p.sum())
    q = reference.fixed_point(p)
    assert int((reference.spread(q, 40_000) - q).abs().max()) <= 1


def test_systematic_keeps_every_stretch_in_proportion():
    """In each block of 4,096 the number drawn is the sum of the probabilities to within one."""
    p = probabilities("uniform", 20 * 4096 + 100, torch.float64)
    count = round(float(p.sum()))
    for epoch in range(5):
        kept = torch.zeros_like(p)
        kept[stprune.draw(p, seed=2, epoch=epoch, count=count)] = 1
        for block in range(21):
            stretch = slice(4096 * block, 4096 * (block + 1))
            assert abs(float(kept[stretch].sum() - p[stretch].sum())) <= 1 + 1e-4


@pytest.mark.parametrize("systematic", [False, True])
def test_inclusion_frequencies(systematic):
    n, epochs = 400, 6000
    p = torch.rand(n, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 0.9 + 0.05
    p *= round(float(p.sum())) / float(p.sum())
    count = round(float(p.sum())) if systematic else None
    seen = torch.zeros(n, dtype=torch.float64)
    for epoch in range(epochs):
        seen[stprune.draw(p, seed=8, epoch=epoch, count=count)] += 1
    z = (seen - epochs * p) / (epochs * p * (1 - p)).sqrt()
    assert float(z.abs().max()) < 4.5
    # A sum of squares of 400 (nearly) independent standard normals: 400 +- 28.
    assert abs(float((z**2).sum()) - n) < 4.5 * 29


def test_systematic_inclusion_of_several_blocks():
    """Items of different blocks and their probabilities, with p so that blocks do not hold whole numbers."""
    n, epochs = 3 * 4096 + 500, 3000
    p = torch.full((n,), 0.1, dtype=torch.float64)
    p[::2] = 0.3
    count = round(float(p.sum()))
    p *= count / float(p.sum())
    seen = torch.zeros(n, dtype=torch.float64)
    for epoch in range(epochs):
        seen[stprune.draw(p, seed=8, epoch=epoch, count=count)] += 1
    z = (seen - epochs * p) / (epochs * p * (1 - p)).sqrt()
    assert float(z.abs().max()) < 5.5
    assert abs(float((z**2).mean()) - 1) < 0.1


def test_bernoulli_count_is_binomial():
    counts = [stprune.draw(torch.full((100,), 0.3), seed=1, epoch=e).numel() for e in range(4000)]
    mean = sum(counts) / 4000
    variance = sum((c - mean) ** 2 for c in counts) / 4000
    assert abs(mean - 30) < 4.5 * (21 / 4000) ** 0.5
    assert abs(variance - 21) < 4.5 * 21 * (2 / 4000) ** 0.5


def test_systematic_pairs_do_not_resonate_with_a_period():
    """Equal probabilities and a fixed stride would keep the same hours of all days; the random order prevents it."""
    n, period = 4096, 8
    p = torch.full((n,), 1 / period, dtype=torch.float64)
    seen = torch.zeros(period)
    for epoch in range(400):
        hours = stprune.draw(p, seed=1, epoch=epoch, count=n // period) % period
        seen += torch.bincount(hours, minlength=period)
        # A resonant draw would put all 512 into one of the 8 hours.
        assert int(torch.bincount(hours, minlength=period).max()) < 130
    assert_chi_square(seen, torch.full((period,), 400.0 * n / period / period))


@pytest.mark.slow
def test_more_items_than_a_float_can_count():
    n = (1 << 24) + 100_003
    p = torch.full((n,), 2.0**-10)
    kept = stprune.draw(p, seed=6, epoch=1)
    start = 1 << 24
    tail = words(n - start, seed=6, epoch=1, stream=DRAW, start=start)
    assert torch.equal(kept[kept >= start], (tail < 1 << 22).nonzero().flatten() + start)
    count = round(float(p.double().sum()))
    kept = stprune.draw(p, seed=6, epoch=1, count=count)
    assert kept.numel() == count
    assert bool((kept.diff() > 0).all())
    parts = torch.bincount(kept >> 20, minlength=17)[:16]
    assert int((parts - 1024).abs().max()) <= 1


@pytest.mark.parametrize("isa", testing.isas())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bad_probabilities_anywhere_leave_the_buffer_alone(isa, dtype):
    """They are looked at while the words are compared: before anything is written."""
    n = 2 * testing.CHUNK + 77
    p, out = torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=dtype), torch.full((n,), -7)
    for place in (0, 63, 64, testing.CHUNK - 1, testing.CHUNK, n - 1):
        for bad in (math.nan, math.inf, -1e-45, 1 + 2.0**-23):
            v = p.clone()
            v[place] = bad
            v[-1] = -1.0
            for count in (None, n // 2):
                with (
                    testing.isa(isa),
                    pytest.raises(ValueError, match=rf"probability must lie in \[0, 1\], got .* at index {place}$"),
                ):
                    stprune.draw(v, seed=1, epoch=1, count=count, out=out)
    assert int(out.max()) == -7


def test_global_generator_is_untouched():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    p = torch.full((5000,), 0.5)
    one = stprune.draw(p, seed=1, epoch=1)
    torch.manual_seed(4)
    assert torch.equal(one, stprune.draw(p, seed=1, epoch=1))
    torch.manual_seed(3)
    assert torch.equal(torch.get_rng_state(), before)
