"""headroom: its estimators against known truths, its cost fit, its verdicts, and the errors it gives."""

from __future__ import annotations

import copy
import functools
import importlib.util
import math
import pathlib
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import stprune
from stprune.headroom import cost as cost_module
from stprune.headroom import gradients, variance
from stprune.headroom.cost import StepCost, StepTimes, fit_cost, fit_error, sizes_to_time, typical
from stprune.headroom.gradients import GradientStats
from stprune.headroom.law import ENOUGH_STEPS, Law, choose, grid_of, share_of_run
from stprune.headroom.losses import LOSSES, entries, pair_means
from stprune.headroom.report import OFF_BY
from stprune.models import STID, STAEformer

NODES, STEPS = 6, 12
SMALL = {"adaptive_dim": 2, "num_heads": 2}  # of a STAEformer


def stats_of(pairs):
    """Statistics of pair gradients [W, N, P], all of which are known."""
    pairs = torch.as_tensor(pairs)
    return GradientStats(
        gradients.gram(pairs.mean(dim=1)),
        np.array([gradients.spread(each) for each in pairs]),
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
    """Long enough to measure 16 windows on a busy machine; fewer rounds of timed steps than the time allows."""
    return stprune.headroom(model, batches, **{"seconds": 3.0, **settings})


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch):
    monkeypatch.setattr(cost_module, "_MOST_ROUNDS", 5)


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
        found.append(variance.moments(GradientStats(every.gram, within, 20)).within)
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


def test_bootstrap_moments_are_unbiased_and_their_interval_covers_the_truth():
    stats = stats_of(drawn_pairs(0.3, windows=40, nodes=5))
    rng = np.random.default_rng(0)
    counts = [np.bincount(rng.integers(40, size=40), minlength=40) for _ in range(1000)]
    between = [variance.moments(stats, count).between for count in counts]
    assert np.mean(between) == pytest.approx(variance.moments(stats).between, abs=4 * np.std(between) / math.sqrt(1000))

    inside = 0
    for seed in range(10):
        low, high = settled(drawn_pairs(0.3, windows=80, nodes=5, seed=seed)).r_interval
        inside += low <= 0.3 <= high
    assert inside >= 8


def test_no_choice_of_windows_has_less_variance_than_that_by_length():
    stats = stats_of(drawn_pairs(0.5, signal=0.2) * np.random.default_rng(2).lognormal(0, 1, (400, 1, 1)))
    found, squares = variance.moments(stats), np.diagonal(stats.gram)

    def of_draw(probability):
        """Variance of a window's gradient divided by its probability, windows coming with these probabilities."""
        return (squares / probability).mean() * probability.mean() - found.signal

    assert of_draw(np.ones(400)) == pytest.approx(found.between, rel=1e-10)
    least = variance.least_by_windows(stats) * found.between
    assert of_draw(np.sqrt(squares)) == pytest.approx(least, rel=1e-10)
    rng = np.random.default_rng(3)
    assert all(of_draw(np.sqrt(squares) * rng.uniform(0.5, 1.5, 400)) >= least for _ in range(20))
    alike = drawn_pairs(0.5, size=400, nodes=2)
    assert variance.least_by_windows(stats_of(alike)) > 0.95


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
        model = kind(NODES, steps_per_day=24, dim=2, num_layers=1, **({} if kind is STID else SMALL)).eval()
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
    "cost", [(5.0, 3.0, 0.5, 0.0), (5.0, 0.0, 0.5, 0.25), (0.0, 0.0, 2.0, 0.0), (1.0, 1.0, 0.0, 0.1), (2.0, 0.0, 0.0, 0.0)]
)
def test_fit_gives_known_costs_back(cost):
    found = fit_cost(timed(StepCost(*cost)))
    assert (found.step, found.c0, found.c1, found.c2) == pytest.approx(cost, abs=1e-9)


