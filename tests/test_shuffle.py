"""shuffle and permute against what a random order must look like."""

import itertools

import pytest
import torch

from stprune.ops import permute
from stprune.testing import assert_chi_square


@pytest.mark.parametrize("n", [1, 5, 1023, 1024, 1025, 1500, 2000, 40_000, 99_991])
def test_is_a_permutation(n):
    assert torch.equal(permute(n, seed=3, epoch=9).sort().values, torch.arange(n))


@pytest.mark.parametrize("n", [700, 5000, 70_001])
def test_any_stretch_is_the_same_as_in_the_whole(n):
    whole = permute(n, seed=3, epoch=1)
    for start, stop in ((0, 0), (0, 1), (n - 1, n), (17, 500), (n // 2, n // 2 + 100), (n // 3, n)):
        assert torch.equal(permute(n, start, stop, seed=3, epoch=1), whole[start:stop])


def test_out_is_written_and_returned():
    out = torch.empty(100, dtype=torch.int64)
    got = permute(5000, 200, 300, seed=3, epoch=1, out=out)
    assert got is out
    assert torch.equal(out, permute(5000, seed=3, epoch=1)[200:300])


@pytest.mark.parametrize("n", [(1 << 24) + 12_345, (1 << 31) + 7, (1 << 32) + 1, 1 << 40])
def test_long_permutations(n):
    for start in (0, n // 2, n - 1000):
        got = permute(n, start, start + 1000, seed=3, epoch=1)
        assert int(got.min()) >= 0
        assert int(got.max()) < n
        assert got.unique().numel() == 1000


def test_bijective_where_the_grid_is_larger_than_n():
    """n = a * a + 1 leaves the most cells outside, so most images are walked again."""
    for a in (32, 33, 100):
        for n in (a * a, a * a + 1, a * a + a, a * a + a + 1):
            assert torch.equal(permute(n, seed=1, epoch=0).sort().values, torch.arange(n))


@pytest.mark.parametrize("n", [3, 4])
def test_all_orders_of_a_few_are_equally_likely(n):
    orders = list(itertools.permutations(range(n)))
    seen = dict.fromkeys(orders, 0)
    epochs = 200 * len(orders)
    for epoch in range(epochs):
        seen[tuple(permute(n, seed=2, epoch=epoch).tolist())] += 1
    assert_chi_square([seen[order] for order in orders], [200.0] * len(orders))


@pytest.mark.parametrize("n", [1024, 1025, 5000, 1_000_003])
def test_positions_and_values_are_independent(n):
    """Table of (part of the positions, part of the values), over enough epochs that every cell expects 50."""
    parts = 16 if n < 100_000 else 64
    epochs = max(1, 50 * parts * parts // n)
    part = torch.arange(n) * parts // n
    sizes = torch.bincount(part, minlength=parts).double()
    table = torch.zeros(parts * parts, dtype=torch.int64)
    for epoch in range(epochs):
        table += torch.bincount(part * parts + part[permute(n, seed=4, epoch=epoch)], minlength=parts * parts)
    expected = sizes.outer(sizes) / n * epochs
    statistic = float(((table - expected.flatten()) ** 2 / expected.flatten()).sum())
    # The margins are fixed: (parts - 1)^2 degrees of freedom an epoch's table, and the sum of tables has no more.
    freedom = (parts - 1) ** 2
    assert abs(statistic - freedom) < 4.5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("n", [1024, 1025, 4096, 30_000])
def test_pairs_of_neighbours_are_independent(n):
    """Where one position goes says nothing about where its neighbour goes, over epochs."""
    cells, epochs = 8, 4000
    table = torch.zeros(cells, cells)
    for epoch in range(epochs):
        first, second = (permute(n, 10, 12, seed=6, epoch=epoch) * cells // n).tolist()
        table[first, second] += 1
    assert_chi_square(table, torch.full((cells, cells), epochs / cells**2))


@pytest.mark.parametrize("n", [1025, 5000, 100_003])
def test_no_serial_correlation(n):
    for epoch in range(5):
        order = permute(n, seed=7, epoch=epoch).double()
        order = (order - order.mean()) / order.std()
        for lag in (1, 2, 64, int(n**0.5) + 1):
            assert abs(float((order[lag:] * order[:-lag]).mean())) < 5 / n**0.5


@pytest.mark.parametrize("n", [1024, 5000])
def test_orders_of_epochs_and_seeds_are_unrelated(n):
    """Two independent orders agree in Poisson(1) places; so does each order with the identity."""
    base = torch.arange(n)
    agreements = []
    for epoch in range(300):
        order = permute(n, seed=7, epoch=epoch)
        agreements += [
            int((order == base).sum()),
            int((order == permute(n, seed=7, epoch=epoch + 1)).sum()),
            int((order == permute(n, seed=8, epoch=epoch)).sum()),
            int((order == permute(n, seed=7, epoch=epoch, stream=17)).sum()),
        ]
    mean = sum(agreements) / len(agreements)
    assert abs(mean - 1) < 5 / len(agreements) ** 0.5


def test_pairs_of_the_same_row_separate():
    """Positions that share a row of the grid stay together no more often than chance has it."""
    n = 10_000
    together = 0
    for epoch in range(2000):
        first, second = permute(n, 0, 2, seed=1, epoch=epoch).tolist()
        together += first // 100 == second // 100
    assert abs(together - 20) < 5 * 20**0.5
