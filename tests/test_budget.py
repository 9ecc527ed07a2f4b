"""inclusion_budget against the reference bit for bit, against a plain solver, and its error bound."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from stprune import testing
from stprune.ops.budget import budget_probability, inclusion_budget
from stprune.reference import budget as reference

DTYPES = (torch.float32, torch.float64)
LARGE = reference.SAMPLED + 12_345


def lognormal(n, seed=0, dtype=torch.float32):
    return torch.empty(n, dtype=dtype).log_normal_(generator=torch.Generator().manual_seed(seed))


def assert_reference(scores, alpha, count, minimum):
    p = inclusion_budget(scores, alpha=alpha, count=count, minimum=minimum)
    testing.assert_same(p, reference.inclusion_budget(scores, alpha, count, minimum))
    return p


def plain(scores, alpha, count, minimum):
    """Bisection in NumPy on all sizes, float64."""
    x = scores.double().numpy()
    known = np.isfinite(x)
    size = np.maximum(x[known], 0.0) ** alpha
    wanted = count - int((~known).sum())
    if wanted < minimum * size.size:
        wanted = math.ceil(minimum * size.size)
    low, high = 1e-40, 1e40
    for _ in range(75):
        middle = math.sqrt(low * high)
        if np.clip(size * middle, minimum, 1.0).sum() < wanted:
            low = middle
        else:
            high = middle
    p = np.ones(x.size)
    p[known] = np.clip(size * high, minimum, 1.0)
    return torch.from_numpy(p)


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.example(values=[0.0, 1.0, math.nan], alpha=0.5, ratio=2.044165674211621e-31, floor=1.0)
@hypothesis.given(
    values=st.lists(st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, math.nan, math.inf]), min_size=1, max_size=90),
    alpha=st.sampled_from([0.0, 0.5, 1.0]),
    ratio=st.floats(0.0, 1.0),
    floor=st.floats(0.0, 1.0),
)
def test_any_scores(values, alpha, ratio, floor):
    scores = torch.tensor(values, dtype=torch.float32)
    count = ratio * len(values)
    minimum = floor * ratio
    p = assert_reference(scores, alpha, count, minimum)
    known = torch.isfinite(scores)
    assert bool((p[~known] == 1).all())
    assert float(p.min()) >= np.float32(minimum)
    assert float(p.max()) <= 1.0
    num_known = int(known.sum())
    wanted = count - (len(values) - num_known)
    if wanted < minimum * num_known:
        wanted = math.ceil(minimum * num_known)
    assert abs(float(p[known].double().sum()) - wanted) <= 2.0**-24 * max(wanted, 1e-30) + 1e-44


@pytest.mark.parametrize("n", [1, 2, 77, 4097, 50_001, LARGE])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.7])
def test_sum_is_the_count_to_rounding(n, alpha):
    """The bound of the docstring: float32 rounding of each probability, and nothing else that one could see."""
    for seed, ratio in enumerate((0.03, 0.3, 0.5, 0.95)):
        count = max(1, round(ratio * n))
        scores = lognormal(n, seed)
        p = inclusion_budget(scores, alpha=alpha, count=count, minimum=0.2 * count / n)
        assert abs(float(p.double().sum()) - count) <= 2.0**-24 * count


@pytest.mark.parametrize("n", [50, 3001, LARGE])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.3])
def test_matches_a_plain_solver(n, alpha):
    scores = lognormal(n, 5)
    scores[::9] = math.inf
    scores[4::13] = -2.0
    if alpha == 0.0:
        scores = scores.abs()
    for ratio in (0.3, 0.6):
        count = round(ratio * n)
        p = inclusion_budget(scores, alpha=alpha, count=count, minimum=ratio / 5)
        torch.testing.assert_close(p.double(), plain(scores, alpha, count, ratio / 5), rtol=2e-7, atol=0.0)


def test_constant_itself_is_exact():
    """c from the probabilities of float64 sizes between the bounds: the clipped sum at c misses the count by rounding only."""
    for seed in range(5):
        scores = lognormal(LARGE, seed, torch.float64)
        count, minimum = 0.4 * LARGE // 1, 0.08
        scale, bound = reference.scale_of(scores, 0.5, count, minimum)
        assert bound == minimum
        total = math.fsum((scores.sqrt() * scale).clamp(minimum, 1.0).tolist())
        assert abs(total - count) <= 2.0**-43 * count


def crowded():
    """All sizes equal and all but certain: the bracket leaves every one of them open."""
    return torch.ones(LARGE), LARGE - 1.0, 0.5


def misled():
    """Whatever the sample sees is small, and everything else large."""
    scores = torch.full((LARGE,), 100.0) + lognormal(LARGE)
    place = reference.words(reference.SAMPLE, seed=0, epoch=0, stream=reference.STREAM) * (LARGE >> 8) >> 24
    scores[place] = lognormal(LARGE)[place]
    return scores, 0.3 * LARGE // 1, 0.0


@pytest.mark.parametrize("case", [crowded, misled])
def test_a_sample_that_does_not_help_changes_nothing(case, monkeypatch):
    scores, count, minimum = case()
    p = assert_reference(scores, 0.5, count, minimum)
    assert abs(float(p.double().sum()) - count) <= 2.0**-24 * count
    # Really the long way: as many candidates as scores, or a constant outside the bracket.
    looked_at = []
    clipped = reference.clipped
    monkeypatch.setattr(reference, "clipped", lambda size, *rest: looked_at.append(size.numel()) or clipped(size, *rest))
    reference.scale_of(scores, 0.5, count, minimum)
    assert LARGE in looked_at


def test_unknown_scores_are_certain_and_leave_the_rest():
    scores = lognormal(1000)
    scores[:100] = math.nan
    p = inclusion_budget(scores, alpha=0.5, count=400.0, minimum=0.05)
    assert bool((p[:100] == 1).all())
    assert float(p.double().sum()) == pytest.approx(400, rel=1e-7)
    # More unknown than asked for: the known keep their minimum, in whole samples.
    scores[:500] = math.nan
    p = inclusion_budget(scores, alpha=0.5, count=300.0, minimum=0.0501)
    assert float(p[500:].double().sum()) == pytest.approx(26, rel=1e-7)


def test_any_power_of_a_score_that_overflows_is_still_known():
    p = inclusion_budget(torch.tensor([1e30, 1.0, 2.0]), alpha=50.0, count=1.5, minimum=0.1)
    assert p[0] == 1
    assert float(p.double().sum()) == pytest.approx(1.5)


def test_empty():
    assert inclusion_budget(torch.empty(0), alpha=0.5, count=0, minimum=0.1).shape == (0,)
    assert budget_probability(torch.empty(0, dtype=torch.float64), 0, 0.0).dtype == torch.float32
