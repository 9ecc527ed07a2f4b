"""Families of a study: each rule against a few lines of its own."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

import stprune
from stprune.reference import draw_nodes as nodes_reference
from stprune.reference import plan_budget, stationarity
from stprune.study.families import FAMILIES, Family, graphs, groups, make, pruned
from stprune.study.graph import Edges
from stprune.study.problem import prepare
from stprune.study.series import Series
from stprune.study.spec import Spec

STEPS, NODES, DAY = 400, 10, 24
SEED = 5


def edges_of(rng, num_nodes):
    """A graph whose weights all differ: a ring, and some edges in one direction."""
    adjacency = np.zeros((num_nodes, num_nodes), np.float32)
    at = np.arange(num_nodes)
    adjacency[at, (at + 1) % num_nodes] = adjacency[(at + 1) % num_nodes, at] = 1 + rng.permutation(num_nodes) / 100
    some = rng.random((num_nodes, num_nodes)) < 0.2
    adjacency = np.where(some & (adjacency == 0), rng.random((num_nodes, num_nodes)) / 2, adjacency).astype(np.float32)
    np.fill_diagonal(adjacency, 9.0)
    return Edges.of(adjacency)


def series(values, day=DAY, edges=None):
    step = np.arange(len(values))
    names = tuple(map(str, range(values.shape[1])))
    tod = (step % day / day).astype(np.float32)
    return Series("tiny", values.astype(np.float32), tod, step // day % 7, day, "", names, edges)


def problem_of(values, **options):
    return prepare(series(values, **options), device=torch.device("cpu"))


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    wave = np.sin(2 * np.pi * np.arange(STEPS)[:, None] / DAY + rng.random(NODES) * 6)
    walk = rng.standard_normal((STEPS, 1)).cumsum(0) / 4
    return problem_of(wave * rng.uniform(1, 3, NODES) + walk + rng.standard_normal((STEPS, NODES)), edges=edges_of(rng, NODES))


@pytest.fixture(scope="module")
def gappy(problem):
    values = problem.values.clone()
    values[50:58, 3] = torch.nan
    return dataclasses.replace(problem, values=values, complete=False)


def spec_of(family, **settings):
    kind = FAMILIES[family]
    fitting = {"num_drawn": 4 if kind.kind in ("nodes", "both") else 0, "keep_ratio": 0.5 if kind.drops_windows else 1.0}
    usual = Spec("tiny", "stid", family, batch_size=16, learning_rate=1e-3, cost=6.0, seed=SEED)
    return dataclasses.replace(usual, **(fitting | settings))


def targets(problem, draw):
    """Targets of a draw and a prediction of known errors: a number of the pair."""
    _, y = problem.cut(problem.split.train, draw.index, draw.node)
    node = torch.arange(problem.num_nodes).expand(len(y), -1) if draw.node is None else draw.node
    error = 0.1 + (draw.index[:, None] * 37 + node * 11) % 23
    prediction = torch.where(y.isfinite(), y, 0.0) + error[:, None, :, None]
    return prediction[:, :, : draw.num_targets].requires_grad_(), y[:, :, : draw.num_targets], error[:, : draw.num_targets]


def trained(family, problem, epochs=3):
    """Of whole epochs: the draws, each trained on, the scores they were planned from, and the plans."""
    found, scores, plans = [], [], []
    for draw in family.draws():
        if family.sampler.epoch == len(found):
            found.append([])
            scores.append(family.sampler.table.scores.clone())
            plans.append(family.sampler.plan)
        if len(found) > epochs:
            return found[:-1], scores[:-1], plans[:-1]
        found[-1].append(draw)
        prediction, y, _ = targets(problem, draw)
        family.loss(prediction, y, draw).backward()


def first(family, problem, count):
    """So many draws, each trained on."""
    found = []
    for draw in itertools.islice(family.draws(), count):
        prediction, y, _ = targets(problem, draw)
        family.loss(prediction, y, draw).backward()
        found.append(draw)
    return found


def windows_of(draws):
    return torch.cat([draw.index for draw in draws])


def by_epoch(draws, num_windows):
    """Draws cut into epochs of all windows."""
    found, left = [[]], num_windows
    for draw in draws:
        found[-1].append(draw)
        left -= len(draw.index)
        if left == 0:
            found.append([])
            left = num_windows
    return [epoch for epoch in found if sum(len(draw.index) for draw in epoch) == num_windows]


def same(a, b):
    return all(
        torch.equal(x.index, y.index) and x.num_targets == y.num_targets and (x.node is y.node or torch.equal(x.node, y.node))
        for x, y in zip(a, b, strict=True)
    )


# --- all of them ---------------------------------------------------------------------------------------------------------


def test_the_names_are_those_of_the_study():
    assert list(FAMILIES) == [
        "full", "rs2", "soft-random", "infobatch", "seta", "st-prune", "st-prune-loss", "st-prune-spatial",
        "st-prune-unstratified", "st-prune-unweighted", "st-prune-cosine", "st-prune-constant", "even-windows",
        "nodes-uniform", "nodes-batch", "nodes-partition", "nodes-frequency", "nodes-stratified", "nodes-priority",
        "nodes-cluster", "nodes-roots", "nodes-growing", "pairs", "windows-and-nodes",
    ]  # fmt: skip
    for kind in FAMILIES.values():
        assert kind.label
        assert kind.kind in {"all", "windows", "nodes", "both"}
        assert isinstance(kind.source, str)
    assert len({kind.label for kind in FAMILIES.values()}) == len(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_draws_follow_from_the_seed_alone(problem, name):
    """Over epochs with scores, too; and no global random state is read."""
    runs = []
    for seed in (SEED, SEED, SEED + 1):
        torch.rand(1), np.random.rand(1)
        runs.append(first(make(spec_of(name, seed=seed), problem), problem, 60))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


@pytest.mark.parametrize("name", FAMILIES)
def test_draws_are_windows_and_distinct_nodes(problem, name):
    spec = spec_of(name)
    for draw in first(make(spec, problem), problem, 60):
        assert draw.index.dtype == torch.int64
        assert 0 <= draw.index.min() <= draw.index.max() < len(problem.split.train)
        if name != "pairs":
            assert 0 < len(draw.index) <= 16
            assert len(draw.index.unique()) == len(draw.index)
        assert (draw.node is None) == (FAMILIES[name].kind in ("all", "windows"))
        if draw.node is not None:
            assert draw.node.dtype == torch.int64
            assert 0 <= draw.node.min() <= draw.node.max() < NODES
            assert draw.node.is_contiguous()
            assert (draw.node.sort(1).values.diff() > 0).all()
        assert (draw.num_targets is None) == (name != "nodes-roots")


@pytest.mark.parametrize("name", FAMILIES)
def test_missing_targets_enter_no_loss(gappy, name):
    family = make(spec_of(name), gappy)
    for draw in itertools.islice(family.draws(), 20):
        prediction, y, _ = targets(gappy, draw)
        loss = family.loss(prediction, y, draw)
        loss.backward()
        assert loss.isfinite()
        assert prediction.grad is None or not prediction.grad[y.isnan()].any()


EVERY_WINDOW = [
    name
    for name, kind in FAMILIES.items()
    if not kind.drops_windows and name not in ("pairs", "nodes-partition")  # which have tests of their own
]


@pytest.mark.parametrize("name", EVERY_WINDOW)
def test_every_window_comes_once_an_epoch_in_batches_of_one_size(problem, name):
    epochs = by_epoch(first(make(spec_of(name), problem), problem, 56), 217)
    assert len(epochs) == 4
    for epoch in epochs:
        assert windows_of(epoch).sort().values.equal(torch.arange(217))
        assert [len(draw.index) for draw in epoch] == [16] * 13 + [9]
    assert not windows_of(epochs[0]).equal(windows_of(epochs[1]))


PLAIN = [name for name, kind in FAMILIES.items() if not issubclass(kind, pruned.Pruned) or not kind.weighs]


def test_these_families_have_the_plain_loss():
    assert PLAIN == [
        "full", "even-windows", "nodes-uniform", "nodes-batch", "nodes-partition", "nodes-frequency", "nodes-cluster",
        "nodes-roots", "nodes-growing", "pairs",
    ]  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_the_plain_loss_is_the_mean_absolute_error_of_the_targets(problem, name):
    family = make(spec_of(name), problem)
    for draw in itertools.islice(family.draws(), 20):
        prediction, y, error = targets(problem, draw)
        torch.testing.assert_close(family.loss(prediction, y, draw), error.float().mean())


# --- windows -------------------------------------------------------------------------------------------------------------


def test_rs2_shows_every_window_before_any_returns(problem):
    epochs, _, _ = trained(make(spec_of("rs2", keep_ratio=0.25, cost=20.0), problem), problem, 8)
    order = torch.cat([windows_of(epoch).sort().values for epoch in epochs])
    assert [sum(len(draw.index) for draw in epoch) for epoch in epochs] == [54] * 8
    assert len(windows_of(epochs[0] + epochs[1] + epochs[2] + epochs[3]).unique()) == 216
    assert order.bincount().max() == 2  # 432 = 2 x 217 - 2


def test_soft_random_keeps_a_fresh_subset(problem):
    epochs, _, _ = trained(make(spec_of("soft-random"), problem), problem, 3)
    kept = [windows_of(epoch).sort().values for epoch in epochs]
    assert all(len(ids) == len(ids.unique()) == round(0.5 * 217) for ids in kept)
    shared = [len(np.intersect1d(a, b)) for a, b in itertools.combinations(kept, 2)]
    assert max(shared) < 75  # 54 expected, 3.6 standard deviations below


def test_infobatch_keeps_all_above_the_mean_and_its_share_of_the_rest(problem):
    family = make(spec_of("infobatch"), problem)
    epochs, scores, plans = trained(family, problem, 3)
    assert len(windows_of(epochs[0])) == 217
    for epoch, score, plan in zip(epochs[1:], scores[1:], plans[1:], strict=True):
        kept, below = windows_of(epoch), score < score.double().mean().float()
        assert not (set((~below).nonzero().flatten().tolist()) - set(kept.tolist()))
        assert int(below[kept].sum()) == int(0.5 * int(below.sum()))
        assert plan.weights.equal(torch.where(below[plan.indices], 2.0, 1.0))
    assert family.criterion.rescale == "epoch_sum"


def test_seta_keeps_a_stretch_of_the_scores_of_a_random_part(problem):
    epochs, scores, _ = trained(make(spec_of("seta", keep_ratio=0.4), problem), problem, 4)
    assert len(windows_of(epochs[0])) == 217
    means = []
    for number, (epoch, score) in enumerate(zip(epochs[1:], scores[1:], strict=True), start=1):
        plan = stprune.plan_epoch(score, method="seta", keep_ratio=0.4, seed=SEED, epoch=number)
        assert windows_of(epoch).sort().values.equal(plan.indices)
        means.append(float(score[plan.indices].mean()))
    assert means == sorted(means)  # easy to hard


@pytest.mark.parametrize("name", ["st-prune", "windows-and-nodes"])
def test_st_prune_keeps_what_the_reference_does(problem, name):
    """Plan, weights and strata by drift, from the same scores; the scores are those of eq. 4 with both spreads."""
    family = make(spec_of(name), problem)
    drift = stationarity.stationarity(problem.values[: problem.split.train.stop], history=12, horizon=12)
    rank = drift.argsort().argsort()
    label = torch.searchsorted(torch.tensor([j * 217 // 8 for j in range(1, 8)]), rank, right=True).to(torch.uint8)
    assert family.sampler.strata.equal(label.long())
    for number, draws, score, plan in zip(range(4), *trained(family, problem, 4), strict=True):
        kept, weights, _ = plan_budget.plan_budget(score, 0.5, 108, 0.5 / 5, label, label.bincount(), SEED, number)
        assert windows_of(draws).sort().values.equal(kept)
        assert plan.weights.equal(weights)
        assert len(kept) == (108 if number else 217)
    assert (family.criterion.spatial, family.criterion.temporal, family.criterion.rescale) == (0.5, 0.5, "per_step")


@pytest.mark.parametrize(
    ("name", "spatial", "temporal", "stratified"),
    [
        ("st-prune-loss", 0.0, 0.0, True), ("st-prune-spatial", 0.5, 0.0, True), ("st-prune-unstratified", 0.5, 0.5, False),
        ("st-prune-unweighted", 0.5, 0.5, False), ("st-prune-cosine", 0.5, 0.5, True), ("st-prune-constant", 0.5, 0.5, True),
    ],
)  # fmt: skip
def test_the_ablations_differ_from_st_prune_in_one_thing(problem, name, spatial, temporal, stratified):
    family = make(spec_of(name), problem)
    assert (family.criterion.spatial, family.criterion.temporal) == (spatial, temporal)
    assert (family.sampler.strata is not None) == stratified
    for number, draw in enumerate(itertools.islice(family.draws(), 60)):
        prediction, y, error = targets(problem, draw)
        loss = family.loss(prediction, y, draw)
        if name == "st-prune-unweighted":
            torch.testing.assert_close(loss, error.float().mean())
        if number < 10:  # the first epoch, which is full: the errors of a pair are the same at every step
            score = error.float().mean(1) + spatial * error.float().std(1, correction=0)
            torch.testing.assert_close(family.sampler.table.scores[draw.index], score)


def test_the_schedules_of_the_ablations(problem):
    ratios = {}
    for name in ("st-prune", "st-prune-cosine", "st-prune-constant"):
        sampler = make(spec_of(name, cost=9.5), problem).sampler
        ratios[name] = [round(sampler.keep_ratio_at(epoch), 3) for epoch in range(1, 18)]
    first = ratios["st-prune"].index(1.0)
    assert ratios["st-prune"] == [0.5] * first + [1.0] * (17 - first)
    assert ratios["st-prune-constant"] == [0.5] * 17
    rising = ratios["st-prune-cosine"]
    assert rising[:first] == [0.5] * first
    assert rising[first:] == sorted(rising[first:])
    assert 0.5 <= rising[first] < 1.0
    assert rising[-1] == 1.0


@pytest.mark.parametrize("name", ["rs2", "soft-random", "infobatch", "seta"])
def test_other_methods_have_no_strata_and_rank_by_the_plain_loss(problem, name):
    family = make(spec_of(name), problem)
    assert family.sampler.strata is None
    assert family.criterion.spatial == family.criterion.temporal == 0.0


@pytest.mark.parametrize("name", ["rs2", "soft-random", "st-prune", "windows-and-nodes"])
@pytest.mark.parametrize("cost", [0.3, 1.0, 2.5, 4.0])
def test_the_run_has_the_fewest_epochs_that_reach_the_budget(problem, name, cost):
    """By counting: the epochs of the sampler as a user makes it, for one epoch more until the pairs are enough."""
    spec = spec_of(name, cost=cost)
    epochs = pruned.num_epochs(spec, problem, FAMILIES[name].method)

    def pairs(num_epochs):
        sampler = stprune.PruningSampler(217, num_epochs=num_epochs, keep_ratio=0.5, method=FAMILIES[name].method, seed=SEED)
        total = 0
        for epoch in range(num_epochs):
            sampler.set_epoch(epoch)
            ids = torch.tensor(list(sampler))
            sampler.update(ids, 1.0 + ids)
            total += len(ids) * (spec.num_drawn or NODES)
        return total

    rounding = 2 * epochs * (spec.num_drawn or NODES)  # 0.5 x 217 windows are not whole
    assert pairs(epochs) >= cost * problem.pairs - rounding
    assert epochs == 1 or pairs(epochs - 1) < cost * problem.pairs + rounding


def test_expected_epochs_of_methods_whose_length_depends_on_scores(problem):
    for name, kept in (("infobatch", 0.7), ("seta", 0.5)):
        epochs = pruned.num_epochs(spec_of(name, cost=10.0), problem, name)
        spent = [1 + kept * (math.floor(0.875 * e) - 1) + e - math.floor(0.875 * e) for e in (epochs - 1, epochs)]
        assert spent[0] < 10.0 <= spent[1]


def test_behind_the_expected_end_all_windows_are_trained_on(problem):
    spec = spec_of("st-prune", cost=2.5)
    epochs = pruned.num_epochs(spec, problem, "st-prune")
    family = make(spec, problem)
    counts = [len(windows_of(draws)) for draws in trained(family, problem, epochs + 3)[0]]
    last = math.floor(0.875 * epochs)
    assert counts == [217] + [108] * (last - 1) + [217] * (epochs + 3 - last)


def test_the_sampler_is_that_of_a_user_who_knows_the_number_of_epochs(problem):
    spec = spec_of("windows-and-nodes", cost=1.5)
    family = make(spec, problem)
    epochs = pruned.num_epochs(spec, problem, "st-prune")
    found, _, _ = trained(family, problem, epochs)
    sampler = stprune.PruningSampler(
        217, num_epochs=epochs, keep_ratio=0.5, seed=SEED, strata=family.sampler.strata, num_nodes=NODES, node_ratio=0.4
    )
    criterion = stprune.PrunedLoss(sampler)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for ids, draw in zip(sampler.batches(16), found[epoch], strict=True):
            index = torch.from_numpy(ids)
            assert index.equal(draw.index)
            assert sampler.nodes(index).equal(draw.node)
            prediction, y, _ = targets(problem, draw)
            criterion(prediction, y, index, draw.node)


@pytest.mark.parametrize("batch", [7, 16, 31, 217, 300])
def test_evenly_spread_batches(problem, batch):
    """One window of each stretch; their places in the stretch, in the order of the hour, are evenly spaced."""
    epochs = by_epoch(first(make(spec_of("even-windows", batch_size=batch), problem), problem, 2 * -(-217 // batch)), 217)
    assert len(epochs) == 2
    size = min(batch, 217)
    stretch = torch.searchsorted(torch.tensor([217 * k // size for k in range(1, size)]), torch.arange(217), right=True)
    hour = (torch.arange(217) + 12) % DAY
    for draw in epochs[0] + epochs[1]:
        assert len(stretch[draw.index].unique()) == len(draw.index)
        if len(draw.index) < size:
            continue
        place = []
        for window in draw.index.tolist():
            mates = (stretch == stretch[window]).nonzero().flatten().tolist()
            order = sorted(mates, key=lambda other: (int(hour[other]), other))
            place.append(order.index(window) / len(mates))
        place = np.sort(place)
        gaps = np.diff(np.append(place, place[0] + 1))
        longest = -(-217 // size)
        assert gaps.max() <= 1 / size + 2 / (longest - 1 or 1)
    assert batch >= 217 or not any(
        set(a.index.tolist()) == set(b.index.tolist()) for a in epochs[0] for b in epochs[1] if len(a.index) == size
    )


def test_evenly_spread_batches_hold_all_hours_alike(problem):
    """Stretches of 31 windows hold each hour: 7 of them give hours that are spread as far as 7 points on a day can be."""
    epochs = by_epoch(first(make(spec_of("even-windows", batch_size=7), problem), problem, 31), 217)
    rng = np.random.default_rng(0)

    def pull(index):  # length of the mean direction: 0 for hours that are evenly spread over the day
        return abs(np.exp(2j * np.pi * ((np.asarray(index) + 12) % DAY) / DAY).mean())

    of_first = [int(draw.index[draw.index < 31]) for draw in epochs[0]]  # the stretch's windows in the order of their batches
    order = sorted(range(31), key=lambda window: ((window + 12) % DAY, window))
    steps = np.diff([order.index(window) for window in of_first]) % 31
    assert len(set(steps.tolist())) > 10  # batches that follow each other are not neighbours in the hour
    spread = np.mean([pull(draw.index) for draw in epochs[0]])
    chance = np.mean([pull(rng.permutation(217)[:7]) for _ in range(300)])
    assert spread < chance / 2


# --- nodes ---------------------------------------------------------------------------------------------------------------


def test_exactly_so_many_nodes_are_drawn():
    for num_nodes in [*range(2, 130), 675, 900, 1617, 8600]:
        for count in {*range(1, min(num_nodes, 130)), num_nodes // 3 or 1, num_nodes - 1}:
            assert max(1, math.ceil(round(count / num_nodes * num_nodes, 9))) == count


@pytest.mark.parametrize("count", range(1, NODES))
def test_the_sampler_draws_exactly_so_many_nodes(problem, count):
    assert next(make(spec_of("nodes-uniform", num_drawn=count), problem).draws()).node.shape == (16, count)


@pytest.mark.parametrize("name", ["nodes-uniform", "windows-and-nodes"])
def test_uniform_nodes_are_those_of_the_reference(problem, name):
    for epoch, draws in enumerate(trained(make(spec_of(name), problem), problem, 3)[0]):
        for draw in draws:
            assert draw.node.equal(nodes_reference.draw_nodes(draw.index, NODES, 4, SEED, epoch))
    assert len({tuple(row) for row in draws[0].node.tolist()}) > 5  # a set of its own for each window


def test_one_set_a_batch_is_drawn_from_all_nodes(problem):
    draws = first(make(spec_of("nodes-batch"), problem), problem, 200)
    assert all((draw.node == draw.node[0]).all() for draw in draws)
    sets = [tuple(draw.node[0].tolist()) for draw in draws]
    assert len(set(sets)) > 100  # of 210
    count = np.bincount(np.concatenate(sets), minlength=NODES)
    assert abs(count - 80).max() < 4 * math.sqrt(200 * 0.4 * 0.6)


@pytest.mark.parametrize(("num_drawn", "sizes"), [(4, [5, 5]), (3, [4, 3, 3]), (9, [5, 5]), (1, [1] * NODES)])
def test_a_partition_has_a_step_for_each_group(problem, num_drawn, sizes):
    draws = first(make(spec_of("nodes-partition", num_drawn=num_drawn), problem), problem, 14 * len(sizes))
    batches = [draws[at : at + len(sizes)] for at in range(0, len(draws), len(sizes))]
    for batch in batches:
        assert all(draw.index.equal(batch[0].index) for draw in batch)
        assert all((draw.node == draw.node[0]).all() for draw in batch)
        assert [draw.node.shape[1] for draw in batch] == sizes
        assert torch.cat([draw.node[0] for draw in batch]).sort().values.equal(torch.arange(NODES))
    assert windows_of([batch[0] for batch in batches]).sort().values.equal(torch.arange(217))
    if num_drawn > 1:
        assert len({tuple(batch[0].node[0].tolist()) for batch in batches}) > 5


def test_nodes_by_error_are_those_of_the_reference(problem):
    """Chances from the pairs' errors of earlier epochs, in bfloat16, with a floor of a quarter; the loss is weighted."""
    family = make(spec_of("nodes-priority"), problem)
    known = torch.full((217, NODES), torch.inf)
    later = known.clone()
    number = -1
    for draw in itertools.islice(family.draws(), 42):
        if family.sampler.epoch != number:
            number, known = number + 1, later.clone()
        rows = known[draw.index]
        seen = rows.isfinite()
        mean = torch.where(seen, rows, 0).sum(1, keepdim=True) / seen.sum(1, keepdim=True).clamp_min(1)
        chances = 0.25 + 0.75 * torch.where(seen, rows / mean, 1.0)
        node, weight = nodes_reference.draw_nodes_weighted(chances, draw.index, 4, SEED, number)
        assert draw.node.equal(node)
        weight = weight * 0.4 if number else torch.ones(node.shape)
        prediction, y, error = targets(problem, draw)
        loss = family.loss(prediction, y, draw)
        torch.testing.assert_close(loss, (error * weight).mean())
        later[draw.index[:, None], node] = error.float().bfloat16().float()
    assert number == 2


