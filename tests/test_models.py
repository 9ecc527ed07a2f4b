"""The reference forecasters: shapes, drawn nodes, gradients, and the inputs they refuse."""

from __future__ import annotations

import pytest
import torch

import stprune
from stprune.models import STID, GraphConv, GraphWaveNet, STAEformer, TSMixer

BATCH, STEPS, NODES, DRAWN = 3, 12, 7, 4
# Small sizes, where the defaults are the papers'; a size by default has a test of its own.
SMALL = {
    STID: {"steps_per_day": 96, "dim": 4},
    TSMixer: {"dim": 4},
    STAEformer: {"steps_per_day": 96, "dim": 4, "adaptive_dim": 4, "feed_forward_dim": 8, "num_layers": 1},
    GraphConv: {"steps_per_day": 96, "dim": 4},
    GraphWaveNet: {"residual_dim": 4, "dilation_dim": 5, "skip_dim": 6, "end_dim": 7},
}
KINDS = list(SMALL)
WITH_EMBEDDINGS = [STID, STAEformer, GraphConv, GraphWaveNet]
NODES_INTERACT = [STAEformer, GraphConv, GraphWaveNet]


def ring(nodes):
    """Adjacency of a ring with edges of different weights each way."""
    return torch.eye(nodes).roll(1, 0) + 0.5 * torch.eye(nodes).roll(-1, 0)


def build(kind, **settings):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return kind(*first_arguments(kind, NODES), **{**SMALL[kind], **settings})


def first_arguments(kind, nodes):
    """What a model is built on: its nodes, its graph."""
    return {TSMixer: (), GraphConv: (ring(nodes),), GraphWaveNet: (nodes, ring(nodes))}.get(kind, (nodes,))


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


@pytest.mark.parametrize("kind", [STID, TSMixer])
def test_forecast_of_independent_nodes_is_the_same_rows_of_the_full_forecast(kind, x, node):
    model = build(kind)
    few = model(stprune.gather_nodes(x, node), node=node)
    # The same sums in another order of rows, so equal but for the matrix product's rounding.
    torch.testing.assert_close(few, stprune.gather_nodes(model(x), node), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_all_nodes_by_id_give_the_full_forecast(kind, x):
    model = build(kind)
    every = torch.arange(NODES).expand(BATCH, -1)
    torch.testing.assert_close(model(x, node=every), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", NODES_INTERACT)
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


@pytest.mark.parametrize("kind", WITH_EMBEDDINGS)
def test_forecast_depends_on_which_nodes_the_ids_name(kind, x, node):
    model = build(kind)
    few = stprune.gather_nodes(x, node)
    other = (node + 1) % NODES
    assert not torch.allclose(model(few, node=node), model(few, node=other), atol=1e-4)


@pytest.mark.parametrize("kind", WITH_EMBEDDINGS)
@pytest.mark.parametrize("channel", [1, 2])
def test_forecast_depends_on_the_time_features(kind, channel, x):
    model = build(kind)
    later = x.clone()
    later[..., channel] = (later[..., channel] + 0.5) % 1
    assert not torch.allclose(model(x), model(later), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns_from_drawn_nodes(kind, x, node):
    # In training, batch norm takes the biases before it out again.
    model = build(kind).eval()
    model(stprune.gather_nodes(x, node), node=node).square().sum().backward()
    for name, parameter in model.named_parameters():
        # A key's bias moves all of a token's attention scores alike, so only that third of the bias has no effect.
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("kind", "table"),
    [
        (STID, "node_embedding"),
        (STAEformer, "adaptive_embedding"),
        (GraphWaveNet, "source_embedding"),
        (GraphWaveNet, "target_embedding"),
    ],
)
def test_only_drawn_nodes_embeddings_get_a_gradient(kind, table, x):
    model = build(kind)
    node = torch.tensor([[0, 3]] * BATCH)
    model(stprune.gather_nodes(x, node), node=node).square().sum().backward()
    moved = getattr(model, table).weight.grad.abs().sum(dim=1) > 0
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
def test_a_seed_gives_the_same_bits_again(kind, x, node):
    def gradients():
        model = build(kind)
        model(stprune.gather_nodes(x, node), node=node).square().sum().backward()
        return [parameter.grad for parameter in model.parameters()]

    assert all(torch.equal(one, other) for one, other in zip(gradients(), gradients(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, node: (x.long(), None), TypeError, "x must be floating point"),
        (lambda x, node: (x[:, :5], None), ValueError, r"x must be \[B, 12, N, C\]"),
        (lambda x, node: (x[..., :2], None), ValueError, "C >= 3"),
        (lambda x, node: (x[0], None), ValueError, r"x must be \[B, 12, N, C\]"),
        (lambda x, node: (x[:, :, :DRAWN], node.int()), TypeError, "node must be int64"),
        (lambda x, node: (x[:, :, :DRAWN], node[:, :2]), ValueError, r"node must be \[B, m\]"),
        (lambda x, node: (x[:, :, :DRAWN], node[:1]), ValueError, r"node must be \[B, m\]"),
    ],
)
def test_bad_input_is_refused_with_one_clear_error(kind, change, error, message, x, node):
    bad, ids = change(x, node)
    with pytest.raises(error, match=f"^{kind.__name__}: .*{message}"):
        build(kind)(bad, node=ids)


@pytest.mark.parametrize("kind", WITH_EMBEDDINGS)
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (lambda node: None, "x must hold all 7 nodes when node is None"),
        (lambda node: node + NODES, r"node ids must lie in \[0, 7\)"),
        (lambda node: node - NODES, r"node ids must lie in \[0, 7\)"),
    ],
)
def test_unknown_nodes_are_refused(kind, ids, message, x, node):
    with pytest.raises(ValueError, match=f"^{kind.__name__}: {message}"):
        build(kind)(x[:, :, :DRAWN], node=ids(node))


