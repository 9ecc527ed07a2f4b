"""draw_threshold against the rule in plain words, and against its law."""

import math

import pytest
import torch

import stprune
from stprune import testing
from stprune.methods import InfoBatch
from stprune.ops import draw_threshold, permute
from stprune.testing import assert_chi_square

DTYPES = (torch.float32, torch.float64)


def lognormal(n, seed=0):
    return torch.empty(n).log_normal_(generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [1, 7, 1500, 1501, 50_000])
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.9])
def test_exact_count_is_the_head_of_a_permutation(n, keep):
    """The rule as InfoBatch's method had it before it was one op: pool, order, head."""
    scores = lognormal(n)
    below = scores < scores.double().mean().float()
    pool = below.nonzero().flatten()
    count = int(keep * pool.numel())
    kept = ~below
    if count > 0 or pool.numel() == 0:
        kept[pool[permute(pool.numel(), seed=5, epoch=2)[:count]]] = True
    else:
        chance = torch.tensor([keep * pool.numel()], dtype=torch.float64)
        kept[pool[permute(pool.numel(), seed=5, epoch=2)[: stprune.draw(chance, seed=5, epoch=2).numel()]]] = True
    indices, weights = draw_threshold(scores, keep, seed=5, epoch=2, exact_count=True)
    assert torch.equal(indices, kept.nonzero().flatten())
    assert torch.equal(weights, torch.where(below[indices], 1 / torch.tensor(keep), 1.0))


@pytest.mark.parametrize("n", [5, 900, 20_000])
@pytest.mark.parametrize("keep_ratio", [0.01, 0.5, 0.8])
def test_infobatch_in_one_op_is_infobatch_in_three(n, keep_ratio):
    scores = lognormal(n)
    scores[0] = math.nan
    order = lambda size, seed, epoch: stprune.permute(size, 0, size, seed=seed, epoch=epoch)
    plans = [
        stprune.plan_epoch(scores, method=method, keep_ratio=keep_ratio, epoch=9, seed=3)
        for method in (InfoBatch(), InfoBatch(permutation=order))
    ]
    testing.assert_same(plans[0].indices, plans[1].indices)
    testing.assert_same(plans[0].weights, plans[1].weights)


def test_inclusion_frequencies():
    """Each sample below the mean is kept as often as any other, on its own or with an exact count."""
    for n, exact in ((300, False), (300, True), (2600, True)):
        scores = lognormal(n)
        below = scores < scores.mean()
        epochs, keep = 1500, 0.3
        hits = torch.zeros(n)
        for epoch in range(epochs):
            indices, _ = draw_threshold(scores, keep, seed=1, epoch=epoch, exact_count=exact)
            hits[indices] += 1
        assert bool((hits[~below] == epochs).all())
        share = int(keep * int(below.sum())) / int(below.sum()) if exact else keep
        # Pearson's statistic counts the kept and the others; with an exact count the sum of the hits is no coincidence.
        observed = torch.stack([hits[below], epochs - hits[below]])
        expected = torch.tensor([[share], [1 - share]]) * epochs
        statistic = float(((observed - expected) ** 2 / expected).sum())
        freedom = int(below.sum()) * (1 if not exact else 1 - 1 / int(below.sum()))
        assert abs(statistic - freedom) < 4.5 * math.sqrt(2 * freedom)


def test_count_of_a_small_pool_is_right_on_average():
    scores = torch.tensor([1.0, 1.0, 1.0, 9.0])
    counts = [len(draw_threshold(scores, 0.1, seed=0, epoch=e, exact_count=True)[0]) - 1 for e in range(4000)]
    assert set(counts) == {0, 1}
    assert_chi_square([counts.count(0), counts.count(1), 1000], [2800, 1200, 1000], sigmas=6)


def test_nothing_below():
    for scores in (torch.full((999,), 0.1), torch.full((3,), math.nan), torch.tensor([math.inf]), torch.empty(0)):
        for exact in (False, True):
            indices, weights = draw_threshold(scores, 0.5, seed=0, epoch=0, exact_count=exact)
            assert torch.equal(indices, torch.arange(scores.numel()))
            assert torch.equal(weights, torch.ones(scores.numel()))


def test_keep_everything():
    indices, weights = draw_threshold(lognormal(5000), 1.0, seed=0, epoch=0)
    assert torch.equal(indices, torch.arange(5000))
    assert torch.equal(weights, torch.ones(5000))
