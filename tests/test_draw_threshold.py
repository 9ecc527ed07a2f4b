"""draw_threshold against the reference bit for bit, against the rule in plain words, and against its law."""

import math

import pytest
import torch

import stprune
from stprune import testing
from stprune.methods import InfoBatch
from stprune.ops import draw_threshold, permute
from stprune.reference import draw_threshold as reference
from stprune.testing import assert_chi_square

DTYPES = (torch.float32, torch.float64)


def lognormal(n, seed=0):
    return torch.empty(n).log_normal_(generator=torch.Generator().manual_seed(seed))


def assert_reference(scores, keep, exact, seed=7, epoch=3):
    drawn = draw_threshold(scores, keep, seed=seed, epoch=epoch, exact_count=exact)
    for actual, expected in zip(drawn, reference.draw_threshold(scores, keep, exact, seed, epoch), strict=True):
        testing.assert_same(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", testing.INPUTS)
def test_matches_reference(name, dtype):
    for n in testing.SIZES:
        scores = testing.named_keys(name, n, dtype)
        for keep in (0.001, 0.5):
            for exact in (False, True):
                assert_reference(scores, keep, exact)


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_and_awkward_memory(dtype):
    scores = lognormal(3000).to(dtype)
    expected = draw_threshold(scores.float(), 0.5, seed=0, epoch=0)
    for x in testing.awkward(scores):
        for actual, wanted in zip(draw_threshold(x, 0.5, seed=0, epoch=0), expected, strict=True):
            assert torch.equal(actual, wanted)


@pytest.mark.parametrize("exact", [False, True])
def test_out_is_written_in_front_and_nowhere_else(exact, threads):
    scores = lognormal(40_001)
    expected = draw_threshold(scores, 0.4, seed=3, epoch=4, exact_count=exact)
    count = expected[0].numel()
    for number in (1, 3):
        threads(number)
        for size in (count, count + 1, 40_001):
            out = (torch.full((size,), -1), torch.full((size,), -1.0))
            drawn = draw_threshold(scores, 0.4, seed=3, epoch=4, exact_count=exact, out=out)
            for buffer, view, wanted in zip(out, drawn, expected, strict=True):
                assert view.data_ptr() == buffer.data_ptr()
                assert torch.equal(view, wanted)
                assert bool((buffer[count:] == -1).all())


def test_out_that_does_not_fit_is_left_alone():
    scores = lognormal(1000)
    count = draw_threshold(scores, 0.5, seed=0, epoch=0)[0].numel()
    out = (torch.full((count,), -1), torch.full((count - 1,), -1.0))
    with pytest.raises(ValueError, match=f"out must have at least {count} elements, got {count - 1}"):
        draw_threshold(scores, 0.5, seed=0, epoch=0, out=out)
    assert bool((out[0] == -1).all() and (out[1] == -1).all())
    with pytest.raises(TypeError, match=r"out indices must be torch.int64, got torch.float32"):
        draw_threshold(scores, 0.5, seed=0, epoch=0, out=(torch.empty(1000), torch.empty(1000)))
    with pytest.raises(ValueError, match="out weights must be contiguous"):
        draw_threshold(scores, 0.5, seed=0, epoch=0, out=(torch.empty(1000).long(), torch.empty(2000)[::2]))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"scores": torch.arange(3)}, TypeError, "scores must be float32"),
        ({"scores": torch.ones(1, 3)}, ValueError, "scores must have one dimension"),
        ({"keep": 0.0}, ValueError, r"keep must lie in \(0, 1\], got 0"),
        ({"keep": math.nan}, ValueError, "keep must lie in"),
        ({"keep": True}, TypeError, "keep must be a number"),
        ({"seed": -1}, ValueError, "seed must lie in"),
        ({"epoch": 2**32}, ValueError, "epoch must lie in"),
    ],
)
def test_errors(change, error, message):
    arguments = {"scores": torch.ones(3), "keep": 0.5, "seed": 0, "epoch": 0} | change
    with pytest.raises(error, match=f"draw_threshold: {message}"):
        draw_threshold(arguments.pop("scores"), arguments.pop("keep"), **arguments)


@pytest.mark.parametrize("isa", testing.isas())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [63, 64, 65, 2049, testing.CHUNK - 1, testing.CHUNK + 1, 2 * testing.CHUNK + 63])
def test_edges_of_words_and_chunks(isa, dtype, n):
    for keep in (2.0**-33, 0.3, 1 - 2.0**-33, 1.0):
        scores = lognormal(n).to(dtype)
        scores[::64] = 0.01
        scores[63::64] = math.inf
        expected = reference.draw_threshold(scores, keep, False, 3, 4)
        with testing.isa(isa):
            got = draw_threshold(scores, keep, seed=3, epoch=4)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])
