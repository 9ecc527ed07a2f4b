"""Graph WaveNet: its supports, and its forecast against the paper's equations written out step by step."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stprune.models import GraphWaveNet

NODES = 6


def build(adjacency="given", **settings):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        graph = torch.rand(NODES, NODES) * (torch.rand(NODES, NODES) < 0.4) if adjacency == "given" else adjacency
        sizes = {"residual_dim": 4, "dilation_dim": 5, "skip_dim": 6, "end_dim": 7}
        return GraphWaveNet(NODES, graph, **{**sizes, **settings})


@pytest.fixture
def x():
    return torch.rand(2, 12, NODES, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def node():
    return torch.tensor([[0, 2, 5], [4, 1, 3]])


def test_supports_of_drawn_nodes_are_renormalised(node):
    model = build()
    found = [support.tolist() for support in model.supports(node)]
    graph = model.adjacency.tolist()
    source, target = model.source_embedding.weight.detach(), model.target_embedding.weight.detach()
    for window, ids in enumerate(node.tolist()):
        for i, one in enumerate(ids):
            forward = sum(graph[one][other] for other in ids)
            backward = sum(graph[other][one] for other in ids)
            learned = [torch.relu(source[one] @ target[other]).exp() for other in ids]
            for j, other in enumerate(ids):
                got = [support[window][i][j] for support in found]
                expected = [graph[one][other] / forward, graph[other][one] / backward, float(learned[j] / sum(learned))]
                assert got == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("drawn", [False, True])
def test_rows_of_every_support_sum_to_one(drawn, node):
    for adjacency, count in (("given", 3), (None, 1)):
        found = build(adjacency).supports(node if drawn else None)
        assert len(found) == count
        for support in found:
            # All nodes: one matrix for all windows.
            assert support.shape == ((2, 3, 3) if drawn else (1, NODES, NODES))
            torch.testing.assert_close(support.sum(dim=-1), torch.ones(support.shape[:2]))


def written_out(model, x, node, num_blocks, num_layers):
    """The forecast with every step of every layer, and powers of the supports formed: [B, horizon, n, 1]."""
    supports = [each.expand(len(x), -1, -1) for each in model.supports(node)]
    hidden = model.input_map(F.pad(x, (0, 0, 0, 0, max(0, model.receptive_field - x.shape[1]), 0)))
    skips = 0
    for place, layer in enumerate(model.layers):
        dilation = 2 ** (place % num_layers)
        old, new = hidden[:, :-dilation], hidden[:, dilation:]
        pair = torch.cat([old, new], dim=-1)
        gated = torch.tanh(layer.filter(pair)) * torch.sigmoid(layer.gate(pair))
        skips = skips + layer.skip(gated)[:, -1]
        if place == num_blocks * num_layers - 1:
            break
        maps = iter(layer.diffusion.others)
        mixed = layer.diffusion.own(gated)
        for support in supports:
            for power in (support, support @ support):
                mixed = mixed + next(maps)(torch.einsum("bij,btjc->btic", power, gated))
        hidden = mixed + new
        hidden = layer.norm(hidden.flatten(0, 2)).view_as(hidden)
    forecast = model.head(torch.relu(model.end_map(torch.relu(skips))))
    return forecast.transpose(1, 2).unsqueeze(-1)


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("adjacency", ["given", None])
@pytest.mark.parametrize(("num_blocks", "num_layers"), [(4, 2), (1, 4), (2, 3), (1, 1)])
def test_forecast_is_the_papers_equations_written_out(num_blocks, num_layers, adjacency, drawn, x, node):
    model = build(adjacency, num_blocks=num_blocks, num_layers=num_layers).eval()
    if drawn:
        x = torch.stack([window[:, ids] for window, ids in zip(x, node, strict=True)])
    node = node if drawn else None
    expected = written_out(model, x, node, num_blocks, num_layers)
    torch.testing.assert_close(model(x, node=node), expected, rtol=1e-4, atol=1e-5)


def test_few_edges_change_the_products_but_not_the_result():
    nodes = 41
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        # With its loops, two of 41 entries a row: under the 5% that make products sparse.
        model = GraphWaveNet(nodes, torch.rand(nodes, 1) * torch.eye(nodes).roll(1, 0), residual_dim=4, dilation_dim=4)
        x = torch.rand(2, 12, nodes, 3)
    kept = []
    for layer in model.layers[:-1]:
        layer.diffusion.register_forward_pre_hook(lambda _, given: kept.append(given[1][0].is_sparse))
    found = []
    for node in (None, torch.arange(nodes).expand(2, -1)):
        forecast = model(x, node=node)
        found.append((forecast, torch.autograd.grad(forecast.square().sum(), list(model.parameters()))))
    assert kept == [True] * 7 + [False] * 7
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)


def test_diffusion_starts_as_one_map_of_all_its_terms():
    for layer in build().layers[:-1]:
        weights = torch.cat([parameter.detach().flatten() for parameter in layer.diffusion.parameters()])
        bound = (7 * 5) ** -0.5  # seven terms of five channels
        assert 0.9 * bound < float(weights.abs().max()) <= bound


def test_a_node_alone_keeps_itself(x):
    model = build(torch.eye(NODES).roll(1, 0)).eval()
    forward, backward, _ = model.supports(torch.tensor([[0, 3]]))
    assert torch.equal(forward[0], torch.eye(2))
    assert torch.equal(backward[0], torch.eye(2))


def test_adjacency_is_copied_and_saved():
    graph = torch.ones(NODES, NODES)
    model = build(graph)
    graph.zero_()
    assert torch.equal(model.state_dict()["adjacency"], torch.ones(NODES, NODES))
    assert "adjacency" not in build(None).state_dict()


@pytest.mark.parametrize("history", [1, 5, 20])
def test_steps_in_the_receptive_field_are_read_and_no_older_ones(history):
    # In double precision, where the oldest step's small part is not rounded away.
    model = build(history=history).eval().double()
    assert model.receptive_field == 13
    x = torch.rand(1, history, NODES, 3, generator=torch.Generator().manual_seed(2)).double()
    for step in range(history):
        changed = x.clone()
        changed[:, step] += 1
        assert torch.equal(model(changed), model(x)) == (step < history - 13)


@pytest.mark.parametrize(("norm", "training", "alone"), [("batch", True, False), ("batch", False, True), ("layer", True, True)])
def test_norm_says_whether_the_batch_matters(norm, training, alone, x):
    model = build(norm=norm).train(training)
    one, both = model(x[:1]), model(x)[:1]
    assert torch.allclose(one, both, rtol=1e-4, atol=1e-5) == alone


def test_evaluation_with_batch_norm_uses_running_means(x):
    model = build().train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(x)
    moved = [name for name, value in model.named_buffers() if not torch.equal(value, before[name])]
    assert [name for name in moved if name.endswith("running_mean")] == [f"layers.{k}.norm.running_mean" for k in range(7)]
