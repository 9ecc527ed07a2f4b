"""headroom: its estimators against known truths, its cost fit, its verdicts, and the errors it gives."""

from __future__ import annotations

import copy
import importlib.util
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import stprune
from stprune.headroom import gradients, variance
from stprune.headroom.choices import Choice, Choices, choose
from stprune.headroom.cost import StepCost, StepTimes, fit_cost, sizes_to_time, typical
from stprune.headroom.gradients import GradientStats
from stprune.headroom.losses import LOSSES, entries, pair_means
from stprune.headroom.report import fit_error, sentences
from stprune.models import STID, STAEformer

NODES, STEPS = 6, 12


def stats_of(pairs, loss=None):
    """Statistics of pair gradients [W, N, P], all of which are known."""
    pairs = torch.as_tensor(pairs)
    return GradientStats(
        gradients.gram(pairs.mean(dim=1)),
        np.array([gradients.spread(each) for each in pairs]),
        np.ones(len(pairs)) if loss is None else loss,
        pairs.shape[1],
    )


def drawn_pairs(r, *, windows=400, nodes=10, size=5, signal=0.0, seed=0):
    """Pair gradients [W, N, P] with intraclass correlation r and unit variance per coordinate."""
    rng = np.random.default_rng(seed)
    window = rng.normal(size=(windows, 1, size)) * math.sqrt(r)
    return signal + window + rng.normal(size=(windows, nodes, size)) * math.sqrt(1 - r)


def linear_model(num_nodes=NODES):
    """A linear forecaster whose gradients are known by hand: prediction = sum over time of w_t x_t, the same for all nodes."""

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(-1, 1, STEPS))

        def forward(self, x, node=None):
            return torch.einsum("btnc,t->bnc", x, self.weight)[:, None]

    return Linear()