SIZES = {
    STID: "num_nodes history horizon steps_per_day dim num_layers",
    TSMixer: "history horizon patch_length dim num_layers expansion",
    STAEformer: "num_nodes history horizon steps_per_day dim adaptive_dim feed_forward_dim num_layers num_heads",
    GraphConv: "history horizon steps_per_day dim num_layers",
    GraphWaveNet: "num_nodes history horizon num_blocks num_layers residual_dim dilation_dim skip_dim end_dim",
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in SIZES[kind].split()])
def test_sizes_below_one_are_refused(kind, name):
    first = {} if kind in (TSMixer, GraphConv) else {"num_nodes": 3}
    graph = {"adjacency": ring(3)} if kind is GraphConv else {}
    with pytest.raises(ValueError, match=f"^{kind.__name__}: {name} must be at least 1, got 0"):
        kind(**{**first, **graph, name: 0})


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"^STAEformer: num_heads must divide 3 \* dim \+ adaptive_dim = 13, got 5"):
        STAEformer(3, dim=3, adaptive_dim=4, num_heads=5)
    with pytest.raises(ValueError, match="^TSMixer: patch_length must divide history = 12, got 5"):
        TSMixer(patch_length=5)
    with pytest.raises(ValueError, match='^GraphWaveNet: norm must be "batch" or "layer", got \'none\''):
        GraphWaveNet(3, norm="none")
    with pytest.raises(ValueError, match=r"^GraphWaveNet: adjacency must be \[4, 4\], got \[3, 3\]"):
        GraphWaveNet(4, ring(3))


def linear(inputs, outputs):
    """Parameters of a linear map."""
    return (inputs + 1) * outputs


def test_sizes_by_default_are_those_of_the_papers():
    def count(model):
        return sum(parameter.numel() for parameter in model.parameters())

    # STID: embeddings of 32, three residual layers of 128; the paper's input map also takes two time channels of 12 steps.
    tables = 32 * (307 + 288 + 7)
    stid = linear(36, 32) + tables + 3 * 2 * linear(128, 128) + linear(128, 12)
    assert count(STID(307)) == stid - 24 * 32
    # STAEformer: tokens of 24 + 24 + 24 + 80 = 152, four maps of attention, feed-forward of 256, two norms; three layers twice.
    layer = 4 * linear(152, 152) + linear(152, 256) + linear(256, 152) + 2 * 2 * 152
    embeddings = linear(1, 24) + 24 * (288 + 7) + 80 * 12 * 207
    assert count(STAEformer(207)) == embeddings + 6 * layer + linear(12 * 152, 12) == 1_258_932
    # Graph WaveNet, as its authors' code is run on METR-LA: 309,400, with two inputs and, in all eight layers, a residual map
    # that is not called. A third input more here; the last layer's graph convolution and norm less.
    layer = 2 * linear(64, 32) + linear(32, 256) + linear(7 * 32, 32) + 2 * 32
    authors = linear(2, 32) + 8 * (layer + linear(32, 32)) + linear(256, 512) + linear(512, 12) + 2 * 10 * 207
    assert authors == 309_400
    less = 8 * linear(32, 32) + linear(7 * 32, 32) + 2 * 32
    assert count(GraphWaveNet(207, torch.ones(207, 207))) == authors + 32 - less
    # TSMixer: what PatchTSMixerForPrediction of transformers 5.24 counts with the same sizes.
    assert count(TSMixer()) == 5_356


def test_initial_weights_of_staeformer_are_the_authors():
    model = build(STAEformer, adaptive_dim=16)
    bound = (6 / (16 * (NODES + STEPS))) ** 0.5  # Xavier's, of a [T, N, width] table
    assert 0.9 * bound < float(model.adaptive_embedding.weight.detach().abs().max()) <= bound
    assert float(model.day_embedding.weight.detach().std()) == pytest.approx(1, abs=0.2)


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
def test_graph_models_refuse_what_is_no_adjacency(adjacency, error, message):
    with pytest.raises(error, match=f"^GraphConv: adjacency {message}"):
        GraphConv(adjacency)
    with pytest.raises(error, match=f"^GraphWaveNet: adjacency {message}"):
        GraphWaveNet(3, adjacency)
