"""Each method against its published rule."""

import math

import numpy as np
import pytest
import torch

import stprune
from stprune.methods.greedy import TopK
from stprune.methods.seta import group_edges
from stprune.ops.budget import budget_probability


def scores(n=1000, seed=0):
    return torch.empty(n).log_normal_(generator=torch.Generator().manual_seed(seed))


def kept(method, s, *, keep_ratio=0.5, epoch=1, seed=0):
    return stprune.plan_epoch(s, method=method, keep_ratio=keep_ratio, epoch=epoch, seed=seed)


# --- budget rule (eq. 7) ---------------------------------------------------------------------------------------------


def test_budget_probabilities_are_clipped_sizes_that_sum_to_the_count():
    """What the rule promises beyond this, tests/test_budget.py tests."""
    size = scores(5000).sqrt()
    p = budget_probability(size, 1500, 0.06)
    assert float(p.double().sum()) == pytest.approx(1500, abs=0.005)
    assert (float(p.min()), float(p.max())) == (pytest.approx(0.06), 1.0)
    inside = (p > 0.0600001) & (p < 0.999999)
    ratio = p[inside] / size[inside]
    assert int(inside.sum()) > 1000
    assert float(ratio.max() / ratio.min()) == pytest.approx(1.0, abs=1e-5)
    for same in (torch.zeros(10), torch.ones(10), torch.full((10,), 1e-30)):
        assert torch.allclose(budget_probability(same, 4.0, 0.0), torch.full((10,), 0.4))
    p = budget_probability(torch.tensor([5.0, 0.0, 0.0, 1e-20]), 3.0, 0.1)
    assert torch.allclose(p, torch.tensor([1.0, 0.5, 0.5, 1.0]))
    p = budget_probability(torch.logspace(-30, 30, 1001, dtype=torch.float64), 300.0, 1e-4)
    assert float(p.double().sum()) == pytest.approx(300, abs=1e-3)


def test_st_prune_bounds_the_weights():
    plan = kept(stprune.METHODS["st-prune"](weight_cap=3.0), scores(10_000) ** 4, keep_ratio=0.2)
    assert len(plan) == 2000
    # w = 1/p <= cap / keep_ratio, and the mean weight is 1 / keep_ratio
    assert float(plan.weights.max()) <= 3.0 / 0.2 * (1 + 1e-6)


def test_st_prune_with_alpha_zero_is_soft_random():
    plan = kept(stprune.METHODS["st-prune"](alpha=0.0), scores(), keep_ratio=0.25)
    assert torch.allclose(plan.weights, torch.full((250,), 4.0))


# --- InfoBatch -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [10, 1000, 4999])
@pytest.mark.parametrize("ratio", [0.5, 0.3, 0.9])
def test_infobatch_equals_the_original_rule(n, ratio):
    """Threshold float32 mean, pool below it, head of a permutation kept, weights 1 / (1 - r)."""
    s = scores(n, seed=n)
    seed = 12
    # the original rule, in NumPy
    numbers = s.numpy()
    well_learned = np.flatnonzero(numbers < numbers.mean())
    rest = np.flatnonzero(numbers >= numbers.mean())
    order = np.random.RandomState(seed).permutation(len(well_learned))
    selected = well_learned[order[: int(ratio * len(well_learned))]]
    weights = np.ones(n)
    weights[selected] = 1 / ratio
    expected = np.sort(np.concatenate([selected, rest]))

    permutation = lambda size, seed, epoch: torch.from_numpy(np.random.RandomState(seed).permutation(size))
    plan = kept(stprune.METHODS["infobatch"](permutation=permutation), s, keep_ratio=ratio, seed=seed)
    assert np.array_equal(plan.indices.numpy(), expected)
    assert np.allclose(plan.weights.numpy(), weights[expected], rtol=1e-6)


def test_infobatch_of_equal_scores_prunes_nothing(threads):
    """A mean summed in float32 comes out above them."""
    for count in (1, 2):
        threads(count)
        for n in (999, 300_001):
            assert len(kept("infobatch", torch.full((n,), 0.1))) == n


# --- random walks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "ratio"), [(100, 0.25), (100, 0.3), (97, 0.4), (60_001, 0.25), (5, 0.9)])
def test_rs2_covers_everything_before_anything_returns(n, ratio):
    count = round(ratio * n)
    rounds = math.ceil(n / count)
    seen = torch.zeros(n, dtype=torch.int64)
    for epoch in range(rounds):
        plan = kept("rs2", torch.ones(n), keep_ratio=ratio, epoch=epoch)
        assert len(plan) == count
        if (epoch + 1) * count <= n:
            assert int(seen[plan.indices].sum()) == 0
        seen[plan.indices] += 1
    assert int(seen.min()) == 1


