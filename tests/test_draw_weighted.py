"""draw_weighted against the laws it promises."""

import itertools
import math

import pytest
import torch
from named_inputs import weights_of

import stprune
from stprune import testing
from stprune.reference import draw_weighted as reference
from stprune.reference.random import WEIGHTED, words_at
from stprune.testing import assert_chi_square


def test_keys_are_what_the_docstring_says():
    w = torch.tensor([0.5, 2.0, 0.0, 3.0])
    word = words_at(torch.arange(4), seed=1, epoch=2, stream=WEIGHTED)
    u = [(float(x) + 0.5) / 2**32 for x in word]
    keys = reference.priority_keys(w, 1, 2)
    race = reference.race_keys(w, 1, 2)
    for i in (0, 1, 3):
        assert float(keys[i]) == pytest.approx(u[i] / float(w[i]), rel=3e-7)
        assert float(race[i]) == pytest.approx(-math.log(u[i]) / float(w[i]), rel=3e-7)
    assert float(keys[2]) == math.inf


def test_logarithm():
    u = torch.rand(200_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u = torch.cat([u, torch.tensor([1 - 2.0**-33, 2.0**-33, 0.5, math.sqrt(0.5), 1e-5], dtype=torch.float64)])
    error = (reference.logarithm(u) - u.log()).abs() / u.log().abs()
    assert float(error.max()) < 5e-16


def test_weight_zero_is_never_drawn_and_all_positive_are_certain():
    w = weights_of("sparse", 40_000)
    positive = (w > 0).nonzero().flatten()
    for law in ("priority", "race"):
        for k in (positive.numel() - 1, positive.numel()):
            indices, _ = stprune.draw_weighted(w, k, seed=1, epoch=1, law=law)
            assert bool((w[indices] > 0).all())
    indices, weights = stprune.draw_weighted(w, positive.numel(), seed=1, epoch=1)
    assert torch.equal(indices, positive)
    assert torch.equal(weights, torch.ones(positive.numel()))


@pytest.mark.parametrize("k", [20, 300, 1500])
def test_priority_totals_are_unbiased(k):
    """Horvitz-Thompson totals of the weights, and of values that have nothing to do with them."""
    n, epochs = 2000, 400
    w = weights_of("lognormal", n)
    values = torch.randn(n, generator=torch.Generator().manual_seed(2)).double() + 1
    for v in (w.double(), values):
        totals = torch.empty(epochs, dtype=torch.float64)
        for epoch in range(epochs):
            indices, weights = stprune.draw_weighted(w, k, seed=3, epoch=epoch)
            totals[epoch] = (weights.double() * v[indices]).sum()
        error = abs(float(totals.mean() - v.sum()))
        assert error < 4 * float(totals.std()) / math.sqrt(epochs)


def first_key_law(w, race):
    """P(item i has the smallest key) by integration over the key: uniform on [0, 1 / w], or exponential of rate w."""
    if race:
        return [x / sum(w) for x in w]
    steps = 200_000
    end = 1 / max(w)
    t = (torch.arange(steps, dtype=torch.float64) + 0.5) * (end / steps)
    return [float((x * math.prod((1 - y * t) for j, y in enumerate(w) if j != i)).sum() * end / steps) for i, x in enumerate(w)]


@pytest.mark.parametrize("law", ["priority", "race"])
def test_law_of_the_first(law):
    w, epochs = [1.0, 2.0, 4.0, 0.5], 6000
    seen = torch.zeros(4)
    for epoch in range(epochs):
        seen[stprune.draw_weighted(torch.tensor(w), 1, seed=9, epoch=epoch, law=law)[0]] += 1
    law_of_first = torch.tensor(first_key_law(w, law == "race"))
    assert float(law_of_first.sum()) == pytest.approx(1, abs=1e-6)
    assert_chi_square(seen, epochs * law_of_first)


def test_race_pairs_follow_successive_sampling():
    w, epochs = [1.0, 2.0, 4.0, 0.5], 8000
    pairs = list(itertools.combinations(range(4), 2))
    seen = dict.fromkeys(pairs, 0)
    for epoch in range(epochs):
        seen[tuple(stprune.draw_weighted(torch.tensor(w), 2, seed=4, epoch=epoch, law="race")[0].tolist())] += 1
    total = sum(w)
    expected = [epochs * (w[i] / total * w[j] / (total - w[i]) + w[j] / total * w[i] / (total - w[j])) for i, j in pairs]
    assert_chi_square([seen[pair] for pair in pairs], expected)


def test_equal_weights_give_uniform_pairs():
    pairs = list(itertools.combinations(range(6), 2))
    seen = dict.fromkeys(pairs, 0)
    for epoch in range(6000):
        seen[tuple(stprune.draw_weighted(torch.ones(6), 2, seed=4, epoch=epoch)[0].tolist())] += 1
    assert_chi_square([seen[pair] for pair in pairs], [400.0] * 15)


# --- unknown items ---------------------------------------------------------------------------------------------------


def with_unknown(n, number):
    weights = weights_of("lognormal", n)
    unknown = torch.randperm(n, generator=torch.Generator().manual_seed(5))[:number].sort().values
    return weights.index_fill(0, unknown, math.inf), weights.index_fill(0, unknown, 0.0), unknown


@pytest.mark.parametrize("law", ["priority", "race"])
@pytest.mark.parametrize("scale", [1.0, 2.0**-120, 2.0**120])
@pytest.mark.parametrize(("n", "number", "k"), [(50, 7, 20), (50, 7, 7), (50, 7, 50), (20_000, 300, 9000)])
def test_unknown_items_come_first_and_the_rest_is_the_draw_of_the_known(n, number, k, scale, law):
    """Bit for bit: known items and what they count for are those of a draw of k - number of the known alone."""
    weights, known, unknown = with_unknown(n, number)
    indices, factors = stprune.draw_weighted(weights * scale, k, seed=3, epoch=4, law=law)
    rest, rest_factors = stprune.draw_weighted(known, k - number, seed=3, epoch=4, law=law)
    assert torch.equal(indices, torch.cat([unknown, rest]).sort().values)
    if law == "race":
        assert factors is None
        return
    assert bool((factors[torch.isin(indices, unknown)] == 1.0).all())
    assert torch.equal(factors[torch.isin(indices, rest)], rest_factors)
    out = torch.empty(n, dtype=torch.int64), torch.empty(n)
    again, again_factors = stprune.draw_weighted(weights * scale, k, seed=3, epoch=4, out=out)
    assert again.data_ptr() == out[0].data_ptr()
    assert torch.equal(again, indices)
    assert torch.equal(again_factors, factors)


@pytest.mark.parametrize("law", ["priority", "race"])
def test_more_unknown_items_than_asked_are_drawn_uniformly(law):
    weights, _, unknown = with_unknown(50, 12)
    seen, epochs = torch.zeros(50), 3000
    for epoch in range(epochs):
        indices, factors = stprune.draw_weighted(weights, 5, seed=3, epoch=epoch, law=law)
        seen[indices] += 1
        assert law == "race" or bool((factors == 12 / 5).all())
    assert int(seen.sum()) == int(seen[unknown].sum()) == 5 * epochs
    # The counts of a draw without replacement are negatively correlated: scale to a chi-square with 11 degrees.
    chance = 5 / 12
    statistic = float((seen[unknown] - epochs * chance).square().sum() / (epochs * chance * (1 - chance)) * 11 / 12)
    assert abs(statistic - 11) < 4.5 * 22**0.5


@pytest.mark.parametrize("others", [[], [0.0, 0.0], [1e-45, 3.4e38], [3.4e38, 3.4e38], [1e-45, 1e-45]])
def test_unknown_items_come_first_beside_any_weights(others):
    weights = torch.tensor([math.inf, *others, math.inf])
    positive = int((weights > 0).sum())
    for epoch in range(50):
        indices, factors = stprune.draw_weighted(weights, 2, seed=0, epoch=epoch)
        assert indices.tolist() == [0, len(weights) - 1]
        assert factors.tolist() == [1.0, 1.0]
        assert stprune.draw_weighted(weights, positive, seed=0, epoch=epoch)[1].tolist() == [1.0] * positive
    assert stprune.draw_weighted(weights, 0, seed=0, epoch=0)[0].numel() == 0


def test_replay_by_score_from_a_ring_is_unbiased():
    """Each step draws 20 of 120 past samples by their last |error|, some of them never tried: 1,000 draws, 4 standard errors.

    The drawn gradients of the squared error are those of the whole ring in expectation; without their weights they are not.
    """
    generator = torch.Generator().manual_seed(0)
    x, readout = (torch.randn(size, generator=generator, dtype=torch.float64) for size in ((120, 4), (4,)))
    y = x @ torch.randn(4, generator=generator, dtype=torch.float64) + torch.randn(120, generator=generator)
    error = x @ readout - y
    table = stprune.ScoreTable(120, beta=0.0)
    table.update(torch.arange(9, 120), error[9:].abs().float())  # slots 0 to 8 were filled since and are unknown
    gradient = 2 * error.unsqueeze(1) * x
    draws = []
    for step in range(1000):
        index, weight = stprune.draw_weighted(table.scores, 20, seed=7, epoch=step)
        draws.append(torch.stack([(weight.unsqueeze(1) * gradient[index]).sum(0), 6.0 * gradient[index].sum(0)]))
    draws = torch.stack(draws)
    z = (draws.mean(0) - gradient.sum(0)).abs() / (draws.std(0) / len(draws) ** 0.5)
    assert bool((z[0] <= 4).all()), z
    assert float(z[1].max()) > 10


@pytest.mark.slow
def test_more_items_than_torch_multinomial_takes():
    n = (1 << 24) + 300_000
    w = torch.zeros(n)
    start = (1 << 24) - 2000
    generator = torch.Generator().manual_seed(1)
    some = torch.arange(start, n, 7)
    w[some] = torch.rand(some.numel(), generator=generator) + 0.1
    indices, weights = stprune.draw_weighted(w, 1000, seed=3, epoch=4)
    word = words_at(some, seed=3, epoch=4, stream=WEIGHTED)
    keys = (word.float() + 0.5) * 2.0**-32 / w[some]
    order = torch.sort(keys, stable=True)
    assert torch.equal(indices, some[order.indices[:1000]].sort().values)
    tau = 1 / order.values[1000].double()
    assert torch.equal(weights, (tau / w[indices].double()).clamp(min=1).float())


@pytest.mark.parametrize("isa", testing.isas())
@pytest.mark.parametrize("law", ["priority", "race"])
def test_bad_weights_anywhere_leave_the_buffers_alone(isa, law, threads):
    """Weights are checked while keys are compared, or on their own where too many are tied: before anything is written."""
    n = 2 * testing.CHUNK + 77
    out = torch.full((n,), -7), torch.full((n,), -7.0)
    for name in ("lognormal", "constant", "sparse"):
        w = weights_of(name, n)
        for place in (0, 63, 64, testing.CHUNK - 1, 2 * testing.CHUNK, n - 1):
            for bad in (math.nan, -math.inf, -1.0, -1e-45):
                v = w.clone()
                v[place] = bad
                v[n // 2 + place // 2] = math.nan
                with (
                    testing.isa(isa),
                    pytest.raises(ValueError, match=f"weights must be at least 0, got .* at index {place}$"),
                ):
                    stprune.draw_weighted(v, n // 4, seed=0, epoch=0, law=law, out=(out[0], None if law == "race" else out[1]))
    v = weights_of("sparse", n)
    positive = int((v > 0).sum())
    for count in (1, 3):
        threads(count)
        for k in (positive + 1, n):
            with testing.isa(isa), pytest.raises(ValueError, match=rf"k must lie in \[0, {positive}\].*got {k}"):
                stprune.draw_weighted(v, k, seed=0, epoch=0, law=law, out=(out[0], None if law == "race" else out[1]))
    assert int(out[0].max()) == -7
    assert float(out[1].max()) == -7
    assert stprune.draw_weighted(torch.full((9000,), -0.0), 0, seed=0, epoch=0, law=law)[0].numel() == 0
