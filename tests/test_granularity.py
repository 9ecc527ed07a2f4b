"""Pairs of window and node as samples: ids, plans that store nothing, resume, training."""

import pytest
import torch

import stprune

N, W = 7, 40


def pairs(method="soft-random", **settings):
    return stprune.PruningSampler(
        W, num_epochs=6, num_nodes=N, granularity="pair", method=method, **{"keep_ratio": 0.25, "schedule": "none", **settings}
    )


def test_granularity_follows_from_the_other_arguments():
    assert stprune.PruningSampler(W, num_epochs=1).granularity == "window"
    assert stprune.PruningSampler(W, num_epochs=1, num_nodes=N).granularity == "node"
    assert stprune.PruningSampler(W, num_epochs=1, num_nodes=N, granularity="window").granularity == "window"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"granularity": "edge"}, "granularity must be one of window, node, pair, got 'edge'"),
        ({"granularity": "pair"}, "num_nodes must be given for granularity 'pair'"),
        ({"granularity": "node"}, "num_nodes must be given for granularity 'node'"),
        ({"granularity": "pair", "num_nodes": 5, "node_ratio": 0.5}, "node_ratio must be 1 for granularity 'pair', got 0.5"),
        ({"granularity": "window", "num_nodes": 5, "node_ratio": 0.5}, "node_ratio must be 1 for granularity 'window'"),
        (
            {"granularity": "pair", "num_nodes": 5, "node_sampler": "priority"},
            "node_sampler must be 'uniform' for granularity 'pair'",
        ),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        stprune.PruningSampler(W, num_epochs=1, **settings)


@pytest.mark.parametrize("method", ["soft-random", "st-prune", "full", "infobatch", "rs2"])
def test_ids_are_pairs(method):
    sampler = pairs(method)
    if sampler.method.needs_scores:
        sampler.update(torch.arange(W * N), torch.rand(W * N, generator=torch.Generator().manual_seed(0)))
    sampler.set_epoch(1)
    index = torch.tensor(list(sampler))
    assert len(index) == len(sampler) == len(set(index.tolist()))
    assert 0 <= int(index.min()) <= int(index.max()) < W * N
    if method != "infobatch":
        assert len(index) == (W * N if method == "full" else 70)
    window, node = sampler.windows(index), sampler.nodes(index)
    assert node.shape == (len(index), 1)
    assert torch.equal(window * N + node[:, 0], index)
    assert sampler.node_weights(index, node) is None


def test_a_lazy_plan_stores_nothing_and_is_an_exact_draw():
    sampler = pairs()
    sampler.set_epoch(2)
    plan = sampler.plan
    assert isinstance(plan, stprune.UniformPlan)
    assert not sampler.table.stored
    assert torch.equal(plan.order(0, 70)[plan.positions(plan.indices)], plan.indices)
    assert torch.equal(torch.tensor(sorted(sampler)), plan.indices)
    assert plan.mean_weight == 4.0
    assert torch.equal(plan.weights, torch.full((70,), 4.0))
    other = pairs()
    other.set_epoch(3)
    assert not torch.equal(other.plan.indices, plan.indices)
    weights, known = plan.lookup(torch.arange(W * N))
    assert torch.equal(known.nonzero().squeeze(1), plan.indices)
    assert torch.equal(weights, torch.where(known, 4.0, 0.0))


def test_a_method_of_ones_own_is_asked_whatever_its_name():
    class EvenNodes(stprune.Method):
        name = "soft-random"
        needs_scores = False

        def inclusion(self, scores, *, keep_ratio, seed, epoch):
            return (torch.arange(len(scores)) % N % 2 == 0).float()

    sampler = pairs(EvenNodes(), keep_ratio=4 / 7)
    sampler.set_epoch(1)
    assert torch.equal(sampler.plan.indices % N % 2, torch.zeros(4 * W, dtype=torch.int64))


def test_more_pairs_than_fit_into_32_bits():
    """Five years of LargeST California: 4.5 * 10^9 pairs, of which nothing is stored."""
    windows, nodes = 525_888, 8600
    sampler = stprune.PruningSampler(
        windows, num_epochs=2, num_nodes=nodes, granularity="pair", method="soft-random", keep_ratio=0.1, schedule="none"
    )
    sampler.set_epoch(1)
    assert len(sampler) == round(0.1 * windows * nodes)
    index = torch.from_numpy(next(iter(sampler.batches(20_000))))
    assert len(torch.unique(index)) == 20_000
    assert 0 <= int(index.min()) <= int(index.max()) < windows * nodes
    assert int(index.max()) > 2**32
    assert torch.equal(sampler.windows(index) * nodes + sampler.nodes(index)[:, 0], index)


@pytest.mark.parametrize("method", ["soft-random", "st-prune"])
def test_resume_in_the_middle_of_an_epoch(method, tmp_path):
    sampler = pairs(method)
    if method == "st-prune":
        sampler.update(torch.arange(W * N), torch.rand(W * N, generator=torch.Generator().manual_seed(0)))
    sampler.set_epoch(1)
    batches = [torch.from_numpy(batch) for batch in sampler.batches(8)]
    for batch in batches[:3]:
        sampler.update(batch, torch.ones(len(batch)))
    torch.save(sampler.state_dict(), tmp_path / "state.pt")
    again = pairs(method)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert len(again) == len(sampler)
    left = torch.cat([torch.from_numpy(batch) for batch in again.batches(8)])
    assert torch.equal(left, torch.cat(batches[3:]))


def test_loss_of_ids_outside_the_data():
    sampler = pairs()
    criterion = stprune.PrunedLoss(sampler)
    prediction = torch.zeros(1, 3, 1, requires_grad=True)
    with pytest.raises(ValueError, match=f"index must lie in \\[0, {W * N - 1}\\], got {W * N}"):
        criterion(prediction, torch.ones(1, 3, 1), torch.tensor([W * N]))


@pytest.mark.parametrize("method", ["soft-random", "st-prune"])
def test_window_loader_delivers_pairs(method):
    series = torch.randn(W + 7, N, 2, generator=torch.Generator().manual_seed(0))
    sampler = pairs(method, keep_ratio=0.5)
    loader = stprune.WindowLoader(series, sampler, batch_size=16, history=5, horizon=3)
    criterion = stprune.PrunedLoss(sampler)
    scale = torch.ones(2, requires_grad=True)
    seen = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        for index, node, x, y in loader:
            assert x.shape == (len(index), 5, 1, 2)
            for row in range(len(index)):
                window, own = divmod(int(index[row]), N)
                assert int(node[row]) == own
                assert torch.equal(x[row, :, 0], series[window : window + 5, own])
                assert torch.equal(y[row, :, 0], series[window + 5 : window + 8, own])
            criterion(x[:, -3:] * scale, y, index, node).backward()
            seen.append(index)
    assert scale.grad is not None
    if method == "st-prune":
        assert bool(torch.isfinite(sampler.table.scores).all())
        assert len(torch.cat(seen)) == W * N + W * N // 2


def test_window_loader_refuses_what_does_not_fit():
    series = torch.zeros(W + 7, N, 2)
    with pytest.raises(ValueError, match="sampler must have num_nodes = 6 as the series has, got 7"):
        stprune.WindowLoader(series[:, :6], pairs(), batch_size=4, history=5, horizon=3)
    with pytest.raises(ValueError, match="sampler must have 41 samples, one a window, got 40"):
        stprune.WindowLoader(torch.zeros(W + 8, N, 2), pairs(), batch_size=4, history=5, horizon=3)
