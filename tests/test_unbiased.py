"""Must hold: with the model frozen, the weighted gradient has the full gradient as its expectation."""

import pytest
import torch

import stprune

DRAWS = 400
UNBIASED = sorted(name for name, kind in stprune.METHODS.items() if kind.unbiased)


def frozen(n=240, nodes=6, seed=0):
    """A linear model on windows of very different size, its per-sample gradients and its scores."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, nodes, 4, generator=g)
    y = torch.randn(n, 3, nodes, 1, generator=g) * torch.empty(n, 1, 1, 1).log_normal_(generator=g)
    weight = torch.randn(4, 1, generator=g)
    return x, y, weight


def gradient(criterion, x, y, weight, index, node=None):
    weight = weight.clone().requires_grad_()
    prediction, target = x[index] @ weight, y[index]
    if node is not None:
        prediction, target = stprune.gather_nodes(prediction, node), stprune.gather_nodes(target, node)
    criterion(prediction, target, index, node).backward()
    return weight.grad.squeeze(1).double()


def assert_within_4_standard_errors(draws, full):
    draws = torch.stack(draws)
    error = (draws.mean(0) - full).abs()
    standard_error = draws.std(0) / len(draws) ** 0.5
    assert bool((error <= 4 * standard_error + 1e-6 * full.abs().max()).all()), (error / standard_error).tolist()


def full_gradient(x, y, weight, **settings):
    n = x.shape[0]
    sampler = stprune.PruningSampler(n, num_epochs=1, method="full")
    return gradient(stprune.PrunedLoss(sampler, **settings), x, y, weight, torch.arange(n))


def window_draws(sampler, rescale, x, y, weight, scores, **settings):
    """[DRAWS, 4]: the gradient of each epoch's kept samples, whose plan is made from the same scores each time.

    With `epoch_sum` it is the sum over the kept samples, with `per_step` the mean.
    """
    criterion = stprune.PrunedLoss(sampler, rescale=rescale, **settings)
    draws = []
    for epoch in range(1, DRAWS + 1):
        if sampler.method.needs_scores:
            sampler.table = stprune.ScoreTable(len(x))
            sampler.update(torch.arange(len(x)), scores)
        sampler.set_epoch(epoch)
        kept = sampler.plan.indices
        node = sampler.nodes(kept) if sampler.node_ratio < 1 else None
        draws.append(gradient(criterion, x, y, weight, kept, node) * (len(kept) if rescale == "epoch_sum" else 1))
    return draws


def sampler_of(n, **settings):
    return stprune.PruningSampler(n, **{"num_epochs": DRAWS + 2, "schedule": "none", "keep_ratio": 0.5, **settings})


@pytest.mark.parametrize("method", UNBIASED)
@pytest.mark.parametrize("keep_ratio", [0.25, 0.5])
def test_epoch_sum_of_windows(method, keep_ratio):
    """epoch_sum: the sum over the kept set of w_i grad_i estimates the sum over all samples."""
    x, y, weight = frozen()
    n = x.shape[0]
    scores = stprune.score(x @ weight, y)
    if method == "infobatch":
        # unbiased where keep_ratio * pool is whole: a quarter of the samples above the mean, 180 below it
        scores = torch.where(scores >= scores.topk(60).values[-1], 100.0, 1.0) + scores / scores.max()
        assert int((scores < scores.mean()).sum()) == 180
    sampler = sampler_of(n, method=method, keep_ratio=keep_ratio)
    assert_within_4_standard_errors(window_draws(sampler, "epoch_sum", x, y, weight, scores), full_gradient(x, y, weight) * n)


def test_the_test_has_teeth():
    """A biased method with weights of 1 must fail the very same test."""
    x, y, weight = frozen()
    sampler = sampler_of(len(x), method="epsilon-greedy")
    draws = window_draws(sampler, "epoch_sum", x, y, weight, stprune.score(x @ weight, y))
    with pytest.raises(AssertionError):
        assert_within_4_standard_errors(draws, full_gradient(x, y, weight) * len(x))


def test_per_step_estimates_the_mean_gradient():
    """Defect 13 of InfoBatch: the step must not grow with what is pruned."""
    x, y, weight = frozen()
    sampler = sampler_of(len(x))
    mean = torch.stack(window_draws(sampler, "per_step", x, y, weight, stprune.score(x @ weight, y))).mean(0)
    assert float(sampler.plan.weights.double().mean()) / sampler.plan.mean_weight == pytest.approx(1.0, rel=1e-12)
    full = full_gradient(x, y, weight)
    # self-normalised: a ratio estimator, biased by O(1 / K); allow that order on top of the noise
    assert bool(((mean - full).abs() <= 0.02 * full.abs().max()).all())


def any_loss_draws(method, x, y, weight):
    """[DRAWS, 4]: gradients of a loss of one's own, which is negative for many windows, and its full gradient, both sums."""

    def values(index, weight):
        prediction = x[index] @ weight
        return ((prediction - y[index]).square() - y[index].square()).mean((2, 3))

    x, y, weight = x.double(), y.double(), weight.double()
    n, everything = len(x), torch.arange(len(x))
    wanted = weight.clone().requires_grad_()
    losses = values(everything, wanted).mean(1)
    assert 0.2 < float((losses < 0).float().mean()) < 0.8
    (full,) = torch.autograd.grad(losses.sum(), wanted)
    scores = losses.detach() - losses.detach().min() + 0.1
    if method == "infobatch":
        scores = torch.where(scores >= scores.topk(60).values[-1], 100.0, 1.0) + scores / scores.max()
    sampler = sampler_of(n, method=method)
    criterion = stprune.PrunedMean(sampler, rescale="epoch_sum")
    draws = []
    for epoch in range(1, DRAWS + 1):
        if sampler.method.needs_scores:
            sampler.table = stprune.ScoreTable(n)
            sampler.update(everything, scores)
        sampler.set_epoch(epoch)
        kept = sampler.plan.indices
        drawn = weight.clone().requires_grad_()
        criterion(values(kept, drawn), kept).backward()
        draws.append(drawn.grad.squeeze(1) * len(kept))
    return draws, full.squeeze(1)


