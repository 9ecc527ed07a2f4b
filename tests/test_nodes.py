"""Node samplers: which nodes, what they count for, what is stored."""

import math

import pytest
import torch
from networkx import grid_2d_graph, to_numpy_array

import stprune
from stprune.nodes.pair_table import PairTable
from stprune.testing import assert_chi_square

NUM_NODES = 24
GROUPS = torch.tensor([0] * 13 + [7] * 8 + [2] * 3)
GRID = torch.from_numpy(to_numpy_array(grid_2d_graph(6, 4)))
SAMPLERS = {
    "uniform": "uniform",
    "priority": stprune.Priority(storage="float32"),
    "priority-bfloat16": stprune.Priority(),
    "priority-int8": stprune.Priority(storage="int8", floor=0.1),
    "stratified": stprune.Stratified(GROUPS),
    "cluster": stprune.Cluster(GRID),
    "clusters of 3": stprune.Cluster(GRID, cluster_size=3),
}


def sampler_with(chosen, *, node_ratio=0.3, num_windows=50, num_epochs=1000, **settings):
    return stprune.PruningSampler(
        num_windows,
        num_epochs=num_epochs,
        keep_ratio=1.0,
        num_nodes=settings.pop("num_nodes", NUM_NODES),
        node_ratio=node_ratio,
        node_sampler=chosen,
        **settings,
    )


def scored(sampler, windows):
    """Give every node of some windows a score, log-normally spread."""
    index, node = torch.arange(windows), torch.arange(NUM_NODES).expand(windows, -1)
    scores = torch.randn(windows, NUM_NODES, generator=torch.Generator().manual_seed(3)).exp()
    if sampler.wants_pair_scores:
        sampler.node_sampler.table.update(index, node, scores)
    return scores


# Stratified refuses fewer nodes than it has groups: see test_refusals.
@pytest.mark.parametrize(
    ("name", "node_ratio"),
    [(n, r) for n in SAMPLERS for r in (1 / NUM_NODES, 0.3, 0.55, 23 / 24, 1.0) if n != "stratified" or r > 0.1],
)
def test_nodes_are_distinct_ascending_and_as_many_as_asked(name, node_ratio):
    sampler = sampler_with(SAMPLERS[name], node_ratio=node_ratio)
    scored(sampler, 20)
    node = sampler.nodes(torch.arange(50))
    assert node.shape == (50, math.ceil(round(node_ratio * NUM_NODES, 9)))
    assert node.dtype == torch.int64
    assert bool((node.diff(dim=1) > 0).all())
    assert 0 <= int(node.min()) <= int(node.max()) < NUM_NODES
    weights = sampler.node_weights(torch.arange(50), node)
    assert weights is None or (weights.shape == node.shape and bool((weights > 0).all()))


@pytest.mark.parametrize("name", SAMPLERS)
def test_weighted_means_are_unbiased(name):
    """The weighted mean over the drawn nodes has the mean over all nodes as its expectation: 4 standard errors."""
    draws = 4000
    sampler = sampler_with(SAMPLERS[name], num_windows=draws)
    assert sampler.node_sampler.unbiased
    scores = scored(sampler, 1)
    if sampler.wants_pair_scores:
        everyone = torch.arange(draws)
        sampler.node_sampler.table.update(everyone, torch.arange(NUM_NODES).expand(draws, -1), scores.expand(draws, -1))
    value = torch.randn(NUM_NODES, 3, generator=torch.Generator().manual_seed(5)).double() + scores[0, :, None]
    index = torch.arange(draws)
    node = sampler.nodes(index)
    weights = sampler.node_weights(index, node)
    weights = torch.ones(node.shape) if weights is None else weights
    means = (value[node] * weights.double().unsqueeze(2)).mean(1)
    error = (means.mean(0) - value.mean(0)).abs()
    assert bool((error <= 4 * means.std(0) / draws**0.5).all()), error
    if name.startswith("priority"):
        plain = value[node].mean(1)
        assert bool(((plain.mean(0) - value.mean(0)).abs() > 4 * plain.std(0) / draws**0.5).any()), "weights must matter"