def random_batch(windows=16, nodes=NODES, channels=1, horizon=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(windows, STEPS, nodes, channels, generator=generator)
    return x, torch.randn(windows, horizon, nodes, 1, generator=generator)


def stid(nodes=NODES, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return STID(nodes, steps_per_day=24, dim=2, num_layers=1)


def calendar_batch(windows=16, nodes=NODES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(windows, STEPS, nodes, 3, generator=generator), torch.rand(windows, 12, nodes, 1, generator=generator)


def quick(model, batches, **settings):
    return stprune.headroom(model, batches, **{"seconds": 0.5, **settings})


# --- variance --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("r", [0.0, 0.05, 0.4, 0.9])
@pytest.mark.parametrize("signal", [0.0, 3.0])
def test_r_of_gradients_with_known_r_lies_within_its_standard_error(r, signal):
    found = [variance.moments(stats_of(drawn_pairs(r, signal=signal, seed=seed))).r for seed in range(20)]
    standard_error = np.std(found, ddof=1) / math.sqrt(len(found))
    assert abs(np.mean(found) - r) < 4 * standard_error
    assert standard_error < 0.01


def test_r_is_the_textbook_anova_estimate():
    pairs = drawn_pairs(0.3, windows=12, nodes=5, size=3)
    means = pairs.mean(axis=1)
    between = 5 * np.square(means - means.mean(axis=0)).sum() / 11
    within = np.square(pairs - means[:, None]).sum() / (12 * 4)
    expected = (between - within) / (between + 4 * within)
    assert variance.moments(stats_of(pairs)).r == pytest.approx(expected, rel=1e-10)


def test_r_is_unbiased_when_only_some_pairs_of_a_window_are_measured():
    rng = np.random.default_rng(1)
    pairs = torch.as_tensor(drawn_pairs(0.2, windows=300, nodes=20))
    every = stats_of(pairs)
    found = []
    for _ in range(60):
        some = torch.as_tensor(np.stack([rng.permutation(20)[:3] for _ in range(300)]))
        within = np.array([gradients.spread(each[node]) for each, node in zip(pairs, some, strict=True)])
        found.append(variance.moments(GradientStats(every.gram, within, every.loss, 20)).within)
    standard_error = np.std(found, ddof=1) / math.sqrt(len(found))
    assert abs(np.mean(found) - variance.moments(every).within) < 4 * standard_error


@pytest.mark.parametrize("num_drawn", [1, 3, 7])
def test_variance_is_that_of_the_gradient_over_draws_of_windows_and_nodes(num_drawn):
    # A finite population of windows, so that the expectation is exact: every window, every subset of its nodes.
    import itertools

    pairs = drawn_pairs(0.3, windows=5, nodes=7, size=2, signal=1.0)
    subsets = list(itertools.combinations(range(7), num_drawn))
    drawn = np.array([[window[list(subset)].mean(axis=0) for subset in subsets] for window in pairs])
    overall = drawn.mean(axis=(0, 1))
    between = np.square(drawn.mean(axis=1) - overall).sum() / (5 - 1)
    inside = np.square(drawn - drawn.mean(axis=1, keepdims=True)).sum(axis=2).mean()
    assert float(variance.moments(stats_of(pairs)).variance(num_drawn)) == pytest.approx(between + inside, rel=1e-10)


def test_optimum_is_that_of_equation_14():
    pairs = drawn_pairs(0.1, windows=600, nodes=100)
    found = variance.moments(stats_of(pairs))
    cost = StepCost(4.0, 1.0, 0.0)
    times = StepTimes(np.array([1, 10, 50, 100]), np.tile(cost.at(np.array([1, 10, 50, 100])), (3, 1)))
    closed_form = math.sqrt((1 - found.r) / found.r * cost.c0 / cost.c1)
    assert abs(choose(stats_of(pairs), times, seed=0).nodes.num_drawn - closed_form) <= 1


def test_bootstrap_moments_are_unbiased_and_their_interval_covers_the_truth():
    stats = stats_of(drawn_pairs(0.3, windows=40, nodes=5))
    rng = np.random.default_rng(0)
    counts = [np.bincount(rng.integers(40, size=40), minlength=40) for _ in range(1000)]
    between = [variance.moments(stats, count).between for count in counts]
    assert np.mean(between) == pytest.approx(variance.moments(stats).between, abs=4 * np.std(between) / math.sqrt(1000))

    times = StepTimes(np.array([1, 2, 5]), np.tile([2.0, 3.0, 6.0], (3, 1)))
    inside = 0
    for seed in range(10):
        low, high = choose(stats_of(drawn_pairs(0.3, windows=80, nodes=5, seed=seed)), times, seed=0).r_interval
        inside += low <= 0.3 <= high
    assert inside >= 8


def test_equal_probabilities_are_a_plain_draw_and_lengths_are_the_best():
    stats = stats_of(drawn_pairs(0.5, signal=0.2) * np.random.default_rng(2).lognormal(0, 1, (400, 1, 1)))
    found = variance.moments(stats)
    squares = variance.second_moments(stats, stats.num_nodes)
    plain = variance.importance_variance(squares, np.ones(400), found.signal)
    assert plain == pytest.approx(found.between, rel=1e-10)
    best = variance.importance_variance(squares, np.sqrt(squares), found.signal)
    assert best == pytest.approx(np.sqrt(squares).mean() ** 2 - found.signal, rel=1e-10)
    rng = np.random.default_rng(3)
    for _ in range(20):
        other = np.sqrt(squares) * rng.uniform(0.5, 1.5, 400)
        assert variance.importance_variance(squares, other, found.signal) >= best


@pytest.mark.parametrize("keep_ratio", [0.05, 0.3, 0.9])
def test_inclusion_probabilities_follow_the_budget_rule(keep_ratio):
    key = np.random.default_rng(0).lognormal(0, 1, 200)
    probability = variance.inclusion(key, keep_ratio)
    assert probability.mean() == pytest.approx(keep_ratio, rel=1e-6)
    assert probability.min() >= keep_ratio / variance.WEIGHT_CAP
    assert probability.max() <= 1
    free = (probability > keep_ratio / variance.WEIGHT_CAP * 1.0001) & (probability < 0.9999)
    assert np.ptp((probability / key)[free]) < 1e-9


def test_windows_that_are_all_alike_leave_nothing_to_choose():
    stats = stats_of(drawn_pairs(0.2))
    squares = np.full(400, 2.0)
    assert variance.best_keep_ratio(squares, 0.1) == 1.0
    squares = variance.second_moments(stats_of(drawn_pairs(0.5) * np.r_[np.ones(360), 20 * np.ones(40)][:, None, None]), 10)
    assert variance.best_keep_ratio(squares, 0.0) < 0.5
    assert stats.num_nodes == 10
    # So much signal that rounding and chance leave a variance below 0: still an answer.
    assert 0 < variance.best_keep_ratio(np.full(400, 2.0), 2.5) <= 1


def test_moments_of_gradients_that_never_differ_or_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="must differ between windows"):
        variance.moments(stats_of(np.ones((9, 3, 2))))
    with pytest.raises(ValueError, match="must be finite"):
        variance.moments(stats_of(np.full((9, 3, 2), math.nan)))


# --- gradients -------------------------------------------------------------------------------------------------------


def by_hand(x, y):
    """[W, N, STEPS] gradients of |x . w - y| of every pair of `linear_model`: sign(error) x."""
    error = torch.einsum("btnc,t->bn", x, torch.linspace(-1, 1, STEPS)) - y[:, 0, :, 0]
    return torch.sign(error)[..., None] * x[..., 0].transpose(1, 2)


def test_pair_gradients_of_a_linear_model_are_those_by_hand_and_those_of_torch_func():
    model, (x, y) = linear_model(), random_batch()
    expected = by_hand(x, y)

    def loss(weight, x, y):
        return (torch.einsum("t,t->", x, weight) - y).abs()

    of_func = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    weight = model.weight.detach()
    for i in range(len(x)):
        losses = pair_means(entries(model(x[i : i + 1]), y[i : i + 1], lambda a, b: (a - b).abs(), None)[0])[0]
        found = gradients.pair_gradients(losses, [model.weight], torch.eye(NODES))
        torch.testing.assert_close(found, expected[i])
        torch.testing.assert_close(found, of_func(weight, x[i, :, :, 0].T, y[i, 0, :, 0]))


def test_measured_statistics_are_those_of_all_pairs_by_hand():
    model, batch = linear_model(), random_batch(windows=12)
    found = gradients.measure_gradients(
        model, [batch], [model.weight], loss=lambda a, b: (a - b).abs(), null_value=None, num_pairs=NODES, seed=0,
        deadline=math.inf, progress=lambda done: None,
    )  # fmt: skip
    expected = stats_of(by_hand(*batch).double())
    np.testing.assert_allclose(found.gram, expected.gram, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.within, expected.within, rtol=1e-5)
    assert model.weight.grad is None


@pytest.mark.parametrize("kind", [STID, STAEformer])
def test_gradients_of_models_are_those_of_single_backward_passes(kind):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = kind(NODES, steps_per_day=24, dim=4, num_layers=1).eval()
    x, y = calendar_batch(windows=1)
    parameters = list(model.parameters())
    losses = (model(x) - y).abs().mean(dim=(1, 3))[0]
    found = gradients.pair_gradients(losses, parameters, torch.eye(NODES))
    for node in range(NODES):
        alone = torch.autograd.grad((model(x) - y).abs().mean(dim=(1, 3))[0, node], parameters)
        torch.testing.assert_close(found[node], torch.cat([part.flatten() for part in alone]), rtol=1e-4, atol=1e-6)


def test_a_backward_that_cannot_be_batched_is_taken_one_by_one():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad * float(grad.sum() != -1)  # looks at values, which a batched pass cannot

    weight, unused = nn.Parameter(torch.arange(3.0)), nn.Parameter(torch.ones(2))
    found = gradients.pair_gradients(Double.apply(weight).square(), [weight, unused], torch.eye(3))
    torch.testing.assert_close(found, torch.cat([torch.diag(8 * torch.arange(3.0)), torch.zeros(3, 2)], dim=1))


def test_missing_targets_have_no_gradient():
    model, (x, y) = linear_model(), random_batch()
    marked = y.clone()
    marked[:, :, 0], marked[:, :, 1] = math.nan, -99.0
    losses, valid = entries(model(x), marked, lambda a, b: (a - b).abs(), -99.0)
    found = gradients.pair_gradients(pair_means(losses)[0], [model.weight], torch.eye(NODES))
    assert not found[:2].any()
    torch.testing.assert_close(found[2:], by_hand(x, y)[0, 2:])
    assert int(valid.sum()) == len(x) * (NODES - 2)


def test_last_layer_is_the_last_module_with_parameters():
    model = stid()
    last = gradients.measured_parameters(model, "last", 128)
    assert {id(p) for p in last} == {id(p) for p in model.head.parameters()}
    assert len(gradients.measured_parameters(model, "auto", 128)) == len(list(model.parameters()))
    wide = nn.Sequential(nn.Linear(1000, 1000), nn.Linear(1000, 1))
    assert [p.shape[0] for p in gradients.measured_parameters(wide, "auto", 1000)] == [1, 1]
    with pytest.raises(ValueError, match="headroom: model must have parameters that take a gradient"):
        gradients.measured_parameters(nn.ReLU(), "auto", 8)


class CountsNodes(nn.Module):
    """Forecasts weight times the number of nodes given, so that its gradient tells that number."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x, node=None):
        return (self.weight * x.shape[2]).expand(len(x), 1, x.shape[2], 1)


def test_bias_of_drawn_nodes_is_that_of_the_mean_gradient():
    settings = {"loss": lambda a, b: (a - b).abs(), "null_value": None}
    x, y = random_batch()
    for count in (1, 4, NODES):
        model = CountsNodes()
        found = gradients.drawn_bias(model, [(x, y - 100)], [model.weight], num_drawn=count, seed=0, **settings)
        assert found == pytest.approx((NODES - count) ** 2, rel=1e-5)
    model = linear_model()
    several = [
        gradients.drawn_bias(model, [random_batch(64)], [model.weight], num_drawn=2, seed=seed, **settings)
        for seed in range(30)
    ]
    assert abs(np.mean(several)) < 4 * np.std(several, ddof=1) / math.sqrt(30)


# --- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("c0", "c1", "c2"), [(3.0, 0.5, 0.0), (3.0, 0.5, 0.25), (0.0, 2.0, 0.0), (1.0, 0.0, 0.1), (2.0, 0.0, 0.0)]
)
def test_fit_gives_known_costs_back(c0, c1, c2):
    sizes = sizes_to_time(192)
    cost = fit_cost(sizes, StepCost(c0, c1, c2).at(sizes))
    assert (cost.c0, cost.c1, cost.c2) == pytest.approx((c0, c1, c2), abs=1e-9)


def test_fit_of_noisy_times_is_near_and_never_negative():
    sizes = sizes_to_time(192)
    rng = np.random.default_rng(0)
    for _ in range(50):
        cost = fit_cost(sizes, StepCost(5.0, 1.0, 0.0).at(sizes) * rng.normal(1, 0.02, len(sizes)))
        assert min(cost.c0, cost.c1, cost.c2) >= 0
        np.testing.assert_allclose(cost.at(sizes), StepCost(5.0, 1.0, 0.0).at(sizes), rtol=0.06)
    # A time that falls with m would want a negative slope.
    assert fit_cost(np.array([1, 2, 4]), np.array([3.0, 2.0, 1.0])).c1 == 0


def test_stalls_do_not_move_the_typical_time():
    seconds = np.ones((10, 2))
    seconds[:6, 1] = 50.0
    assert typical(seconds).tolist() == [1.0, 1.0]


# --- verdicts --------------------------------------------------------------------------------------------------------


def told(choices, stats, cost, error=0.0):
    moments = variance.moments(stats)
    return sentences(choices, moments, cost, noise_share=0.9, bias_share=None, stopped_early=False, error=error)


def settled(pairs, cost, loss=None):
    stats = stats_of(pairs, loss)
    sizes = sizes_to_time(stats.num_nodes)
    choices = choose(stats, StepTimes(sizes, np.tile(cost.at(sizes), (3, 1))), seed=0)
    return choices, told(choices, stats, cost)


def test_correlated_nodes_with_a_cost_per_node_pay():
    choices, text = settled(drawn_pairs(0.3, nodes=50), StepCost(1.0, 1.0, 0.0))
    assert choices.nodes.pays
    assert choices.nodes.num_drawn <= 4
    assert text[0].startswith(f"Drawing {choices.nodes.num_drawn} of 50 nodes pays (node_ratio=")
    assert choices.nodes.cost == pytest.approx(choices.nodes.variance * choices.nodes.step_cost)
    assert choices.nodes.interval[0] <= choices.nodes.cost <= choices.nodes.interval[1]


@pytest.mark.parametrize(
    ("r", "shape", "cost_per_node", "reason"),
    [
        (0.0, {"nodes": 50, "windows": 800}, 1.0, "hardly repeat each other"),
        (0.3, {"nodes": 50}, 1e-5, "still costs 100% of a full one"),
        (0.0, {"nodes": 1}, 1.0, "there is only one"),
    ],
)
def test_nodes_that_cannot_pay_and_why(r, shape, cost_per_node, reason):
    choices, text = settled(drawn_pairs(r, **shape), StepCost(1.0, cost_per_node, 0.0))
    assert not choices.nodes.pays
    assert text[0].startswith("Pruning nodes cannot pay here")
    assert reason in text[0]


def test_times_that_do_not_fit_are_told():
    stats, cost = stats_of(drawn_pairs(0.3, nodes=50)), StepCost(1.0, 1.0, 0.0)
    sizes = sizes_to_time(50)
    seconds = np.tile(cost.at(sizes) * np.where(sizes == 12, 2.0, 1.0), (3, 1))
    off = fit_error(StepTimes(sizes, seconds), cost)
    assert off == pytest.approx(0.5)
    assert fit_error(StepTimes(sizes, np.tile(cost.at(sizes), (3, 1))), cost) == pytest.approx(0.0)
    choices = choose(stats, StepTimes(sizes, seconds), seed=0)
    for error in (off, 0.1):
        text = told(choices, stats, cost, error)
        assert any("as on a busy machine" in each for each in text) == (error > 0.15)


def test_an_interval_that_includes_full_training_is_told():
    stats, sizes = stats_of(drawn_pairs(0.3, nodes=50)), sizes_to_time(50)
    # One round says that nodes are all of a step's cost, the other that they are none of it.
    seconds = np.stack([StepCost(0.0, 1.0, 0.0).at(sizes), StepCost(50.0, 0.0, 0.0).at(sizes)])
    choices = choose(stats, StepTimes(sizes, seconds), seed=0)
    assert choices.nodes.interval[1] > 1
    assert not choices.nodes.pays
    best = Choice(5, 0.1, 1.0, 1.2, 0.5, 0.6, (0.3, 1.4))
    text = told(Choices(best, best, best, best, (0.2, 0.3)), stats, StepCost(1.0, 1.0, 0.0))
    assert text[0].startswith("Pruning nodes cannot be shown to pay here: 60% [30%, 140%]")
    assert text[1].startswith("Pruning windows cannot be shown to pay here: 60% [30%, 140%]")


def test_windows_of_equal_gradients_cannot_pay_and_unequal_ones_pay_if_the_loss_tells():
    cost = StepCost(1.0, 1.0, 0.0)
    many = drawn_pairs(0.5, size=200)
    _, text = settled(many, cost)
    assert text[1].startswith("Pruning windows cannot pay here: even if every window's gradient length were known")
    size = np.random.default_rng(0).lognormal(0, 1.5, 400)
    choices, text = settled(many * size[:, None, None], cost, loss=np.square(size))
    assert choices.score.pays
    assert text[1].startswith("Pruning windows pays (keep_ratio=")
    choices, text = settled(many * size[:, None, None], cost, loss=1 / np.square(size))
    assert choices.windows.pays
    assert not choices.score.pays
    assert text[1].startswith("Pruning windows cannot pay here by the loss")


def test_both_draws_cost_no_more_than_either():
    size = np.random.default_rng(0).lognormal(0, 1.5, 400)
    choices, _ = settled(drawn_pairs(0.3, nodes=50) * size[:, None, None], StepCost(1.0, 0.2, 0.0))
    assert choices.both.cost <= min(choices.nodes.cost, choices.windows.cost) * (1 + 1e-9)


# --- the whole -------------------------------------------------------------------------------------------------------


def test_result_is_the_same_again_apart_from_times_and_nothing_is_touched():
    model, batch = stid(), calendar_batch()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    model.train()
    first, second = (quick(model, [batch], seed=3) for _ in range(2))
    assert first.gradient == second.gradient
    assert first.window_spread == second.window_spread
    assert first.r_interval == second.r_interval
    assert quick(model, [batch], seed=4).gradient != first.gradient
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


def test_result_fits_together():
    found = quick(stid(), [calendar_batch()])
    assert found.num_nodes == NODES
    assert found.num_windows == found.batch_size == 16
    assert not found.interacts
    assert found.bias_share == 0
    assert float(found.cost_at(NODES)) == pytest.approx(1.0)
    assert float(found.cost_at(found.nodes.num_drawn)) == pytest.approx(found.nodes.cost)
    assert float(found.cost_at(np.arange(1, NODES + 1)).min()) == pytest.approx(found.nodes.cost)
    assert 0 < found.window_spread <= 1
    assert 0 <= found.noise_share <= 1
    assert found.node_ratio in (1.0, found.nodes.node_ratio)
    again = pickle.loads(pickle.dumps(found))
    assert again.nodes == found.nodes
    assert str(again) == str(found)
    sampler = stprune.PruningSampler(8, num_epochs=1, num_nodes=NODES, node_ratio=found.nodes.node_ratio)
    assert sampler.nodes(torch.arange(2)).shape[1] == found.nodes.num_drawn


def test_table_names_the_numbers_and_keeps_its_width():
    found = quick(STAEformer(NODES, steps_per_day=24, dim=2, num_heads=2), [calendar_batch()])
    lines = str(found).splitlines()
    assert max(len(line) for line in lines) <= 110
    assert any(f"{found.r:.3g} [" in line for line in lines)
    for name in ("full training", "drawn nodes", "windows, by the loss", "windows, best possible", "both, best possible"):
        assert sum(line.startswith(name) for line in lines) == 1
    assert found.interacts
    assert found.bias_share >= 0
    assert "The model's nodes interact" in str(found)


@pytest.mark.parametrize("form", ["pair", "triple", "nested", "loader"])
def test_batches_may_come_as_loaders_give_them(form):
    x, y = calendar_batch()
    index = torch.arange(len(x))
    wrapped = {
        "pair": [(x, y)],
        "triple": [(index, x, y)],
        "nested": [(index, [x, y])],
        "loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16),
    }
    assert quick(stid(), wrapped[form]).gradient == quick(stid(), [(x, y)]).gradient


def test_only_as_many_windows_are_taken_as_asked_for():
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield calendar_batch(windows=6, seed=len(taken))

    found = quick(stid(), endless(), num_windows=15)
    assert found.num_windows == 15
    assert len(taken) == 3
    assert found.batch_size == 6


def test_time_that_runs_out_leaves_out_windows_and_says_so():
    found = stprune.headroom(stid(), [calendar_batch(windows=40)], seconds=1e-6)
    assert found.num_windows == 8
    assert found.stopped_early
    assert "Time ran out" in str(found)
    assert len(found.times.seconds) == 3


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"loss": "mea"}, ValueError, "loss must be one of mae, mse, huber or a function, got 'mea'"),
        ({"loss": 3}, TypeError, "loss must be a name or a function, got int"),
        ({"loss": nn.L1Loss()}, ValueError, "loss must return the loss of every entry, unreduced"),
        ({"layers": "some"}, ValueError, "layers must be one of auto, all, last, got 'some'"),
        ({"num_windows": 7}, ValueError, "num_windows must be at least 8, got 7"),
        ({"num_pairs": 1}, ValueError, "num_pairs must be at least 2, got 1"),
        ({"seconds": 0}, ValueError, r"seconds must lie in \(0, inf\], got 0"),
        ({"seed": -1}, ValueError, "seed must lie in"),
        ({"model": len}, TypeError, "model must be a torch.nn.Module, got builtin_function_or_method"),
        ({"model": nn.Linear(3, 1)}, TypeError, r"model must take drawn nodes as model\(x, node=node\)"),
        ({"batches": []}, ValueError, "batches must hold at least 8 windows, got 0"),
        ({"batches": [calendar_batch(windows=3)]}, ValueError, "batches must hold at least 8 windows, got 3"),
        ({"batches": [torch.ones(3)]}, TypeError, r"batches must yield \(x, y\), .* got torch.float32"),
        ({"batches": [(torch.ones(3), 5)]}, TypeError, r"got \(torch.float32, int\)"),
        ({"batches": [(torch.ones(9, 2), torch.ones(9, 2))]}, ValueError, r"x and y \[B, T, N, C\]"),
        ({"batches": [tuple(torch.ones(9) for _ in range(4))]}, ValueError, "batches must hold all nodes"),
        (
            {"batches": [(calendar_batch()[0], calendar_batch()[1][:, :5])]},
            ValueError,
            r"model must return a forecast of the shape of y \[1, 5, 6, 1\], got \[1, 12, 6, 1\]",
        ),
        ({"batches": [calendar_batch(), calendar_batch(nodes=4)]}, ValueError, "batches must all have 6 nodes, got 4"),
        ({"null_value": 0.0, "batches": [(calendar_batch()[0], torch.zeros(16, 12, NODES, 1))]}, ValueError, "must differ"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_one_clear_error(change, error, message):
    settings = {"model": stid(), "batches": [calendar_batch()], "seconds": 0.5, **change}
    with pytest.raises(error, match=f"^headroom: .*{message}"):
        stprune.headroom(settings.pop("model"), settings.pop("batches"), **settings)


def test_bars_are_optional(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "tqdm" else find_spec(name, *rest))
    assert quick(stid(), [calendar_batch()], progress=True).num_windows == 16


def test_a_tolerance_finds_null_values_that_went_through_a_scaler_and_back():
    target = torch.tensor([[[[0.0], [1.5e-5], [2.0]]]])
    for tolerance, valid in ((0.0, [False, True, True]), (5e-5, [False, False, True])):
        assert entries(target + 1, target, LOSSES["mae"], 0.0, tolerance)[1].flatten().tolist() == valid