@pytest.mark.parametrize("method", UNBIASED)
def test_any_loss(method):
    assert_within_4_standard_errors(*any_loss_draws(method, *frozen()))


@pytest.mark.parametrize("method", ["top-k", "epsilon-greedy"])
def test_any_loss_has_teeth(method):
    with pytest.raises(AssertionError):
        assert_within_4_standard_errors(*any_loss_draws(method, *frozen()))


SAMPLERS = {
    "uniform": "uniform",
    "priority": stprune.Priority(floor=0.1),
    "stratified": stprune.Stratified(torch.tensor([0] * 7 + [1] * 5)),
    "cluster": stprune.Cluster(torch.diag(torch.ones(11), 1)),
}


def by_sampler(name, x, y, weight):
    """Gradients of draws of a quarter of the nodes, after one pass that scored all pairs."""
    n, nodes = x.shape[0], x.shape[2]
    sampler = stprune.PruningSampler(
        n, num_epochs=DRAWS + 1, keep_ratio=1.0, num_nodes=nodes, node_ratio=0.25, node_sampler=SAMPLERS[name]
    )
    criterion = stprune.PrunedLoss(sampler)
    everything = torch.arange(nodes).expand(n, -1)
    if sampler.wants_pair_scores:
        sampler.node_sampler.table.update(torch.arange(n), everything, (x @ weight - y).abs().mean((1, 3)))
    draws = []
    for epoch in range(DRAWS):
        sampler.set_epoch(epoch)
        index = sampler.plan.indices
        draws.append(gradient(criterion, x, y, weight, index, sampler.nodes(index)))
    return draws, sampler


@pytest.mark.parametrize("name", SAMPLERS)
def test_node_samplers(name):
    """The weights of eq. 12 inside the loss: priority, stratified and cluster draws estimate the mean over all nodes."""
    x, y, weight = frozen(n=60, nodes=12)
    y = y * torch.linspace(0.2, 4.0, 12).view(1, 1, 12, 1)
    draws, _ = by_sampler(name, x, y, weight)
    assert_within_4_standard_errors(draws, full_gradient(x, y, weight))