def test_fit_of_noisy_times_is_near_and_never_negative():
    sizes, cost = sizes_to_time(64, 192), StepCost(5.0, 1.0, 1.0, 0.0)
    rng = np.random.default_rng(0)
    for _ in range(50):
        seconds = cost.at(*sizes.T) * rng.normal(1, 0.02, len(sizes))
        found = fit_cost(StepTimes(sizes, seconds[None]))
        assert min(found.step, found.c0, found.c1, found.c2) >= 0
        np.testing.assert_allclose(found.at(*sizes.T), cost.at(*sizes.T), rtol=0.06)
    # A time that falls with m would want a negative slope.
    assert fit_cost(StepTimes(np.array([[1, 1], [1, 2], [1, 4]]), np.array([[3.0, 2.0, 1.0]]))).c1 == 0


def test_times_that_do_not_fit_are_known():
    cost = StepCost(1.0, 0.0, 1.0, 0.0)
    times = timed(cost)
    assert fit_error(times, cost) == pytest.approx(0.0)
    seconds = times.seconds * np.where(times.sizes[:, 0] == 1, 2.0, 1.0)
    assert fit_error(StepTimes(times.sizes, seconds), cost) == pytest.approx(0.5)


def test_stalls_do_not_move_the_typical_time():
    seconds = np.ones((10, 2))
    seconds[:6, 1] = 50.0
    assert typical(seconds).tolist() == [1.0, 1.0]


def test_timed_draws_read_the_drawn_nodes_only(monkeypatch):
    """A batch with its channels first in memory, which gather_nodes would copy whole in every step."""
    x, y = calendar_batch()
    x = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    seen, gather = [], stprune.gather_nodes
    monkeypatch.setattr(cost_module, "gather_nodes", lambda part, node: seen.append(part) or gather(part, node))
    found = cost_module.time_steps(
        stid(), [(x, y)], loss=LOSSES["mae"], null_value=None, optimizer=torch.optim.Adam, seed=0, deadline=0.0,
        progress=lambda done: None,
    )  # fmt: skip
    assert not x.is_contiguous()
    assert len(found.seconds) == cost_module.FEWEST_ROUNDS
    assert len(seen) > 0
    assert all(part.is_contiguous() for part in seen)


# --- the law -------------------------------------------------------------------------------------------------------


COST = StepCost(20.0, 0.0, 1.0, 0.0)


def timed(cost, batch=64, nodes=192):
    sizes = sizes_to_time(batch, nodes)
    return StepTimes(sizes, np.tile(cost.at(*sizes.T), (3, 1)))


def settled(pairs, cost=COST, batch=64, **settings):
    """The choice for pair gradients whose cost is known."""
    stats = stats_of(pairs)
    return choose(stats, timed(cost, batch, stats.num_nodes), batch_size=batch, **{"gamma": 1.0, "seed": 0, **settings})


def exact_law(r, signal, num_nodes, cost=COST, gamma=1.0):
    """The law of gradients of variance 1 and correlation r."""
    return Law(variance.Moments(r + (1 - r) / num_nodes, 1 - r, signal, num_nodes, 10**9), cost, gamma)


@pytest.mark.parametrize("r", [0.02, 0.1, 0.5])
def test_steps_needed_are_those_of_equation_15(r):
    size, signal = 20, 0.3
    pairs = drawn_pairs(r, windows=2000, nodes=30, size=size, signal=signal)
    law = Law(variance.moments(stats_of(pairs)), StepCost(1.0, 0.0, 0.0, 0.0), 1.0)
    for windows, nodes in ((1, 30), (8, 30), (64, 3), (16, 1)):
        expected = 1 + size * (r + (1 - r) / nodes) / windows / (size * signal**2)
        assert float(law.steps(windows, nodes)) == pytest.approx(expected, rel=0.1)


def test_steps_needed_are_what_noisy_descent_takes():
    """On a quadratic bowl with the best rate a step of noise v / G^2 lowers the loss 1 + v / G^2 times less."""
    gradient, noise = 2.0, 12.0  # of f(x) = x^2 / 2 at x = 2; variance of its estimate
    rates = np.linspace(0.001, 1, 4000)
    decrease = rates * gradient**2 - rates**2 / 2 * (gradient**2 + noise)  # expected, exact
    assert (gradient**2 / 2) / decrease.max() == pytest.approx(1 + noise / gradient**2, rel=1e-4)