@pytest.mark.parametrize("name", ["cluster", "clusters of 3"])
def test_every_cluster_is_drawn_equally_often(name):
    """The start of the stretches is uniform, and decides everything."""
    draws = 30_000
    node = sampler_with(SAMPLERS[name], num_windows=draws).nodes(torch.arange(draws))
    starts = torch.unique(node, dim=0, return_counts=True)[1]
    assert len(starts) == NUM_NODES
    assert_chi_square(starts, torch.full((NUM_NODES,), draws / NUM_NODES))


def test_clusters_are_made_of_neighbours():
    """More edges survive in a cluster draw than in a uniform one, of a grid whose nodes are numbered at random."""
    number = torch.randperm(240, generator=torch.Generator().manual_seed(0))
    grid = torch.from_numpy(to_numpy_array(grid_2d_graph(20, 12)))[number][:, number]

    def edges(chosen):
        node = sampler_with(chosen, num_nodes=240, node_ratio=0.2).nodes(torch.arange(50))
        return sum(float(grid[row][:, row].sum()) for row in node)

    uniform = edges("uniform")
    assert edges(stprune.Cluster(grid)) > 3 * uniform
    assert edges(stprune.Cluster(grid.to_sparse(), cluster_size=12)) > 2 * uniform


def test_every_group_gets_its_share():
    sampler = sampler_with(SAMPLERS["stratified"], node_ratio=0.5)
    node = sampler.nodes(torch.arange(50))
    for label, share in ((0, 6.5), (7, 4), (2, 1.5)):
        per_window = (GROUPS[node] == label).sum(1)
        assert bool((per_window == per_window[0]).all())
        assert abs(int(per_window[0]) - share) < 1


def test_high_scores_are_drawn_more_often():
    sampler = sampler_with(stprune.Priority(floor=0.1))
    high = torch.zeros(NUM_NODES, dtype=torch.int64)
    scores = torch.ones(1, NUM_NODES)
    scores[0, 5] = 50.0
    sampler.node_sampler.table.update(torch.tensor([7]), torch.arange(NUM_NODES).unsqueeze(0), scores)
    for epoch in range(100):
        sampler.set_epoch(epoch)
        high += torch.bincount(sampler.nodes(torch.tensor([7]))[0], minlength=NUM_NODES)
    assert int(high[5]) == 100
    assert int(high.sum()) == 800


def test_without_scores_priority_is_uniform_with_equal_weights():
    sampler = sampler_with("priority")
    index = torch.arange(50)
    node = sampler.nodes(index)
    uniform = sampler_with("uniform").nodes(index)
    assert torch.equal(node, uniform)
    assert torch.equal(sampler.node_weights(index, node), torch.ones(50, 8))


def test_a_draw_gives_nodes_and_weights_together_as_often_as_it_is_asked():
    sampler = sampler_with("priority")
    scored(sampler, 50)
    index = torch.arange(20)
    node, weights = sampler.draw_nodes(index)
    before = weights.clone()
    # Scores of this epoch wait for the next one.
    sampler.take_in(index, node, torch.full(node.shape, 100.0))
    assert torch.equal(sampler.nodes(index), node)
    assert torch.equal(sampler.node_weights(index, node), before)
    assert torch.equal(sampler.node_weights(index[4:9], node[4:9].flip(1)), before[4:9].flip(1))
    sampler.set_epoch(1)
    assert bool((sampler.node_sampler.table.rows(index).gather(1, node) == 100.0).all())
    assert not torch.equal(sampler.node_weights(index, sampler.nodes(index)), before)