def test_a_draw_keeps_its_weights_behind_a_later_one(problem):
    family = make(spec_of("nodes-priority"), problem)
    draws = family.draws()
    for draw in itertools.islice(draws, 14):
        prediction, y, _ = targets(problem, draw)
        family.loss(prediction, y, draw)
    for draw in [next(draws), next(draws)]:
        prediction, y, error = targets(problem, draw)
        weight = family.sampler.node_weights(draw.index, draw.node)
        assert not (weight == 1).all()
        torch.testing.assert_close(family.loss(prediction, y, draw), (error * weight).mean())


def test_few_nodes_early_and_more_late(problem):
    """Stages by the share of the budget, and as many steps as the mean number of nodes throughout would take."""
    spec = spec_of("nodes-growing", cost=8.0)
    budget, pairs, counts = 8.0 * problem.pairs, 0, []
    for step, draw in enumerate(make(spec, problem).draws()):
        if pairs >= budget:
            break
        share = pairs / budget
        expected = 2 if share < 0.25 else 4 if share < 0.5 else 8
        assert draw.node.equal(nodes_reference.draw_nodes(draw.index, NODES, expected, SEED, step // 14))
        pairs += draw.node.numel()
        counts.append(expected)
    assert len(counts) == pytest.approx(budget / (217 / 14 * 4), rel=0.02)
    assert np.mean(counts) == pytest.approx(4, rel=0.02)


# --- groups --------------------------------------------------------------------------------------------------------------


def waves(kinds, noise=0.05, days=17, day=DAY):
    """Nodes that are sums of (frequency a day, amplitude, phase)."""
    rng = np.random.default_rng(3)
    time = 2 * np.pi * np.arange(days * day)[:, None] / day
    columns = [sum(size * np.cos(f * time + phase) for f, size, phase in kind) for kind in kinds]
    return np.concatenate(columns, 1) + noise * rng.standard_normal((days * day, len(kinds)))


def test_groups_of_dominant_frequencies():
    one = [(1, 4, 0.3), (2, 2, 1.0), (3, 1, 2.0)]
    other = [(2, 4, 0.1), (1, 2, 0.7), (3, 1, 0.4)]  # the same frequencies, ranked otherwise
    third = [(5, 4, 0.2), (1, 2, 0.9), (4, 1, 0.6)]
    kinds = [one, other, one, third, other, one, one, third, one, one]
    values = waves(kinds)
    problem = problem_of(values)
    found = groups.frequency_groups(problem)
    stop = problem.split.train.stop
    expected = {}
    for node in range(10):
        days = values[: stop // DAY * DAY, node].astype(np.float32).reshape(-1, DAY)
        amplitude = abs(np.fft.rfft(days, axis=1)).mean(0)
        amplitude[0] = 0
        key = tuple(np.argsort(-amplitude)[:3].tolist())
        expected.setdefault(key, []).append(node)
    mine = {}
    for node, label in enumerate(found.tolist()):
        mine.setdefault(label, []).append(node)
    assert sorted(mine.values()) == sorted(expected.values()) == [[0, 2, 5, 6, 8, 9], [1, 4], [3, 7]]
    # 5 of 10 nodes: 3, 1 and 1 of the groups of 6, 2 and 2; each window its own.
    draws = first(make(spec_of("nodes-frequency", num_drawn=5), problem), problem, 10)
    for draw in draws:
        assert (torch.isin(draw.node, torch.tensor([0, 2, 5, 6, 8, 9])).sum(1) == 3).all()
        assert (torch.isin(draw.node, torch.tensor([1, 4])).sum(1) == 1).all()
    assert len({tuple(row) for row in draws[0].node.tolist()}) > 5


def test_frequencies_do_not_look_beyond_the_training_part():
    values = waves([[(1, 4, 0.3), (2, 2, 1.0), (3, 1, 2.0)], [(2, 4, 0.1), (1, 2, 0.7), (3, 1, 0.4)]] * 5)
    stop = int(0.6 * len(values))
    changed = values.copy()
    changed[stop:, ::2] = changed[stop:, 1::2] * 100
    a, b = problem_of(values), problem_of(changed)
    assert groups.frequency_groups(a).equal(groups.frequency_groups(b))
    np.testing.assert_array_equal(groups.daily_profiles(a), groups.daily_profiles(b))


def test_the_rarest_groups_make_one():
    label = torch.tensor([0] * 5 + [1] * 2 + [2] * 4 + [3] * 3 + [4] * 1)
    assert groups.merge_rare(label, 5).unique().numel() == 5
    merged = groups.merge_rare(label, 3).tolist()
    assert [len(set(merged[a:b])) for a, b in ((0, 5), (5, 7), (7, 11), (11, 14), (14, 15))] == [1] * 5
    assert merged[5] == merged[11] == merged[14]
    assert len({merged[0], merged[7], merged[14]}) == 3


def test_clusters_of_daily_profiles_get_their_shares_and_weights():
    """Three shapes of a day, whatever level and size; counts by size of the cluster; the loss is weighted by them."""
    morning, evening, twice = [(1, 1, 0.0)], [(1, 1, 2.5)], [(2, 1, 0.0)]
    kinds = [morning] * 6 + [evening] * 3 + [twice]
    values = waves(kinds, noise=0.02) * np.linspace(1, 50, 10) + np.arange(10) * 100
    problem = problem_of(values)
    profile = groups.daily_profiles(problem)
    stop = problem.split.train.stop
    by_hand = np.stack([values[:stop][np.arange(stop) % DAY == hour].mean(0) for hour in range(DAY)], 1)
    by_hand = (by_hand - by_hand.mean(1, keepdims=True)) / by_hand.std(1, keepdims=True)
    np.testing.assert_allclose(profile, by_hand, atol=1e-3)
    label = groups.kmeans(profile, 3, np.random.default_rng(0))
    assert [len(set(label[a:b])) for a, b in ((0, 6), (6, 9), (9, 10))] == [1, 1, 1]
    assert len(set(label)) == 3
    family = make(spec_of("nodes-stratified", num_drawn=3), problem)
    draw = next(family.draws())
    assert [int(torch.isin(draw.node, torch.arange(a, b)).sum()) for a, b in ((0, 6), (6, 9), (9, 10))] == [16, 16, 16]
    weight = torch.tensor([6.0] * 6 + [3.0] * 3 + [1.0])[draw.node] * 3 / 10
    prediction, y, error = targets(problem, draw)
    torch.testing.assert_close(family.loss(prediction, y, draw), (error * weight).mean(), rtol=1e-5, atol=0)


def test_kmeans_ends_where_every_point_is_nearest_to_its_own_mean():
    rng = np.random.default_rng(2)
    points = rng.standard_normal((300, 5))
    label = groups.kmeans(points, 8, np.random.default_rng(0))
    assert sorted(set(label)) == list(range(8))
    means = np.stack([points[label == k].mean(0) for k in range(8)])
    assert (np.linalg.norm(points[:, None] - means, axis=2).argmin(1) == label).all()
    assert len(set(groups.kmeans(np.ones((5, 2)), 3, np.random.default_rng(0)))) == 1


def test_nodes_without_a_day_make_no_trouble(gappy):
    """A constant node and one that is missing throughout the training part."""
    values = gappy.values.clone()
    values[:, 0], values[: gappy.split.train.stop, 1] = 3.0, torch.nan
    problem = dataclasses.replace(gappy, values=values)
    profile = groups.daily_profiles(problem)
    assert np.isfinite(profile).all()
    assert not profile[:2].any()
    for name in ("nodes-stratified", "nodes-frequency"):
        assert next(make(spec_of(name), problem).draws()).node.shape == (16, 4)


# --- graphs --------------------------------------------------------------------------------------------------------------


def dense(problem):
    adjacency = problem.adjacency.numpy()
    both = np.maximum(adjacency, adjacency.T)
    np.fill_diagonal(both, 0)
    return both


def test_clusters_are_stretches_of_neighbours():
    """On a ring of nodes in a hidden order a draw is a stretch of that ring, from any start."""
    rng = np.random.default_rng(4)
    order = rng.permutation(NODES)
    place = np.argsort(order)
    ring = np.zeros((NODES, NODES), np.float32)
    ring[order, np.roll(order, 1)] = ring[np.roll(order, 1), order] = 1.0
    problem = problem_of(rng.standard_normal((STEPS, NODES)), edges=Edges.of(ring))
    starts = set()
    for draw in first(make(spec_of("nodes-cluster"), problem), problem, 14):
        for row in draw.node.tolist():
            inside = np.zeros(NODES, bool)
            inside[place[row]] = True
            assert (inside & ~np.roll(inside, 1)).sum() <= 2  # the walk around the ring has two ends
            starts.add(tuple(row))
    assert len(starts) == NODES


@pytest.mark.parametrize("num_drawn", [2, 4, 8, 9])
def test_roots_bring_their_strongest_neighbours(problem, num_drawn):
    num_roots = {2: 1, 4: 1, 8: 2, 9: 2}[num_drawn]
    weight = dense(problem)
    ranked = [[other for other in np.argsort(-weight[node], kind="stable") if weight[node, other] > 0] for node in range(NODES)]
    turns = set()
    for step, draw in enumerate(first(make(spec_of("nodes-roots", num_drawn=num_drawn), problem), problem, 28)):
        assert draw.num_targets == num_roots
        assert draw.node.shape[1] == num_drawn
        expected = nodes_reference.draw_nodes(draw.index, NODES, num_roots, SEED, step // 14)
        assert draw.node[:, :num_roots].sort(1).values.equal(expected)
        for row in draw.node.tolist():
            roots, others = row[:num_roots], row[num_roots:]
            named = []
            for rank in range(NODES - 1):
                for root in roots:
                    named += ranked[root][rank : rank + 1]
            named = [int(node) for node in dict.fromkeys(named) if node not in roots]
            count = min(len(others), len(named))
            assert set(others[:count]) == set(named[:count])
            assert not set(others[count:]) & (set(named) | set(roots))
        turns.add(bool((draw.node[:, 0] < draw.node[:, num_roots - 1]).all()))
    assert num_roots == 1 or turns == {False, True}


def test_roots_without_neighbours_take_others_at_random():
    rng = np.random.default_rng(4)
    edges = Edges.of(np.diag(np.ones(NODES, np.float32)))
    problem = problem_of(rng.standard_normal((STEPS, NODES)), edges=edges)
    draws = first(make(spec_of("nodes-roots", num_drawn=4), problem), problem, 100)
    count = torch.cat([draw.node[:, 1:].flatten() for draw in draws]).bincount(minlength=NODES)
    assert count.min() > 0.4 * count.float().mean()
    assert graphs.strongest(edges, 3).unique().tolist() == [NODES]


def test_strongest_neighbours_in_either_direction(problem):
    weight = dense(problem)
    found = graphs.strongest(problem.graph, 5)
    for node in range(NODES):
        ranked = [int(other) for other in np.argsort(-weight[node], kind="stable") if weight[node, other] > 0]
        assert found[node].tolist() == (ranked + [NODES] * 5)[:5]


# --- pairs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_drawn", "size"), [(0, 160), (4, 64), (10, 160)])
def test_every_pair_comes_once_an_epoch(problem, num_drawn, size):
    steps = -(-2170 // size)
    draws = first(make(spec_of("pairs", num_drawn=num_drawn), problem), problem, 2 * steps)
    orders = []
    for epoch in (draws[:steps], draws[steps:]):
        assert [len(draw.index) for draw in epoch] == [size] * (steps - 1) + [2170 - size * (steps - 1)]
        assert all(draw.node.shape == (len(draw.index), 1) for draw in epoch)
        orders.append(torch.cat([draw.index * NODES + draw.node[:, 0] for draw in epoch]))
        assert orders[-1].sort().values.equal(torch.arange(2170))
    assert not orders[0].equal(orders[1])
    # A uniform order: the windows of a batch are not those of neighbouring pairs.
    assert len(draws[0].index.unique()) > 0.8 * 217 * (1 - (1 - 1 / 217) ** size)


# --- refusals ------------------------------------------------------------------------------------------------------------


DROPPING = ["rs2", "soft-random", "infobatch", "seta", "st-prune", "windows-and-nodes"]
DRAWING = [name for name in FAMILIES if "nodes" in name]


@pytest.mark.parametrize(
    ("family", "settings", "words"),
    [
        ("fulll", {}, r"make: family must be one of full, .*, got 'fulll'"),
        ("full", {"num_drawn": 4}, r"full: num_drawn must be 0: .*, got 4"),
        ("rs2", {"num_drawn": 4}, r"rs2: num_drawn must be 0"),
        ("even-windows", {"num_drawn": 4}, r"num_drawn must be 0"),
        ("full", {"keep_ratio": 0.5}, r"full: keep_ratio must be 1.0: .*, got 0.5"),
        ("nodes-uniform", {"keep_ratio": 0.5}, r"keep_ratio must be 1.0"),
        ("pairs", {"keep_ratio": 0.5}, r"keep_ratio must be 1.0"),
        *((name, {"keep_ratio": 1.0}, r"keep_ratio must be in \(0, 1\), got 1.0") for name in DROPPING),
        ("rs2", {"keep_ratio": 0.0}, r"keep_ratio must be in \(0, 1\), got 0.0"),
        *((name, {"num_drawn": 0}, r"num_drawn must be in .*, got 0") for name in DRAWING),
        *((name, {"num_drawn": 10}, r"num_drawn must be in .*, got 10") for name in DRAWING),
        ("pairs", {"num_drawn": 11}, r"pairs: num_drawn must be in \[0, 10\], got 11"),
        ("nodes-roots", {"num_drawn": 1}, r"num_drawn must be in \[2, 10\).*got 1"),
        ("nodes-growing", {"num_drawn": 6}, r"num_drawn must be in \[2, 5\].*got 6"),
        ("nodes-growing", {"num_drawn": 1}, r"num_drawn must be in \[2, 5\].*got 1"),
        ("full", {"batch_size": 0}, r"full: batch_size must be at least 1, got 0"),
        ("full", {"cost": 0.0}, r"full: cost must be above 0, got 0.0"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_made(problem, monkeypatch, family, settings, words):
    def made(self, spec, problem):
        pytest.fail("a family was made")

    monkeypatch.setattr(Family, "__init__", made)
    spec = dataclasses.replace(spec_of(family if family in FAMILIES else "full"), family=family, **settings)
    with pytest.raises(ValueError, match=words):
        make(spec, problem)


def test_every_family_says_its_rule():
    for kind in FAMILIES.values():
        assert kind.__doc__