def test_adaptive_optimizers_need_the_root_of_it():
    batch = calendar_batch()
    for optimizer, gamma in ((torch.optim.Adam, 0.5), (functools.partial(torch.optim.SGD, lr=0.1), 1.0)):
        law = quick(stid(), [batch], optimizer=optimizer).law
        assert law.gamma == gamma
        assert float(law.steps(1, NODES)) == pytest.approx((1 + float(law.gradient.noise(1, NODES))) ** gamma)


def test_best_batch_and_nodes_are_those_of_the_closed_form():
    law = exact_law(0.1, 0.02, 100, StepCost(400.0, 0.0, 1.0, 0.0))
    # (a + c P) (1 + k / P) is least at P = sqrt(a k / c): for full training k = N (r + (1 - r) / N) N / G^2 pairs.
    windows = math.sqrt(400 / 100 * (0.1 + 0.9 / 100) / 0.02)
    best = law.best([(count, 100) for count in range(1, 65)])[0]
    assert float(law.time(best, 100)) <= 1.02 * float(law.time(windows, 100))
    assert best >= windows - 1
    # One node a window has least variance a pair.
    pairs = math.sqrt(400 / 1 / 0.02)
    chosen = law.best(grid_of(64, 100))
    assert float(law.time(*chosen)) <= 1.05 * float(law.time(pairs, 1))


def test_drawing_gains_more_the_more_r_and_nodes_there_are_and_never_costs_more():
    def gain(r, num_nodes):
        law = exact_law(r, 0.03, num_nodes)
        full = law.best([(2**power, num_nodes) for power in range(7)])
        return float(law.time(*law.best([full, *grid_of(64, num_nodes)])) / law.time(*full))

    by_r = [gain(r, 300) for r in (0.0, 0.01, 0.1, 0.5)]
    by_nodes = [gain(0.1, num_nodes) for num_nodes in (1, 10, 100, 1000)]
    assert all(later <= earlier for gains in (by_r, by_nodes) for earlier, later in zip(gains, gains[1:], strict=False))
    assert by_nodes[0] == 1.0
    assert by_r[3] < 0.3
    assert by_nodes[3] < 0.3


def test_where_nodes_do_not_differ_from_a_smaller_batch_the_first_sentence_says_so():
    found = quick(stid(), [calendar_batch()])
    assert found.verdict[0].startswith("A smaller batch alone")
    # Nodes that have nothing in common are worth as much as windows.
    choice = settled(drawn_pairs(0.0, windows=600, nodes=50, signal=0.3), StepCost(100.0, 0.0, 1.0, 0.0))
    assert choice.full < 64
    assert choice.ratio > 0.95
    # A step that costs the same whatever is in it: the batch in use.
    choice = settled(drawn_pairs(0.0, nodes=50), StepCost(1.0, 0.0, 0.0, 0.0))
    assert (choice.full, choice.smaller_batch) == (64, 1.0)
    assert choice.ratio > 0.9


def test_alike_nodes_with_a_cost_per_node_pay_and_the_interval_holds_the_ratio():
    choice = settled(drawn_pairs(0.5, nodes=100, signal=0.1))
    assert choice.ratio < 0.5
    assert choice.interval[0] <= choice.ratio <= choice.interval[1]
    assert choice.drawn[1] < 10
    assert choice.smaller_batch < 0.6


def test_the_ratio_is_made_of_the_times_of_the_two_best_steps():
    pairs, asked = drawn_pairs(0.5, nodes=100, signal=0.1), []
    some = {"full": [8], "drawn": [(64, 5)]}

    def time_again(sizes):
        asked.append(sizes.tolist())
        return StepTimes(sizes, np.tile([2.0, 3.0], (4, 1)))

    plain, timed_again = settled(pairs, **some), settled(pairs, **some, time_again=time_again)
    assert asked == [[[8, 100], [64, 5]]]
    assert timed_again.times.seconds.shape == (4, 2)
    fitted = float(COST.at(64, 5) / COST.at(8, 100))
    assert timed_again.ratio == pytest.approx(plain.ratio * 1.5 / fitted)
    assert timed_again.interval[0] <= timed_again.ratio <= timed_again.interval[1]
    # The windows of one batch are not enough for this step, and a step needs no timing against itself.
    for drawn in ((65, 5), (8, 100)):
        assert settled(pairs, full=[8], drawn=[drawn], time_again=time_again).times is None
    assert len(asked) == 1