def test_soft_random_epochs_differ_and_weights_are_equal():
    a, b = kept("soft-random", scores(), epoch=1), kept("soft-random", scores(), epoch=2)
    assert not torch.equal(a.indices, b.indices)
    assert a.weights.unique().numel() == 1
    assert a.weights[0] / a.mean_weight == 1.0


# --- greedy ----------------------------------------------------------------------------------------------------------


def test_top_k_keeps_the_largest():
    s = scores()
    assert torch.equal(kept("top-k", s, keep_ratio=0.2).indices, s.topk(200).indices.sort().values)


def test_epsilon_greedy_keeps_the_top_and_draws_the_rest_evenly():
    s = scores()
    method = stprune.METHODS["epsilon-greedy"](epsilon=0.25)
    top = s.topk(300).indices
    hits = torch.zeros(1000)
    for epoch in range(300):
        plan = kept(method, s, keep_ratio=0.4, epoch=epoch)
        assert len(plan) == 400
        assert bool(torch.isin(top, plan.indices).all())
        hits[plan.indices] += 1
    others = torch.ones(1000, dtype=torch.bool)
    others[top] = False
    expected = 100 / 700 * 300
    chi2 = float(((hits[others] - expected) ** 2 / (expected * (1 - 100 / 700))).sum())
    assert chi2 < 700 + 5 * math.sqrt(2 * 700)


def test_ucb_prefers_the_uncertain():
    sampler = stprune.PruningSampler(3, num_epochs=9, method=stprune.METHODS["ucb"](bonus=10.0), keep_ratio=1 / 3)
    for values in ([1.0, 1.1, 1.0], [3.0, 1.1, 1.0], [1.0, 1.1, 1.0]):
        sampler.table.update(torch.arange(3), torch.tensor(values))
    sampler.set_epoch(1)
    assert sampler.plan.indices.tolist() == [0]


# --- SeTa ------------------------------------------------------------------------------------------------------------


def _plain_kmeans(values, groups):
    """Lloyd on the values themselves, from the same quantile start."""
    order = np.sort(values)
    cuts = np.linspace(0, len(values), groups + 1).astype(int)
    centres = np.array([order[a:b].mean() for a, b in zip(cuts[:-1], cuts[1:], strict=True)])
    for _ in range(100):
        label = np.abs(values[:, None] - centres[None]).argmin(1)
        moved = np.array([values[label == g].mean() for g in range(groups)])
        if np.allclose(moved, centres, rtol=0, atol=0):
            break
        centres = moved
    return label


def kmeans_1d(values, groups):
    """Labels of the values, by the groups that their edges say."""
    ordered = values.sort().values
    return torch.bucketize(values, ordered[group_edges(ordered, groups)[1:-1]], right=True)


def test_kmeans_equals_lloyd():
    values = scores(2000)
    assert np.array_equal(kmeans_1d(values, 6).numpy(), _plain_kmeans(values.double().numpy(), 6))


def test_kmeans_of_few_distinct_values():
    label = kmeans_1d(torch.tensor([1.0, 1.0, 5.0, 1.0]), 3)
    assert label[2] > label[0]
    assert label[0] == label[1] == label[3]


def test_seta_slides_from_easy_to_hard():
    s = scores(5000)
    label = kmeans_1d(s, 10)
    for epoch in range(8):
        start = epoch % 6  # 10 groups, window 5
        expected = ((label >= start) & (label < start + 5)).nonzero().squeeze(1)
        assert torch.equal(kept("seta", s, keep_ratio=0.5, epoch=epoch).indices, expected)


def test_a_method_that_works_in_one_op_cannot_be_subclassed_by_halves():
    """Its op would not call the functions that a subclass replaces."""
    for name in ("st-prune", "infobatch", "soft-random", "spaced"):
        with pytest.raises(TypeError, match="base class must be stprune.Method, got"):
            type("Own", (stprune.METHODS[name],), {"weights": lambda self, probability: probability})


# --- a user's own ----------------------------------------------------------------------------------------------------


class Half:
    """Two functions, no base class."""

    def inclusion(self, scores, *, keep_ratio, seed, epoch):
        return torch.full_like(scores, keep_ratio)

    def weights(self, probability):
        return torch.full_like(probability, 7.0)


