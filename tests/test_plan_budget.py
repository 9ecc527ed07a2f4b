"""plan_budget against its steps one after another, and what it refuses."""

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

import stprune
from stprune import testing
from stprune.ops.budget import inclusion_budget
from stprune.ops.plan_budget import Buffers, plan_budget
from stprune.ops.plan_weights import inverse_at
from stprune.ops.strata import calibrate, checked_strata
from stprune.reference import budget as reference_budget
from stprune.reference import plan_budget as reference
from stprune.reference.draw import draw as reference_draw

LARGE = reference_budget.SAMPLED + 12_345


def lognormal(n, seed=0, dtype=torch.float32):
    return torch.empty(n, dtype=dtype).log_normal_(generator=torch.Generator().manual_seed(seed))


def labels(n, num_strata):
    return torch.randint(0, num_strata, (n,), generator=torch.Generator().manual_seed(n))


def buffers(n):
    return Buffers(torch.full((n,), -7, dtype=torch.int64), torch.full((n,), -7.0), torch.full((n,), -7, dtype=torch.int32))


def assert_reference(scores, alpha=0.5, count=None, minimum=0.1, strata=None, seed=1, epoch=2):
    count = max(1, scores.numel() // 2) if count is None else count
    kept = plan_budget(scores, alpha=alpha, count=count, minimum=minimum, strata=strata, seed=seed, epoch=epoch)
    pair = (None, None) if strata is None else (strata.labels, strata.sizes)
    indices, weights, mean = reference.plan_budget(scores, alpha, count, minimum, *pair, seed, epoch)
    testing.assert_same(kept.indices, indices)
    testing.assert_same(kept.weights, weights)
    assert kept.mean_weight == float(mean)
    return kept


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(
    values=st.lists(st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, torch.nan, torch.inf]), min_size=1, max_size=90),
    alpha=st.sampled_from([0.0, 0.5, 1.0, 0.3]),
    ratio=st.floats(0.0, 1.0),
    floor=st.floats(0.0, 1.0),
    num_strata=st.sampled_from([None, 1, 2, 5]),
)
def test_any_scores(values, alpha, ratio, floor, num_strata):
    scores = torch.tensor(values, dtype=torch.float32)
    n = len(values)
    count, minimum = round(ratio * n), floor * ratio
    strata = None if num_strata is None else checked_strata("test", labels(n, num_strata), n)
    if count == 0 and bool(torch.isfinite(scores).all()):
        count = 1
    kept = plan_budget(scores, alpha=alpha, count=count, minimum=minimum, strata=strata, seed=3, epoch=4)
    probability = inclusion_budget(scores, alpha=alpha, count=count, minimum=minimum)
    number = reference_budget.num_kept(scores, count, minimum)
    assert len(kept.indices) == number
    indices = reference_draw(probability, number, 3, 4)
    weights = inverse_at(probability, indices)
    if strata is not None:
        calibrate(weights, indices, strata)
    testing.assert_same(kept.indices, indices)
    testing.assert_same(kept.weights, weights)


@pytest.mark.slow
def test_sum_of_rounded_probabilities_may_miss_the_count():
    """The draw of a plan is exact also where float32 rounding of many equal probabilities adds up to several samples."""
    n = 1 << 25
    scores = torch.ones(n)
    count = n // 2 + 1
    p = inclusion_budget(scores, alpha=1.0, count=count, minimum=0.0)
    assert float(p.double().sum()) == count - 1
    kept = plan_budget(scores, alpha=1.0, count=count, minimum=0.0, seed=0, epoch=0)
    assert len(kept.indices) == count
    assert bool((kept.indices.diff() > 0).all())


def test_the_certain_alone_may_be_more_than_asked():
    scores = lognormal(1000)
    scores[:700] = torch.inf
    kept = assert_reference(scores, count=500, minimum=0.1)
    assert len(kept.indices) == 700 + 30
    assert bool((kept.weights[:700] == 1).all())
    out = buffers(1000)
    assert len(plan_budget(scores, alpha=0.5, count=500, minimum=0.1, seed=1, epoch=2, out=out).indices) == 730


def test_plan_epoch_is_this_plan():
    scores = lognormal(5000)
    cut = labels(5000, 4)
    for strata in (None, cut):
        plan = stprune.plan_epoch(scores, keep_ratio=0.3, epoch=2, seed=1, strata=strata)
        given_strata = None if strata is None else checked_strata("test", strata, 5000)
        kept = plan_budget(scores, alpha=0.5, count=1500, minimum=0.3 / 5.0, seed=1, epoch=2, strata=given_strata)
        assert torch.equal(plan.indices, kept.indices)
        assert torch.equal(plan.weights, kept.weights)
        assert plan.mean_weight == kept.mean_weight


def test_buffers_must_not_overlap():
    memory = torch.zeros(100, dtype=torch.int64)
    out = Buffers(memory[:50], memory.view(torch.float32)[98:148], torch.zeros(50, dtype=torch.int32))
    with pytest.raises(ValueError, match="plan_budget: out weights must not overlap"):
        plan_budget(torch.ones(50), alpha=0.5, count=5, minimum=0.1, seed=0, epoch=0, out=out)


@pytest.mark.skipif(not testing.isas(), reason="the compiled CPU library is not built")
def test_labels_out_of_range_are_refused():
    strata = checked_strata("test", labels(1000, 3), 1000)
    strata.labels[500] = 3
    with pytest.raises(RuntimeError, match="plan_budget: strata must lie in"):
        plan_budget(torch.ones(1000), alpha=0.0, count=1000, minimum=0.1, seed=0, epoch=0, strata=strata)


def test_nothing_there():
    kept = plan_budget(torch.ones(0), alpha=0.5, count=0, minimum=0.1, seed=0, epoch=0)
    assert (kept.indices.tolist(), kept.weights.tolist(), kept.mean_weight) == ([], [], 1.0)
