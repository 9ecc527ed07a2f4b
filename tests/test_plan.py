"""plan_epoch and EpochPlan: purity, order, shares, strata."""

import pytest
import torch

import stprune
from stprune.ops.strata import checked_strata
from stprune.quota import kept_by_quota
from stprune.reference.plan_weights import MIN_STRATUM, merged

METHODS = sorted(stprune.METHODS)


def scores(n=1000, seed=0):
    return torch.empty(n).log_normal_(generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", METHODS)
def test_ids_are_distinct_ascending_and_weights_aligned(method):
    plan = stprune.plan_epoch(scores(), method=method, keep_ratio=0.3, epoch=2, seed=5)
    assert plan.indices.dtype == torch.int64
    assert plan.weights.dtype == torch.float32
    assert plan.weights.shape == plan.indices.shape
    assert bool((plan.indices[1:] > plan.indices[:-1]).all())
    assert int(plan.indices[0]) >= 0
    assert int(plan.indices[-1]) < 1000


@pytest.mark.parametrize("method", METHODS)
def test_a_plan_is_a_pure_function(method, threads):
    s = scores()
    before = s.clone()
    plans = []
    for count in (1, 2, 3):
        threads(count)
        torch.manual_seed(count)
        plans.append(stprune.plan_epoch(s, method=method, keep_ratio=0.4, epoch=3, seed=9))
    for plan in plans[1:]:
        assert torch.equal(plan.indices, plans[0].indices)
        assert torch.equal(plan.weights, plans[0].weights)
    assert torch.equal(s, before)


@pytest.mark.parametrize("method", [m for m in METHODS if stprune.METHODS[m].exact_count and m != "full"])
@pytest.mark.parametrize("keep_ratio", [0.001, 0.1, 1 / 3, 0.5, 0.999])
def test_exact_count_methods_keep_exactly_what_is_asked(method, keep_ratio):
    n = 1000
    plan = stprune.plan_epoch(scores(n), method=method, keep_ratio=keep_ratio, epoch=1, seed=0)
    assert len(plan) == round(keep_ratio * n)


@pytest.mark.parametrize("method", METHODS)
def test_keep_ratio_one_is_everything_with_weight_one(method):
    plan = stprune.plan_epoch(scores(77), method=method, keep_ratio=1.0, epoch=1, seed=0)
    assert torch.equal(plan.indices, torch.arange(77))
    assert torch.equal(plan.weights, torch.ones(77))


@pytest.mark.parametrize("method", [m for m in METHODS if stprune.METHODS[m].needs_scores])
def test_unknown_nan_and_infinite_scores_are_kept_with_weight_one(method):
    s = scores(1000)
    odd = [3, 500, 999]
    s[odd] = torch.tensor([float("nan"), float("inf"), float("inf")])
    plan = stprune.plan_epoch(s, method=method, keep_ratio=0.25, epoch=1, seed=1)
    where = torch.isin(plan.indices, torch.tensor(odd))
    assert int(where.sum()) == 3
    assert torch.equal(plan.weights[where], torch.ones(3))


@pytest.mark.parametrize("method", [m for m in METHODS if stprune.METHODS[m].needs_scores])
def test_nothing_known_keeps_everything(method):
    plan = stprune.plan_epoch(torch.full((50,), float("inf")), method=method, keep_ratio=0.2, epoch=0, seed=0)
    assert len(plan) == 50


def test_the_order_is_a_shuffle_of_the_kept_ids_and_costs_any_stretch():
    plan = stprune.plan_epoch(scores(5000), method="st-prune", keep_ratio=0.5, epoch=1, seed=2)
    order = plan.order(0, len(plan))
    assert torch.equal(order.sort().values, plan.indices)
    assert not torch.equal(order, plan.indices)
    assert torch.equal(torch.cat([plan.order(0, 700), plan.order(700, len(plan))]), order)


def test_epochs_and_seeds_give_other_orders():
    make = lambda epoch, seed: stprune.plan_epoch(scores(), method="full", keep_ratio=1.0, epoch=epoch, seed=seed).order(
        0, 1000
    )
    assert not torch.equal(make(0, 0), make(1, 0))
    # keyed by the pair, not by the sum: epoch 1 of seed 0 is not epoch 0 of seed 1
    assert not torch.equal(make(1, 0), make(0, 1))


@pytest.mark.parametrize("num_replicas", [1, 2, 3, 7])
def test_shards_are_disjoint_equal_and_all_but_the_remainder(num_replicas):
    plan = stprune.plan_epoch(scores(1000), method="st-prune", keep_ratio=0.5, epoch=1, seed=2)
    shards = [plan.shard(rank, num_replicas) for rank in range(num_replicas)]
    assert {len(s) for s in shards} == {500 // num_replicas}
    union = torch.cat([s.indices for s in shards])
    assert union.unique().numel() == union.numel()
    for shard in shards:
        weight, known = plan.lookup(shard.indices)
        assert bool(known.all())
        assert torch.equal(weight, shard.weights)


def test_lookup_knows_what_is_not_in_the_plan():
    plan = stprune.plan_epoch(scores(100), method="top-k", keep_ratio=0.2, epoch=1, seed=2)
    weight, known = plan.lookup(torch.arange(-5, 200))
    assert torch.equal(torch.arange(-5, 200)[known], plan.indices)
    assert bool((weight[~known] == 0).all())


def test_every_stratum_keeps_its_share_of_the_weight():
    s = scores(3000)
    strata = (torch.arange(3000) // 500).clamp_max(4)
    plan = stprune.plan_epoch(s, method="st-prune", keep_ratio=0.3, epoch=1, seed=0, strata=strata)
    total = torch.bincount(strata[plan.indices], weights=plan.weights.double())
    assert torch.allclose(total, torch.bincount(strata).double(), rtol=1e-5)
    free = stprune.plan_epoch(s, method="st-prune", keep_ratio=0.3, epoch=1, seed=0)
    assert torch.equal(free.indices, plan.indices)
    assert not torch.equal(free.weights, plan.weights)


@pytest.mark.parametrize(
    ("kept", "groups"),
    [
        ([30, 30], [0, 1]),
        ([29, 1, 40], [0, 0, 1]),
        ([40, 5], [0, 0]),
        ([5, 5, 5], [0, 0, 0]),
        ([0, 40, 0, 0, 31, 2], [0, 0, 1, 1, 1, 1]),
    ],
)
def test_small_strata_merge_with_a_neighbour(kept, groups):
    assert MIN_STRATUM == 30
    assert merged(kept) == groups


def labelled(sizes):
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))


@pytest.mark.parametrize("method", ["st-prune", "soft-random", "top-k", "rs2", "epsilon-greedy"])
@pytest.mark.parametrize("sizes", [[100, 200, 700], [20, 980], [5, 5, 990], [3, 0, 997]])
def test_a_quota_keeps_so_many_of_every_stratum_out_of_the_same_total(method, sizes):
    strata = labelled(sizes)
    for epoch in range(5):
        plan = stprune.plan_epoch(
            scores(1000), method=method, keep_ratio=0.1, epoch=epoch, seed=3, strata=strata, min_per_stratum=30
        )
        kept = torch.bincount(strata[plan.indices], minlength=len(sizes))
        assert bool((kept >= torch.tensor(sizes).clamp_max(30)).all())
        assert len(plan) == 100


@pytest.mark.parametrize(
    ("sizes", "quota", "wanted"),
    [
        ([100, 200, 700], [40, 0, 12], [40, 13, 47]),  # equal scores: what the quota leaves is given in proportion
        ([100, 200, 700], torch.tensor([20, 30, 50]), [20, 30, 50]),
        ([100, 200, 700], (60, 60, 60), [60, 60, 60]),
        ([5, 0, 295, 0, 700], [8, 70, 25], [5, 0, 70, 0, 25]),  # labels without samples have no number
        ([100, 200, 700], [0, 0, 0], [10, 20, 70]),
    ],
)
def test_a_quota_of_each_stratum(sizes, quota, wanted):
    """In the order of the labels; numbers that add up to the asked total are exact counts."""
    strata = labelled(sizes)[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    for method in ("st-prune", "soft-random"):
        plan = stprune.plan_epoch(
            torch.ones(1000), method=method, keep_ratio=0.1, epoch=1, seed=3, strata=strata, min_per_stratum=quota
        )
        assert torch.bincount(strata[plan.indices], minlength=len(sizes)).tolist() == wanted


def test_a_run_counts_and_saves_a_quota_of_each_stratum(tmp_path):
    strata = labelled([20, 0, 80])
    run = lambda quota, **settings: stprune.PruningSampler(
        100,
        num_epochs=4,
        keep_ratio=0.1,
        method="soft-random",
        schedule="none",
        strata=strata,
        min_per_stratum=quota,
        **settings,
    )
    sampler = run(torch.tensor([15, 5]))
    assert len(sampler) == 20
    assert sampler.total_steps(10) == 8
    torch.save(sampler.state_dict(), tmp_path / "state.pt")
    run([15, 5]).load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    with pytest.raises(ValueError, match=r"min_per_stratum must be \[15, 6\] as in this sampler, got \[15, 5\]"):
        run([15, 6]).load_state_dict(sampler.state_dict())


def test_new_strata_come_with_a_new_quota_of_each():
    """A stream of episodes, each with a least number of its samples in the memory that is trained on."""
    sampler = stprune.PruningSampler(
        100, num_epochs=None, keep_ratio=0.1, method="soft-random", strata=labelled([100]), min_per_stratum=[10]
    )
    with pytest.raises(
        ValueError, match="PruningSampler.grow: min_per_stratum must have one number for each of 2 strata, got 1"
    ):
        sampler.grow(200, torch.ones(100, dtype=torch.int64))
    assert sampler.table.num_samples == 100
    for episode in range(1, 4):
        number = 100 * (episode + 1)
        new = torch.full((100,), episode)
        sampler.grow(number, new, min_per_stratum=[5] * episode + [10 + 5 * episode])
        sampler.set_epoch(episode)
        kept = torch.bincount(sampler.strata[sampler.plan.indices])
        assert kept.tolist() == [5] * episode + [10 + 5 * episode]
    assert sampler.min_per_stratum == [5, 5, 5, 25] == sampler.state_dict()["settings"]["min_per_stratum"]
    sampler.grow(400, min_per_stratum=10)
    assert sampler.min_per_stratum == 10


def test_a_quota_gives_small_strata_their_exact_share_of_the_weight():
    """Without one, strata of which fewer than 30 are kept share their weight with a neighbour."""
    sizes = [100, 200, 700]
    shares = lambda **quota: (
        torch.bincount(
            labelled(sizes)[(plan := stprune.plan_epoch(
                scores(1000), method="st-prune", keep_ratio=0.1, epoch=1, seed=0, strata=labelled(sizes), **quota
            )).indices],
            weights=plan.weights.double(),
        )
        / 1000
    )  # fmt: skip
    assert torch.allclose(shares(min_per_stratum=30), torch.tensor([0.1, 0.2, 0.7]).double(), atol=1e-6)
    merged_shares = shares()
    assert float(merged_shares[0]) != pytest.approx(0.1, abs=1e-3)
    assert float(merged_shares[:2].sum()) == pytest.approx(0.3, abs=1e-6)


def test_a_quota_leaves_the_weighted_sum_unbiased():
    sizes, epochs = [20, 80, 300], 3000
    strata, value = labelled(sizes), scores(400, seed=1).double()
    sums = []
    for epoch in range(epochs):
        indices, weights = kept_by_quota(
            scores(400),
            stprune.METHODS["st-prune"](),
            checked_strata("t", strata, 400),
            15,
            keep_ratio=0.2,
            seed=0,
            epoch=epoch,
        )
        sums.append(float((value[indices] * weights.double()).sum()))
    sums = torch.tensor(sums).double()
    assert abs(float(sums.mean() - value.sum())) <= 4 * float(sums.std()) / epochs**0.5


TWO = torch.tensor([0] * 4 + [7] * 6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"keep_ratio": 0.0}, ValueError, r"keep_ratio must lie in \(0, 1\], got 0"),
        ({"keep_ratio": 1.01}, ValueError, "keep_ratio must lie in"),
        ({"keep_ratio": float("nan")}, ValueError, "keep_ratio must lie in"),
        ({"keep_ratio": "half"}, TypeError, "keep_ratio must be a number"),
        ({"scores": torch.zeros(2, 2)}, ValueError, "scores must have one dimension"),
        ({"scores": torch.zeros(3, dtype=torch.int64)}, TypeError, "scores must be float32"),
        ({"epoch": -1}, ValueError, "epoch must lie in"),
        ({"epoch": 1.0}, TypeError, "epoch must be an integer"),
        ({"seed": 2**63}, ValueError, "seed must lie in"),
        ({"method": "infobach"}, ValueError, "plan_epoch: method must be one of .*infobatch.*got 'infobach'"),
        ({"method": object()}, TypeError, "plan_epoch: method must have the functions inclusion and weights"),
        ({"method": stprune.METHODS["infobatch"]}, TypeError, "plan_epoch: method must be an object, got the class InfoBatch"),
        ({"strata": torch.zeros(9)}, TypeError, "strata must be int64"),
        ({"strata": torch.zeros(9, dtype=torch.int64)}, ValueError, "one label for each of 10 samples, got 9"),
        ({"strata": torch.full((10,), -1)}, ValueError, "strata must be labels >= 0, got -1"),
        ({"min_per_stratum": 3}, ValueError, "min_per_stratum must be None without strata, got 3"),
        ({"min_per_stratum": 0, "strata": torch.zeros(10).long()}, ValueError, "min_per_stratum must be at least 1, got 0"),
        ({"min_per_stratum": 1, "strata": torch.zeros(10).long(), "method": "seta"}, ValueError, "an exact count, got 'seta'"),
        ({"min_per_stratum": [1, 1, 1], "strata": TWO}, ValueError, "must have one number for each of 2 strata, got 3"),
        ({"min_per_stratum": [1, -1], "strata": TWO}, ValueError, "min_per_stratum must be at least 0, got -1"),
        ({"min_per_stratum": [1, 0.5], "strata": TWO}, TypeError, "min_per_stratum must be an integer, got 0.5"),
        ({"min_per_stratum": torch.ones(2), "strata": TWO}, TypeError, "min_per_stratum must be int64, got torch.float32"),
        ({"min_per_stratum": "11", "strata": TWO}, TypeError, "min_per_stratum must be an integer, got '11'"),
        ({"min_per_stratum": [1, 1]}, ValueError, r"min_per_stratum must be None without strata, got \[1, 1\]"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"scores": torch.ones(10), "method": "st-prune", "keep_ratio": 0.5, "epoch": 0, "seed": 0} | change
    with pytest.raises(error, match=message):
        stprune.plan_epoch(arguments.pop("scores"), **arguments)


def test_empty_set():
    plan = stprune.plan_epoch(torch.ones(0), keep_ratio=0.5, epoch=0, seed=0)
    assert len(plan) == 0
    assert plan.order(0, 0).numel() == 0