def test_a_second_pass_over_a_window_leaves_its_pair_scores_alone():
    sampler = sampler_with("priority")
    index = torch.tensor([3, 8])
    node = sampler.nodes(index)
    sampler.take_in(index, node, torch.full(node.shape, 2.0))
    sampler.take_in(index, node, torch.full(node.shape, 9.0))
    sampler.set_epoch(1)
    assert bool((sampler.node_sampler.table.rows(index).gather(1, node) == 2.0).all())


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_new_draw_every_epoch_and_the_same_in_any_batch(name):
    sampler = sampler_with(SAMPLERS[name])
    scored(sampler, 50)
    index = torch.arange(50)
    first = sampler.nodes(index)
    assert torch.equal(sampler.nodes(index.flip(0)), first.flip(0))
    assert torch.equal(sampler.nodes(index[10:11].numpy()), first[10:11])
    ahead = sampler.node_draw()
    sampler.set_epoch(1)
    assert not torch.equal(sampler.nodes(index), first)
    if sampler.wants_pair_scores:  # those of the epoch that has ended decide now
        with pytest.raises(RuntimeError, match="an iterator over epoch 0 must end before epoch 1 begins"):
            ahead(index)
    else:
        assert torch.equal(ahead(index), first)


@pytest.mark.parametrize("name", SAMPLERS)
def test_two_ranks_draw_the_same_nodes_and_share_nothing(name):
    one, other = (sampler_with(SAMPLERS[name], num_replicas=2, rank=rank, process_group="none") for rank in range(2))
    before = other.nodes(torch.arange(50))
    assert torch.equal(one.nodes(torch.arange(50)), before)
    scored(one, 50)
    assert torch.equal(other.nodes(torch.arange(50)), before)


@pytest.mark.parametrize("name", SAMPLERS)
def test_state_goes_on_bit_for_bit(name, tmp_path):
    sampler = sampler_with(SAMPLERS[name])
    scored(sampler, 30)
    torch.save(sampler.state_dict(), tmp_path / "state.pt")
    again = sampler_with(SAMPLERS[name])
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    index = torch.arange(50)
    assert torch.equal(again.nodes(index), sampler.nodes(index))
    for mine, yours in zip((sampler, again), (again, sampler), strict=True):
        assert mine.state_dict()["settings"] == yours.state_dict()["settings"]
    with pytest.raises(ValueError, match="node_sampler\\.(name|cluster_size) must be"):
        sampler_with(stprune.Cluster(GRID, cluster_size=5)).load_state_dict(sampler.state_dict())


@pytest.mark.parametrize("name", ["uniform", "priority-bfloat16", "priority-int8", "stratified"])
def test_a_compiled_step_has_no_graph_break(name):
    """Weights and scores of pairs inside torch.compile(fullgraph=True), with what the eager step gives, in two epochs."""
    results = []
    for compiled in (False, True):
        torch._dynamo.reset()
        sampler = sampler_with(SAMPLERS[name])
        scored(sampler, 50)
        criterion = stprune.PrunedLoss(sampler, null_value=0.0, mean=torch.arange(float(NUM_NODES)), std=2.0)
        index = torch.arange(8)
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(4, 4, generator=generator).requires_grad_()
        x, y = (torch.randn(8, NUM_NODES, 4, generator=generator) for _ in range(2))

        def step(x, y, index, node, weight=weight, criterion=criterion):
            return criterion((x @ weight).transpose(1, 2), y.transpose(1, 2), index, node)

        run = torch.compile(step, fullgraph=True, backend="aot_eager") if compiled else step
        losses = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            node = sampler.nodes(index)
            losses.append(run(x[index[:, None], node], y[index[:, None], node], index, node))
            losses[-1].backward()
        results.append([*(loss.detach() for loss in losses), weight.grad, sampler.table.scores, sampler.nodes(index)])
    for eager, graph in zip(*results, strict=True):
        torch.testing.assert_close(graph, eager, rtol=0, atol=0)