def test_long_training_leaves_less_to_gain():
    pairs = drawn_pairs(0.5, nodes=100, signal=0.1)
    ratios = [settled(pairs, budget=budget).ratio for budget in (1, 10_000, 100_000, 10**7)]
    assert ratios == sorted(ratios)
    assert ratios[0] == pytest.approx(settled(pairs).ratio, rel=1e-3)
    assert ratios[-1] > 0.95


@pytest.mark.parametrize(("ratio", "progress"), [(0.1, 0.3), (0.3, 1.0), (0.8, 5.0)])
def test_share_of_run_solves_its_equation(ratio, progress):
    share = share_of_run(ratio, progress)
    assert ratio < share < 1
    assert ratio / share + progress * 0.5 * (1 + math.cos(math.pi * share)) == pytest.approx(1.0)
    assert ENOUGH_STEPS > 0


def test_only_given_candidates_are_chosen():
    choice = settled(drawn_pairs(0.3, nodes=50, signal=0.1), full=[32, 8], drawn=[(64, 20), (16, 7)])
    assert choice.full in (32, 8)
    assert choice.drawn in ((64, 20), (16, 7))


# --- the whole -------------------------------------------------------------------------------------------------------


def test_result_is_the_same_again_apart_from_times_and_nothing_is_touched():
    model, batch = stid(), calendar_batch()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    model.train()
    first, second = (quick(model, [batch], seed=3) for _ in range(2))
    assert first.law.gradient == second.law.gradient
    assert first.r_interval == second.r_interval
    assert quick(model, [batch], seed=4).law.gradient != first.law.gradient
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


def test_result_fits_together():
    found = quick(stid(), [calendar_batch()])
    assert found.num_nodes == NODES
    assert found.num_windows == found.batch_in_use == 16
    assert not found.interacts
    assert found.bias_share == 0
    assert 0 < found.smaller_batch <= 1.02
    assert 0 <= found.window_bound <= 1
    law = found.law
    full = found.best_full_batch, NODES
    seconds = [law.cost.at(*full), law.cost.at(*found.best_drawn)]
    if found.best_times is not None:
        assert found.best_times.sizes.tolist() == [list(full), list(found.best_drawn)]
        seconds = typical(found.best_times.seconds)
    expected = float(seconds[1] / seconds[0] * law.steps(*found.best_drawn) / law.steps(*full))
    assert found.time_ratio == pytest.approx(expected)
    assert (found.batch_size, found.num_drawn) in ((found.best_full_batch, NODES), found.best_drawn)
    assert float(law.time(16, found.nodes_for(16))) == pytest.approx(
        float(law.time(16, np.arange(1, NODES + 1)).min()), rel=0.03
    )
    again = pickle.loads(pickle.dumps(found))
    assert again.law == found.law
    assert str(again) == str(found)
    sampler = stprune.PruningSampler(8, num_epochs=1, num_nodes=NODES, node_ratio=found.node_ratio)
    assert sampler.nodes(torch.arange(2)).shape[1] == found.num_drawn


def test_the_verdict_says_how_far_off_it_was_beside_a_study():
    said = f"off by a factor of {OFF_BY} (root mean square)"
    assert sum(said in text for text in quick(stid(), [calendar_batch()]).verdict) == 1
    rows = pathlib.Path(__file__).resolve().parents[1] / "benchmarks" / "README.md"  # made from the rows, see test_readme.py
    assert f"by a factor of {OFF_BY} on the root mean square" in rows.read_text(encoding="utf-8")


