"""draw_nodes against its laws."""

import itertools

import pytest
import torch

import stprune
from stprune.testing import assert_chi_square

SHAPES = ((1, 1), (2, 1), (7, 3), (63, 10), (64, 64), (65, 64), (192, 58), (716, 214), (8600, 2580), (8600, 1))


def windows(count):
    few = torch.tensor([0, 1, 63, 64, (1 << 32) - 1, 1 << 32, (1 << 40) + 3, (1 << 56) - 1])
    return torch.cat([few, torch.arange(100, 100 + count)])


@pytest.mark.parametrize(("num_nodes", "count"), SHAPES)
def test_rows_are_ascending_distinct_and_in_range(num_nodes, count):
    got = stprune.draw_nodes(windows(50), num_nodes=num_nodes, count=count, seed=1, epoch=2)
    assert int(got.min()) >= 0
    assert int(got.max()) < num_nodes
    assert bool((got.diff(dim=1) > 0).all())


def test_a_window_keeps_its_nodes_in_any_batch():
    index = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    whole = stprune.draw_nodes(index, num_nodes=100, count=30, seed=1, epoch=2)
    for part in (index[:1], index[100:107], index.flip(0), index[::3]):
        got = stprune.draw_nodes(part, num_nodes=100, count=30, seed=1, epoch=2)
        rows = [int((index == window).nonzero()) for window in part]
        assert torch.equal(got, whole[rows])
    twice = stprune.draw_nodes(torch.tensor([9, 9]), num_nodes=100, count=30, seed=1, epoch=2)
    assert torch.equal(twice[0], twice[1])


def test_fewer_nodes_are_a_subset_of_more():
    """Counts are nested: the threshold rises, the words stay."""
    few = stprune.draw_nodes(torch.arange(20), num_nodes=100, count=20, seed=1, epoch=2)
    more = stprune.draw_nodes(torch.arange(20), num_nodes=100, count=50, seed=1, epoch=2)
    for row in range(20):
        assert set(few[row].tolist()) <= set(more[row].tolist())


def test_every_node_is_equally_likely():
    got = stprune.draw_nodes(torch.arange(20_000), num_nodes=60, count=18, seed=3, epoch=1)
    seen = torch.bincount(got.flatten(), minlength=60).double()
    # The counts of a draw without replacement are negatively correlated: scale to a chi-square with 59 degrees.
    p = 18 / 60
    statistic = float(((seen - 20_000 * p) ** 2).sum() / (20_000 * p * (1 - p)) * 59 / 60)
    assert abs(statistic - 59) < 4.5 * (2 * 59) ** 0.5


def test_every_pair_is_equally_likely():
    pairs = list(itertools.combinations(range(6), 2))
    got = stprune.draw_nodes(torch.arange(9000), num_nodes=6, count=2, seed=3, epoch=1)
    codes = got[:, 0] * 6 + got[:, 1]
    seen = torch.bincount(codes, minlength=36)
    assert_chi_square([int(seen[6 * a + b]) for a, b in pairs], [600.0] * 15)


def test_epochs_and_seeds_draw_independently():
    index = torch.arange(4000)
    base = stprune.draw_nodes(index, num_nodes=50, count=10, seed=3, epoch=1)
    for change in ({"seed": 4, "epoch": 1}, {"seed": 3, "epoch": 2}):
        other = stprune.draw_nodes(index, num_nodes=50, count=10, **change)
        common = (base.unsqueeze(2) == other.unsqueeze(1)).sum((1, 2)).double()
        # Hypergeometric: mean 10 * 10 / 50 = 2, variance 2 * 0.8 * 40 / 49.
        assert abs(float(common.mean()) - 2) < 4.5 * (1.306 / 4000) ** 0.5


def test_windows_above_32_bits_differ():
    index = torch.tensor([5, 5 + (1 << 32), 5 + (1 << 40)])
    got = stprune.draw_nodes(index, num_nodes=200, count=60, seed=3, epoch=1)
    assert not torch.equal(got[0], got[1])
    assert not torch.equal(got[1], got[2])


# --- draw_nodes_weighted ---------------------------------------------------------------------------------------------


def test_weighted_sums_are_unbiased():
    """The weighted sum of any values has the whole sum as its expectation, within 4 standard errors."""
    weights = torch.randn(1, 40, generator=torch.Generator().manual_seed(40)).exp()
    value = torch.randn(40, generator=torch.Generator().manual_seed(1)).double()
    draws = 20_000
    nodes, factors = stprune.draw_nodes_weighted(weights.expand(draws, -1), torch.arange(draws), count=8, seed=0, epoch=0)
    assert bool((nodes.diff(dim=1) > 0).all())
    assert bool((factors >= 1.0).all())
    sums = (value[nodes] * factors.double()).sum(1)
    assert abs(float(sums.mean() - value.sum())) <= 4 * float(sums.std()) / draws**0.5
    # The factors matter: without them the sum is far off.
    plain = (value[nodes] * 5.0).sum(1)
    assert abs(float(plain.mean() - value.sum())) > 4 * float(plain.std()) / draws**0.5


def test_nodes_of_which_nothing_is_known_come_first():
    """In rows with none, some and more of them than are drawn; a row without is drawn bit for bit as beside others."""
    index, count = torch.arange(4), 6
    weights = torch.randn(4, 40, generator=torch.Generator().manual_seed(2)).exp()
    plain, plain_factors = stprune.draw_nodes_weighted(weights, index, count=count, seed=0, epoch=0)
    some, many = [3, 17], list(range(5, 15))
    unknown = weights.clone()
    unknown[1, some] = unknown[2, many] = unknown[3] = torch.inf
    nodes, factors = stprune.draw_nodes_weighted(unknown, index, count=count, seed=0, epoch=0)
    assert torch.equal(nodes[0], plain[0])
    assert torch.equal(factors[0], plain_factors[0])
    assert set(some) <= set(nodes[1].tolist())
    assert bool((factors[1][torch.isin(nodes[1], torch.tensor(some))] == 1.0).all())
    assert set(nodes[2].tolist()) <= set(many)
    assert bool((factors[2] == 10 / 6).all())
    assert bool((factors[3] == 40 / 6).all())
    everything = stprune.draw_nodes(index, num_nodes=40, count=count, seed=0, epoch=0)
    assert torch.equal(nodes[3], everything[3])


def test_sums_of_windows_with_unknown_nodes_are_unbiased():
    draws, value = 20_000, torch.randn(40, generator=torch.Generator().manual_seed(1)).double()
    weights = torch.randn(1, 40, generator=torch.Generator().manual_seed(40)).exp()
    weights[0, 5:8] = torch.inf
    nodes, factors = stprune.draw_nodes_weighted(weights.expand(draws, -1), torch.arange(draws), count=8, seed=0, epoch=0)
    sums = (value[nodes] * factors.double()).sum(1)
    assert abs(float(sums.mean() - value.sum())) <= 4 * float(sums.std()) / draws**0.5