@pytest.mark.parametrize("name", ["priority", "stratified"])
def test_node_samplers_need_their_weights(name, monkeypatch):
    x, y, weight = frozen(n=60, nodes=12)
    y = y * torch.linspace(0.2, 4.0, 12).view(1, 1, 12, 1)
    monkeypatch.setattr(stprune.PruningSampler, "node_weights", lambda self, index, node: None)
    draws, _ = by_sampler(name, x, y, weight)
    with pytest.raises(AssertionError):
        assert_within_4_standard_errors(draws, full_gradient(x, y, weight))


def test_the_loss_scores_the_drawn_pairs():
    x, y, weight = frozen(n=60, nodes=12)
    _, sampler = by_sampler("priority", x, y, weight)
    rows = sampler.node_sampler.table.rows(torch.arange(60))
    assert torch.allclose(rows, (x @ weight - y).abs().mean((1, 3)), rtol=2.0**-8)


def test_windows_and_node_draws_together():
    x, y, weight = frozen(n=200, nodes=8)
    sampler = sampler_of(200, keep_ratio=0.4, num_nodes=8, node_ratio=0.5)
    draws = window_draws(sampler, "epoch_sum", x, y, weight, stprune.score(x @ weight, y))
    assert_within_4_standard_errors(draws, full_gradient(x, y, weight) * 200)


def with_holes(n):
    """Windows with 3 to 11 of 12 nodes observed, the more the larger their errors; and which nodes are."""
    x, y, weight = frozen(n=n, nodes=12)
    observed = torch.rand(n, 12, generator=torch.Generator().manual_seed(9)).argsort(1) < 3 + (torch.arange(n) % 9).unsqueeze(1)
    size = observed.sum(1).view(-1, 1, 1, 1) * torch.linspace(0.2, 4.0, 12).view(1, 1, 12, 1)
    return x, torch.where(observed[:, None, :, None], y * size, 0.0), weight, observed


@pytest.mark.parametrize("keep_ratio", [0.4, 1.0])
@pytest.mark.parametrize("function", [False, True])
def test_observed_nodes(keep_ratio, function):
    """3 of the observed nodes of each window estimate the masked loss of all windows and nodes, also of kept windows."""
    x, y, weight, observed = with_holes(180)
    chosen = stprune.Observed(observed.__getitem__ if function else observed)
    sampler = sampler_of(180, keep_ratio=keep_ratio, num_nodes=12, node_ratio=0.25, node_sampler=chosen)
    scores = stprune.score(x @ weight, y, null_value=0.0)
    draws = window_draws(sampler, "epoch_sum", x, y, weight, scores, null_value=0.0)
    assert_within_4_standard_errors(draws, full_gradient(x, y, weight, null_value=0.0) * 180)


def test_observed_nodes_need_their_weights(monkeypatch):
    """With equal weights a window with few observed nodes would count for as much as one with many."""
    x, y, weight, observed = with_holes(180)
    sampler = sampler_of(180, keep_ratio=0.4, num_nodes=12, node_ratio=0.25, node_sampler=stprune.Observed(observed))
    monkeypatch.setattr(stprune.PruningSampler, "node_weights", lambda self, index, node: None)
    scores = stprune.score(x @ weight, y, null_value=0.0)
    draws = window_draws(sampler, "epoch_sum", x, y, weight, scores, null_value=0.0)
    with pytest.raises(AssertionError):
        assert_within_4_standard_errors(draws, full_gradient(x, y, weight, null_value=0.0) * 180)


@pytest.mark.parametrize("method", ["st-prune", "soft-random"])
def test_epoch_sum_of_pairs(method):
    """The sum over the kept pairs of window and node estimates that over all pairs, by score and uniformly."""
    x, y, weight = frozen(n=40, nodes=7)
    pair_x, pair_y = (a.transpose(1, 2).reshape(280, 3, 1, -1) for a in (x, y))
    sampler = sampler_of(40, num_nodes=7, granularity="pair", method=method, keep_ratio=0.3)
    draws = window_draws(sampler, "epoch_sum", pair_x, pair_y, weight, stprune.score(pair_x @ weight, pair_y))
    assert_within_4_standard_errors(draws, full_gradient(pair_x, pair_y, weight) * 280)