# --- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("storage", "tolerance"), [("float32", 0.0), ("bfloat16", 2.0**-8), ("int8", 0.0)])
def test_table_keeps_scores(storage, tolerance):
    generator = torch.Generator().manual_seed(0)
    table = PairTable(9, 150, storage=storage)
    assert bool((table.rows(torch.arange(9)) == torch.inf).all())
    index = torch.tensor([4, 2])
    node = torch.stack([torch.randperm(150, generator=generator)[:70].sort().values for _ in index])
    scores = torch.rand(2, 70, generator=generator) * 10
    scores[0, :3] = torch.tensor([float("nan"), float("inf"), -1.0])
    table.update(index, node, scores)
    rows = table.rows(index)
    known = torch.zeros(2, 150, dtype=torch.bool).scatter(1, node, True)
    known[0, node[0, :3]] = False
    assert torch.equal(rows < torch.inf, known)
    got = rows.gather(1, node)[:, 3:]
    wanted = scores[:, 3:]
    # int8: half a step of the square root, relative to the block's largest score.
    allowed = tolerance * wanted if storage != "int8" else (wanted * 10.0).sqrt() / 254 + 10.0 / 508**2
    assert bool(((got - wanted).abs() <= allowed).all())
    others = torch.tensor([0, 1, 3, 5, 6, 7, 8])
    assert bool((table.rows(others) == torch.inf).all())


def test_table_smooths():
    table = PairTable(2, 3, storage="float32", beta=0.75)
    node = torch.tensor([[1]])
    table.update(torch.tensor([0]), node, torch.tensor([[4.0]]))
    table.update(torch.tensor([0]), node, torch.tensor([[8.0]]))
    assert table.rows(torch.tensor([0])).tolist() == [[torch.inf, 5.0, torch.inf]]


def test_table_takes_the_bytes_it_says():
    n = 1000 * 640
    assert PairTable(1000, 640, storage="float32").nbytes == 4 * n
    assert PairTable(1000, 640, storage="bfloat16").nbytes == 2 * n
    assert PairTable(1000, 640, storage="int8").nbytes == n + n // 16


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: sampler_with("fair"), ValueError, "node_sampler must be one of priority, uniform"),
        (lambda: sampler_with(3), TypeError, "node_sampler must be a name or a NodeSampler, got int"),
        (lambda: sampler_with(stprune.Stratified(GROUPS[:5])), ValueError, "one label for each of 24 nodes, got 5"),
        (lambda: sampler_with(SAMPLERS["stratified"], node_ratio=2 / 24), ValueError, "each of 3 groups, got 2"),
        (lambda: stprune.Stratified(GROUPS.float()), TypeError, "groups must be int64"),
        (lambda: stprune.Stratified(-GROUPS), ValueError, "groups must be labels >= 0, got -7"),
        (lambda: stprune.Cluster(GRID[:3]), ValueError, "adjacency must be square"),
        (lambda: stprune.Cluster(GRID, cluster_size=0), ValueError, "cluster_size must be at least 1"),
        (lambda: sampler_with(stprune.Cluster(GRID[:5, :5])), ValueError, "one row for each of 24 nodes, got 5"),
        (lambda: stprune.Priority(storage="int4"), ValueError, "storage must be one of float32, bfloat16, int8"),
        (lambda: stprune.Priority(floor=0.0), ValueError, "floor must lie in"),
        (lambda: stprune.Priority(beta=1.0), ValueError, "beta must lie in"),
        (lambda: sampler_with("priority", node_ratio=1.0, granularity="window"), ValueError, "must be .uniform. for"),
    ],
)  # fmt: skip
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_node_sampler_of_ones_own():
    class FirstHalf(stprune.NodeSampler):
        name = "first-half"

        def draw(self, index, epoch):
            return torch.arange(self.count).expand(len(index), -1), None

    sampler = sampler_with(FirstHalf(), node_ratio=0.5)
    assert sampler.nodes(torch.tensor([3, 4])).tolist() == [list(range(12))] * 2
    assert sampler.node_weights(torch.tensor([3]), torch.arange(12).unsqueeze(0)) is None