def test_table_names_the_numbers_and_keeps_its_width():
    found = quick(STAEformer(NODES, steps_per_day=24, dim=2, **SMALL), [calendar_batch()])
    lines = str(found).splitlines()
    assert max(len(line) for line in lines) <= 110
    assert any(f"{found.r:.3g} [" in line for line in lines)
    for name in ("batch in use", "best full training", "nodes drawn"):
        assert sum(line.startswith(name) for line in lines) == 1
    assert found.interacts
    assert found.bias_share >= 0
    assert "The model's nodes interact" in " ".join(lines).replace("  ", " ")


# --- node_ratio="auto" -----------------------------------------------------------------------------------------------


def auto(num_epochs=6, windows=16, **settings):
    return stprune.PruningSampler(
        windows, num_epochs=num_epochs, keep_ratio=0.5, method="soft-random", num_nodes=NODES, node_ratio="auto", **settings
    )


class Told:
    """A stand-in for a sampler that writes down what it was told."""

    auto_nodes, num_nodes, node_sampler, told = True, NODES, stprune.NodeSampler(), None

    def draw_next(self, num_drawn):
        self.told = num_drawn


def test_headroom_tells_the_sampler_the_best_number_of_nodes_for_the_batch_in_use():
    sampler = Told()
    found = quick(stid(), [calendar_batch()], sampler=sampler)
    pays = found.time_ratio <= 0.95 and found.interval[1] < 1
    assert sampler.told == (found.nodes_for(16) if pays else NODES)


