"""The reference forecasters: shapes, drawn nodes, gradients, and the inputs they refuse."""

from __future__ import annotations

import pytest
import torch

import stprune
from stprune.models import STID, GraphConv, STAEformer

BATCH, STEPS, NODES, DRAWN = 3, 12, 7, 4
KINDS = [STID, STAEformer, GraphConv]


def ring(nodes):
    """Adjacency of a ring with edges of different weights each way."""
    return torch.eye(nodes).roll(1, 0) + 0.5 * torch.eye(nodes).roll(-1, 0)


def build(kind, **settings):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return kind(ring(NODES) if kind is GraphConv else NODES, steps_per_day=96, dim=4, **settings)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(1)


@pytest.fixture
def x(generator):
    x = torch.rand(BATCH, STEPS, NODES, 3, generator=generator)
    # All nodes of a window share its time.
    x[..., 1:] = x[:, :, :1, 1:]
    return x


@pytest.fixture
def node(generator):
    rows = [torch.randperm(NODES, generator=generator)[:DRAWN].sort().values for _ in range(BATCH)]
    return torch.stack(rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("horizon", [1, 12])
def test_forecast_has_one_value_per_step_and_node(kind, horizon, x, node):
    model = build(kind, horizon=horizon)
    assert model(x).shape == (BATCH, horizon, NODES, 1)
    assert model(stprune.gather_nodes(x, node), node=node).shape == (BATCH, horizon, DRAWN, 1)


def test_stid_of_drawn_nodes_is_the_same_rows_of_the_full_forecast(x, node):
    model = build(STID)
    few = model(stprune.gather_nodes(x, node), node=node)
    # The same sums in another order of rows, so equal but for the matrix product's rounding.
    torch.testing.assert_close(few, stprune.gather_nodes(model(x), node), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_all_nodes_by_id_give_the_full_forecast(kind, x):
    model = build(kind)
    every = torch.arange(NODES).expand(BATCH, -1)
    torch.testing.assert_close(model(x, node=every), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [STAEformer, GraphConv])
def test_nodes_that_interact_see_the_drawn_ones_only(kind, x, node):
    model = build(kind)
    few = model(stprune.gather_nodes(x, node), node=node)
    assert not torch.allclose(few, stprune.gather_nodes(model(x), node), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_permuting_the_drawn_nodes_permutes_the_forecast(kind, x, node):
    model = build(kind)
    order = torch.tensor([2, 0, 3, 1])
    few = stprune.gather_nodes(x, node)
    torch.testing.assert_close(
        model(few[:, :, order], node=node[:, order]), model(few, node=node)[:, :, order], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_forecast_depends_on_which_nodes_the_ids_name(kind, x, node):
    model = build(kind)
    few = stprune.gather_nodes(x, node)
    other = (node + 1) % NODES
    assert not torch.allclose(model(few, node=node), model(few, node=other), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channel", [1, 2])
def test_forecast_depends_on_the_time_features(kind, channel, x):
    model = build(kind)
    later = x.clone()
    later[..., channel] = (later[..., channel] + 0.5) % 1
    assert not torch.allclose(model(x), model(later), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns_from_drawn_nodes(kind, x, node):
    model = build(kind)
    model(stprune.gather_nodes(x, node), node=node).square().sum().backward()
    for name, parameter in model.named_parameters():
        # A key's bias moves all of a token's attention scores alike, so only that third of the bias has no effect.
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_only_drawn_nodes_embeddings_get_a_gradient(x):
    model = build(STID)
    node = torch.tensor([[0, 3]] * BATCH)
    model(stprune.gather_nodes(x, node), node=node).sum().backward()
    moved = model.node_embedding.weight.grad.abs().sum(dim=1) > 0
    assert torch.equal(moved.nonzero().squeeze(1), torch.tensor([0, 3]))


@pytest.mark.parametrize("kind", KINDS)
def test_input_and_the_global_random_state_are_left_alone(kind, x):
    before, random = x.clone(), torch.get_rng_state()
    build(kind).train()(x).sum().backward()
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("steps_per_day", [96, 288, 1440])
def test_every_step_of_the_day_has_its_own_embedding(steps_per_day):
    # k / steps_per_day in float32 may lie just below k: it must still be row k.
    model = STID(1, history=1, horizon=1, steps_per_day=steps_per_day, dim=1, num_layers=1)
    x = torch.zeros(steps_per_day, 1, 1, 3)
    x[:, 0, 0, 1] = torch.arange(steps_per_day, dtype=torch.float64).div(steps_per_day).float()
    model(x).sum().backward()
    assert int((model.day_embedding.weight.grad != 0).sum()) == steps_per_day


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, node: (x.long(), None), TypeError, "x must be floating point"),
        (lambda x, node: (x[:, :5], None), ValueError, r"x must be \[B, 12, N, C\]"),
        (lambda x, node: (x[..., :2], None), ValueError, "C >= 3"),
        (lambda x, node: (x[0], None), ValueError, r"x must be \[B, 12, N, C\]"),
        (lambda x, node: (x[:, :, :DRAWN], None), ValueError, "all 7 nodes when node is None"),
        (lambda x, node: (x[:, :, :DRAWN], node.int()), TypeError, "node must be int64"),
        (lambda x, node: (x[:, :, :DRAWN], node[:, :2]), ValueError, r"node must be \[B, m\]"),
        (lambda x, node: (x[:, :, :DRAWN], node[:1]), ValueError, r"node must be \[B, m\]"),
        (lambda x, node: (x[:, :, :DRAWN], node + NODES), ValueError, r"node ids must lie in \[0, 7\)"),
        (lambda x, node: (x[:, :, :DRAWN], node - NODES), ValueError, r"node ids must lie in \[0, 7\)"),
    ],
)
def test_bad_input_is_refused_with_one_clear_error(kind, change, error, message, x, node):
    bad, ids = change(x, node)
    with pytest.raises(error, match=f"^{kind.__name__}: .*{message}"):
        build(kind)(bad, node=ids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["history", "horizon", "steps_per_day", "dim", "num_layers"])
def test_sizes_below_one_are_refused(kind, name):
    with pytest.raises(ValueError, match=f"^{kind.__name__}: {name} must be at least 1, got 0"):
        kind(ring(3) if kind is GraphConv else 3, **{name: 0})


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="num_heads must divide 4 \\* dim = 12, got 5"):
        STAEformer(3, dim=3, num_heads=5)


def test_graph_conv_averages_over_the_drawn_neighbours(node):
    model = build(GraphConv)
    rows = model.neighbour_weights(node)
    assert rows.shape == (BATCH, DRAWN, DRAWN)
    torch.testing.assert_close(rows.sum(dim=-1), torch.ones(BATCH, DRAWN))
    torch.testing.assert_close(model.neighbour_weights().sum(dim=-1), torch.ones(NODES))
    adjacency = ring(NODES) + torch.eye(NODES)
    for b in range(BATCH):
        for i, own in enumerate(node[b].tolist()):
            for j, other in enumerate(node[b].tolist()):
                total = sum(float(adjacency[own, each]) for each in node[b].tolist())
                assert float(rows[b, i, j]) == pytest.approx(float(adjacency[own, other]) / total)


def test_graph_conv_sees_as_far_as_it_has_layers(x):
    reach = build(GraphConv, num_layers=2)
    changed = x.clone()
    changed[:, :, 0, 0] += 1
    moved = (reach(changed) - reach(x)).abs().amax(dim=(0, 1, 3)) > 0
    assert moved.tolist() == [True, True, True, False, False, True, True]


def test_graph_conv_node_without_drawn_neighbours_keeps_itself(x):
    model = build(GraphConv)
    alone = torch.tensor([[0, 3]] * BATCH)
    assert torch.equal(model.neighbour_weights(alone), torch.eye(2).expand(BATCH, -1, -1))
    both = model(stprune.gather_nodes(x, alone), node=alone)
    one = model(x[:, :, 3:4], node=alone[:, 1:])
    torch.testing.assert_close(both[:, :, 1:], one, rtol=1e-5, atol=1e-6)


def test_graph_conv_keeps_loops_it_is_given_and_copies_the_adjacency():
    adjacency = ring(3)
    adjacency[0, 0] = 4.0
    model = GraphConv(adjacency, steps_per_day=4, dim=2)
    assert model.adjacency.diagonal().tolist() == [4.0, 1.0, 1.0]
    assert adjacency.diagonal().tolist() == [4.0, 0.0, 0.0]
    adjacency.zero_()
    assert model.adjacency.sum() > 0
    assert torch.equal(model.state_dict()["adjacency"], model.adjacency)


@pytest.mark.parametrize(
    ("adjacency", "error", "message"),
    [
        ([[1.0]], TypeError, "must be a floating tensor, got list"),
        (torch.eye(3).bool(), TypeError, "must be a floating tensor, got torch.bool"),
        (torch.ones(3), ValueError, r"must be \[N, N\] with N at least 1, got \[3\]"),
        (torch.ones(3, 4), ValueError, r"must be .* got \[3, 4\]"),
        (torch.ones(0, 0), ValueError, r"must be .* got \[0, 0\]"),
        (-torch.eye(3), ValueError, "must be finite and not negative"),
        (torch.full((2, 2), float("nan")), ValueError, "must be finite and not negative"),
    ],
)
def test_graph_conv_refuses_what_is_no_adjacency(adjacency, error, message):
    with pytest.raises(error, match=f"^GraphConv: adjacency {message}"):
        GraphConv(adjacency)
