"""inverse_at, compact_strata, calibrate and scale_by_stratum: what they give and what they refuse."""

import pytest
import torch

import stprune
from stprune import testing
from stprune.ops.plan_weights import calibrate, compact_strata, inverse_at, scale_by_stratum


def case(n, num_strata, seed=0):
    generator = torch.Generator().manual_seed(seed)
    strata = torch.randint(0, max(1, num_strata), (n,), generator=generator)
    indices = (torch.rand(n, generator=generator) < 0.4).nonzero().flatten()
    weights = 1 / torch.rand(indices.numel(), generator=generator).clamp_min(0.05)
    return strata.to(torch.uint8), indices, weights, torch.bincount(strata)


def test_totals_are_the_sizes():
    strata, indices, weights, sizes = case(100_000, 7)
    calibrate(weights, indices, strata, sizes)
    torch.testing.assert_close(torch.bincount(strata[indices], weights=weights.double()), sizes.double(), rtol=1e-6, atol=0)


def test_nothing_kept_or_nothing_there():
    none = torch.empty(0, dtype=torch.int64)
    assert calibrate(torch.empty(0), none, torch.tensor([1, 1], dtype=torch.uint8), torch.tensor([0, 2])).tolist() == []
    assert calibrate(torch.empty(0), none, none.int(), torch.tensor([0])).tolist() == []
    assert [part.numel() for part in compact_strata(none)] == [0, 0]
    assert inverse_at(torch.ones(3), none).tolist() == []


@pytest.mark.parametrize("label", [-1, -(2**40), 2**31, 2**40 + 3])
def test_labels_that_do_not_fit_are_refused(label):
    strata = torch.zeros(20_000, dtype=torch.int64)
    strata[7] = label
    scores = torch.ones(20_000)
    with pytest.raises(ValueError, match="plan_epoch: strata must be labels (>= 0|below 2\\^31), got"):
        stprune.plan_epoch(scores, keep_ratio=0.5, epoch=0, seed=0, strata=strata)


@pytest.mark.parametrize("stratum", [-1, 3, 4, 2**30])
@pytest.mark.skipif(not testing.isas(), reason="the compiled CPU library is not built")
def test_labels_and_indices_out_of_range_are_refused(stratum):
    strata, indices, weights, sizes = case(40_000, 3)
    before = weights.clone()
    wrong = strata.int()
    wrong[indices[7]] = stratum
    with pytest.raises(RuntimeError, match="strata must lie in"):
        calibrate(weights, indices, wrong, sizes)
    for place, index in ((0, -1), (-1, 40_000)):
        bad = indices.clone()
        bad[place] = index
        with pytest.raises(RuntimeError, match="indices ascend"):
            calibrate(weights, bad, strata, sizes)
        with pytest.raises(RuntimeError, match="indices must lie in"):
            inverse_at(torch.ones(40_000), bad)
    members = strata[indices].int()
    members[7] = 3
    with pytest.raises(RuntimeError, match="members must lie in"):
        scale_by_stratum(weights, members, torch.ones(3, dtype=torch.float64))
    assert torch.equal(weights, before)


def test_a_methods_own_weights_are_not_overwritten():
    kept = {}

    class Own(stprune.Method):
        name = "own"
        unbiased = True

        def inclusion(self, scores, *, keep_ratio, seed, epoch):
            return torch.full_like(scores, keep_ratio)

        def weights(self, probability):
            kept["weights"] = probability.reciprocal()
            kept["before"] = kept["weights"].clone()
            return kept["weights"]

    scores = torch.empty(1000).log_normal_(generator=torch.Generator().manual_seed(0))
    strata = torch.arange(1000) % 4
    plan = stprune.plan_epoch(scores, method=Own(), keep_ratio=0.3, epoch=1, seed=0, strata=strata)
    assert not torch.equal(plan.weights, kept["before"])
    assert torch.equal(kept["weights"], kept["before"])


def test_probabilities_whose_rounding_adds_up_are_still_drawn_exactly():
    """Their float32 sum may miss the asked count by more than a draw takes; the count is kept all the same."""
    n = 1 << 21
    asked = round(0.9 * n)
    p = torch.full((n,), asked / n)
    p[:1000] = 1.0
    off = float(p.double().sum()) - asked
    p[1000:3000] -= (off - 0.55) / 2000
    assert 0.5 < float(p.double().sum()) - asked < 0.5 + asked * 2.0**-24

    class Rounded(stprune.Method):
        def inclusion(self, scores, *, keep_ratio, seed, epoch):
            return p

    plan = stprune.plan_epoch(torch.ones(n), method=Rounded(), keep_ratio=0.9, epoch=0, seed=0)
    assert len(plan) == asked
    assert torch.equal(plan.indices[:1000], torch.arange(1000))