def train(sampler, model, x, y, numbers, epochs, until=None, losses=None):
    """A user's loop that says before every epoch how many nodes it wants; stops after `until` batches of the last epoch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    criterion = stprune.PrunedLoss(sampler)
    losses = [] if losses is None else losses
    for epoch in epochs:
        if numbers.get(epoch):
            sampler.draw_next(numbers[epoch])
        sampler.set_epoch(epoch)
        for number, batch in enumerate(torch.utils.data.BatchSampler(sampler, 4, False)):
            if until is not None and epoch == epochs[-1] and number == until:
                return losses
            index = torch.tensor(batch)
            node = sampler.nodes(index)
            loss = criterion(
                model(stprune.gather_nodes(x[index], node)), stprune.gather_nodes(y[index], node), index, node=node
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append((epoch, node.shape[1], float(loss.detach())))
    return losses


def test_the_number_of_nodes_changes_between_epochs_and_a_resumed_run_goes_on_with_it():
    x, y = random_batch(horizon=1)
    numbers = {1: 3, 3: 2}
    model, sampler = linear_model(), auto()
    whole = train(sampler, model, x, y, numbers, range(5))
    assert sorted({(epoch, nodes) for epoch, nodes, _ in whole}) == [(0, NODES), (1, 3), (2, 3), (3, 2), (4, 2)]
    assert len({sum(1 for each in whole if each[0] == epoch) for epoch in range(5)}) == 1  # length of an epoch

    model, sampler = linear_model(), auto()
    losses = train(sampler, model, x, y, numbers, range(4), until=1)
    sampler.draw_next(5)  # told, but no epoch has begun since
    state = copy.deepcopy(sampler.state_dict())
    again = auto()
    again.load_state_dict(state)
    assert again.nodes(torch.arange(2)).shape[1] == 2
    assert again.node_ratio == 2 / NODES
    train(again, model, x, y, {}, range(3, 4), losses=losses)
    assert losses == [each for each in whole if each[0] < 4]
    again.set_epoch(4)
    assert again.nodes(torch.arange(2)).shape[1] == 5


def test_scores_of_pairs_outlive_another_number_of_nodes():
    sampler = auto(node_sampler="priority")
    index = torch.arange(4)
    sampler.node_sampler.update(index, sampler.nodes(index), torch.arange(24.0).view(4, 6))
    sampler.draw_next(2)
    sampler.set_epoch(1)
    assert sampler.node_sampler.table.rows(index).tolist() == torch.arange(24.0).view(4, 6).tolist()
    assert sampler.nodes(index).shape == sampler.node_weights(index, sampler.nodes(index)).shape == (4, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stprune.PruningSampler(8, num_epochs=2, node_ratio="auto"), "num_nodes must be given"),
        (
            lambda: stprune.PruningSampler(8, num_epochs=2, num_nodes=3, node_ratio="best"),
            "must be a number or 'auto', got 'best'",
        ),
        (lambda: auto(granularity="pair"), "node_ratio must be 1 for granularity 'pair', got auto"),
        (lambda: auto().draw_next(7), r"num_drawn must lie in \[1, 6\], got 7"),
        (lambda: stprune.PruningSampler(8, num_epochs=2, num_nodes=3).draw_next(2), "node_ratio must be 'auto', got 1"),
        (lambda: auto(node_sampler=stprune.Stratified(torch.arange(6) // 2)).draw_next(2), "at least one node of each of 3"),
    ],
)
def test_what_cannot_be_drawn_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_refused_number_changes_nothing():
    sampler = auto(node_sampler=stprune.Stratified(torch.arange(6) // 2))
    sampler.draw_next(4)
    with pytest.raises(ValueError, match="at least one node"):
        sampler.draw_next(1)
    sampler.set_epoch(1)
    assert sampler.nodes(torch.arange(2)).shape[1] == 4


def test_an_iterator_of_an_earlier_epoch_does_not_draw_another_number_of_nodes():
    sampler = auto()
    draw = sampler.node_draw()
    sampler.draw_next(2)
    sampler.set_epoch(1)
    with pytest.raises(RuntimeError, match="draws another number of nodes"):
        draw(torch.arange(2))


def test_a_loop_with_a_window_loader_renews_its_choice_by_headroom():
    series = torch.rand(60, NODES, generator=torch.Generator().manual_seed(0))
    features = {"time_features": torch.rand(60, 2, generator=torch.Generator().manual_seed(1))}
    sampler = auto(num_epochs=3, windows=37)
    loader = stprune.WindowLoader(series, sampler, batch_size=8, **features)
    every = stprune.WindowLoader(series, batch_size=8, target_channels=0, **features)
    model, counts = stid(), []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        shapes = {(x.shape[2], node.shape[1]) for _, node, x, _ in loader}
        counts.append(shapes)
        found = quick(model, every, sampler=sampler, num_windows=16)
        expected = found.nodes_for(8) if found.num_drawn < NODES else NODES
    assert counts[0] == {(NODES, NODES)}
    assert all(len(shapes) == 1 for shapes in counts)
    state = sampler.state_dict()["node_sampler"]
    assert state["auto"][1] == expected


# --- input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["pair", "triple", "nested", "drawn", "loader"])
def test_batches_may_come_as_loaders_give_them(form):
    x, y = calendar_batch()
    index = torch.arange(len(x))
    wrapped = {
        "pair": [(x, y)],
        "triple": [(index, x, y)],
        "nested": [(index, [x, y])],
        "drawn": [(index, torch.arange(NODES).expand(len(x), -1), x, y)],
        "loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16),
    }
    assert quick(stid(), wrapped[form]).law.gradient == quick(stid(), [(x, y)]).law.gradient


def test_only_as_many_windows_are_taken_as_asked_for():
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield calendar_batch(windows=6, seed=len(taken))

    found = quick(stid(), endless(), num_windows=15)
    assert found.num_windows == 15
    assert len(taken) == 3
    assert found.batch_in_use == 6


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
        ({"budget": 0}, ValueError, "budget must be at least 1, got 0"),
        ({"sampler": stprune.PruningSampler(8, num_epochs=1)}, ValueError, 'sampler must have node_ratio="auto", got 1'),
        (
            {"sampler": stprune.PruningSampler(8, num_epochs=1, num_nodes=NODES, node_ratio=0.5)},
            ValueError,
            'sampler must have node_ratio="auto", got 0.5',
        ),
        (
            {"sampler": stprune.PruningSampler(8, num_epochs=1, num_nodes=NODES, granularity="pair")},
            ValueError,
            'sampler must have node_ratio="auto", got 1.0',
        ),
        (
            {"sampler": stprune.PruningSampler(8, num_epochs=1, num_nodes=9, node_ratio="auto")},
            ValueError,
            "batches must have the sampler's 9 nodes, got 6",
        ),
        ({"sampler": 5}, TypeError, "sampler must be a PruningSampler, got int"),
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