def test_a_users_method_is_two_functions():
    plan = kept(Half(), scores(), keep_ratio=0.5)
    assert len(plan) == 500
    assert set(plan.weights.tolist()) == {7.0}
    sampler = stprune.PruningSampler(10, num_epochs=2, method=Half(), keep_ratio=0.5)
    sampler.update(torch.arange(10), torch.ones(10))
    sampler.set_epoch(1)
    assert len(sampler) == 10  # annealed


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (lambda s: s[:3] * 0 + 0.5, ValueError, "one probability for each of 10 samples"),
        (lambda s: s * 0 + 1.5, ValueError, r"probabilities in \[0, 1\]"),
        (lambda s: s * float("nan"), ValueError, r"probabilities in \[0, 1\]"),
        (lambda s: s > 0, TypeError, "inclusion must be float32"),
    ],
)
def test_a_users_method_is_checked(returned, error, message):
    class Wrong(stprune.Method):
        name = "wrong"

        def inclusion(self, scores, *, keep_ratio, seed, epoch):
            return returned(scores)

    with pytest.raises(error, match="method wrong: .*" + message):
        kept(Wrong(), torch.ones(10))


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("st-prune", {"alpha": -1.0}),
        ("st-prune", {"weight_cap": 0.5}),
        ("epsilon-greedy", {"epsilon": 1.5}),
        ("seta", {"window": 0.0}),
        ("seta", {"groups": 0}),
        ("ucb", {"bonus": float("nan")}),
        ("spaced", {"spacing": 1}),
    ],
)
def test_bad_settings(name, kwargs):
    with pytest.raises(ValueError, match="must"):
        stprune.METHODS[name](**kwargs)


@pytest.mark.parametrize("n", [1100, 1500, 2048, 4212, 9999, 70_001])
def test_infobatch_finds_the_head_of_pools_of_every_size(n):
    """The head of the order is found backwards; positions that do not exist must not be walked (they may never return)."""
    for seed in range(40):
        s = scores(n, seed)
        pool = (s < s.mean()).nonzero().squeeze(1)
        order = stprune.permute(pool.numel(), 0, pool.numel(), seed=seed, epoch=1)
        expected = pool[order[: int(0.5 * pool.numel())]]
        plan = kept("infobatch", s, seed=seed)
        assert torch.equal(plan.indices[plan.weights > 1], expected.sort().values)
        assert torch.equal(plan.indices[plan.weights == 1], (s >= s.mean()).nonzero().squeeze(1))


# --- spaced ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.02, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("spacing", [2, 24])
def test_spaced_keeps_the_hardest_and_spaces_the_others(ratio, spacing):
    n = 5000
    s = scores(n)
    plan = kept(stprune.METHODS["spaced"](spacing=spacing), s, keep_ratio=ratio)
    num_hard = max(0, round((round(ratio * n) * spacing - n) / (spacing - 1)))
    hard = torch.zeros(n, dtype=torch.bool)
    hard[s.topk(num_hard).indices] = True
    is_kept = torch.zeros(n, dtype=torch.bool)
    is_kept[plan.indices] = True
    assert bool(is_kept[hard].all())
    close = plan.indices.diff() < spacing
    assert bool((hard[plan.indices[:-1]] & hard[plan.indices[1:]])[close].all())
    assert num_hard <= len(plan) <= max(round(ratio * n), -(-n // spacing))
    assert torch.equal(plan.weights, torch.ones(len(plan)))


def test_spaced_is_not_carried_away_by_ties():
    plan = kept(stprune.METHODS["spaced"](spacing=10), torch.ones(1000), keep_ratio=0.19)
    # The first hundred are as hard as any, the other nine hundred are one easy stretch.
    assert torch.equal(plan.indices[:100], torch.arange(100))
    assert 100 + 88 <= len(plan) <= 190


def test_spaced_moves_with_the_epoch_and_keeps_what_is_unknown():
    s = scores(1000)
    s[500:700] = math.inf
    plans = [kept(stprune.METHODS["spaced"](), s, keep_ratio=0.1, epoch=epoch) for epoch in (1, 2)]
    assert not torch.equal(plans[0].indices, plans[1].indices)
    for plan in plans:
        assert set(range(500, 700)) <= set(plan.indices.tolist())


def test_a_subclass_may_weigh_what_its_base_does_not():
    """Of methods whose samples all weigh 1 the mean weight is not computed."""

    class Halves(TopK):
        def weights(self, probability):
            return torch.full_like(probability, 0.5)

    settings = {"keep_ratio": 0.5, "epoch": 1, "seed": 0}
    assert stprune.plan_epoch(torch.rand(50), method=Halves(), **settings).mean_weight == 0.5
    assert stprune.plan_epoch(torch.rand(50), method="top-k", **settings).mean_weight == 1.0
