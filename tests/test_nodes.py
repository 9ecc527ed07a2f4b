"""Node samplers: which nodes, what they count for, what is stored."""

import math
import pickle

import pytest
import torch
from networkx import grid_2d_graph, to_numpy_array
from stand_in import WAITS
from torch.utils._python_dispatch import TorchDispatchMode

import stprune
from stprune.nodes.pair_table import PairTable
from stprune.reference.draw_nodes import mean_known
from stprune.testing import assert_chi_square

NUM_NODES = 24
GROUPS = torch.tensor([0] * 13 + [7] * 8 + [2] * 3)
GRID = torch.from_numpy(to_numpy_array(grid_2d_graph(6, 4)))
HOLES = torch.arange(NUM_NODES) % 3 == 1


def observed_of(index):
    """[B, NUM_NODES] bool: 10 to 22 of the nodes, others in each window."""
    word = (index.unsqueeze(1) + 1) * 48271 % 2147483647 * (torch.arange(NUM_NODES) + 1) % 2147483647
    return word.argsort(dim=1).argsort(dim=1) < 10 + (index % 13).unsqueeze(1)


SAMPLERS = {
    "uniform": "uniform",
    "priority": stprune.Priority(storage="float32"),
    "priority-bfloat16": stprune.Priority(),
    "priority-int8": stprune.Priority(storage="int8", floor=0.1),
    "stratified": stprune.Stratified(GROUPS),
    "cluster": stprune.Cluster(GRID),
    "clusters of 3": stprune.Cluster(GRID, cluster_size=3),
    "observed": stprune.Observed(~HOLES),
    "observed by window": stprune.Observed(observed_of),
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
    assert weights is None or (weights.shape == node.shape and bool((weights >= 0).all()))
    # Only what fills the rows of `Observed` has the weight 0.
    assert weights is None or bool((weights > 0).all()) or (name.startswith("observed") and node_ratio > 10 / 24)


@pytest.mark.parametrize("name", SAMPLERS)
def test_weighted_means_are_unbiased(name):
    """The weighted mean over the drawn nodes has the mean over all (observed) nodes as its expectation: 4 standard errors."""
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
    there = {"observed": ~HOLES.expand(draws, -1), "observed by window": observed_of(index)}.get(
        name, node.new_ones(1, NUM_NODES)
    )
    wanted = (there.double() @ value).sum(0) / there.sum()
    error = (means.mean(0) - wanted).abs()
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


def test_weights_of_a_draw_are_known_as_long_as_its_tensors_are_as_they_were(monkeypatch):
    sampler = sampler_with("priority")
    scored(sampler, 50)
    calls, draw = [], stprune.Priority.draw
    monkeypatch.setattr(stprune.Priority, "draw", lambda self, *of: calls.append(of) or draw(self, *of))
    index = torch.arange(20)
    (node, weight), (others, other_weight) = (sampler.draw_nodes(ids) for ids in (index, index + 20))
    assert sampler.node_weights(index, node) is weight
    assert len(calls) == 2
    # Other tensors with the same nodes; then this one with nodes of another batch, and the ids with theirs.
    for ids, same in ((index, node.clone()), (index.clone(), node)):
        assert torch.equal(sampler.node_weights(ids, same), weight)
    node.copy_(others)
    index += 20
    assert torch.equal(sampler.node_weights(index, node), other_weight)
    assert len(calls) == 5
    copy = pickle.loads(pickle.dumps(sampler))
    assert torch.equal(copy.node_weights(index, node), other_weight)
    assert not torch.equal(weight, other_weight)
    sampler.set_epoch(1)
    node, weight = sampler.draw_nodes(index)
    assert sampler.node_weights(index, node) is weight
    sampler.set_epoch(2)
    with pytest.raises(ValueError, match="node must hold nodes that were drawn of its window"):
        sampler.node_weights(index, node)


@pytest.mark.parametrize("what", ["node", "weight", "index"])
@pytest.mark.parametrize(
    "write", [torch.Tensor.copy_, lambda to, x: to.data.copy_(x), lambda to, x: to.numpy().__setitem__(..., x)]
)
def test_weights_are_right_or_refused_after_any_write(what, write):
    sampler = sampler_with("priority")
    scored(sampler, 50)
    index = torch.arange(20)
    node, weight = sampler.draw_nodes(index)
    wanted = weight.clone()
    written = {"node": node, "weight": weight, "index": index}[what]
    write(written, written.flip(-1).clone())
    if what == "index":
        with pytest.raises(ValueError, match="node must hold nodes that were drawn of its window"):
            sampler.node_weights(index, node)
    else:
        assert torch.equal(sampler.node_weights(index, node), wanted.flip(1) if what == "node" else wanted)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (torch.arange(5), "node must hold 6 nodes of each window, as are drawn, got 5"),
        (torch.arange(6) + 19, r"node must lie in \[0, 23\], got 24"),
        (torch.arange(6) - 1, r"node must lie in \[0, 23\], got -1"),
    ],
)
def test_nodes_with_weights_of_ones_own_are_refused_before_anything_is_kept(node, message):
    sampler = sampler_with("priority", node_ratio=0.25)
    node = node.expand(8, -1)
    prediction = torch.rand(8, 3, node.shape[1], requires_grad=True)
    for criterion, values in (
        (stprune.PrunedLoss(sampler), (prediction, prediction.detach())),
        (stprune.PrunedMean(sampler), (prediction[:, 0],)),
    ):
        with pytest.raises(ValueError, match=message):
            criterion(*values, torch.arange(8), node, node_weight=torch.ones(node.shape))
    assert sampler.table.num_trained == 0
    sampler.set_epoch(1)


def test_fewer_nodes_than_all_that_are_drawn_are_refused_before_anything_is_kept():
    sampler = sampler_with("priority", node_ratio="auto")
    prediction = torch.rand(8, 3, 5, requires_grad=True)
    with pytest.raises(ValueError, match="node must hold 24 nodes of each window, as are drawn, got 5"):
        stprune.PrunedLoss(sampler)(prediction, prediction.detach(), torch.arange(8), torch.arange(5).expand(8, -1))
    assert sampler.table.num_trained == 0


def test_nodes_drawn_before_there_were_more_are_refused_before_anything_is_kept():
    sampler = sampler_with("priority", node_ratio=0.25)
    index, prediction = torch.arange(8), torch.rand(8, 3, 6, requires_grad=True)
    node = sampler.nodes(index)
    sampler.grow_nodes(48)
    with pytest.raises(ValueError, match="node must be the .8, 12. nodes that were drawn, got .8, 6."):
        stprune.PrunedLoss(sampler)(prediction, prediction.detach(), index, node)
    assert sampler.table.num_trained == 0


def test_the_mean_of_known_scores_has_no_order():
    """So that every device has the same chances: a row turned around and in a random order, of scores from 1e-45 to 1e38."""
    generator = torch.Generator().manual_seed(0)
    for spread, scale in ((1.0, 1.0), (9.0, 1.0), (1.0, 1e37), (1.0, 1e-42)):
        row = torch.randn(8600, generator=generator).mul(spread).exp() * scale
        row[::7] = torch.inf
        turned = torch.stack([row, row.flip(0), row[torch.randperm(8600, generator=generator)]])
        mean = mean_known(turned)
        assert bool((mean == mean[0]).all())
        torch.testing.assert_close(mean[0].double(), row[row < torch.inf].double().mean(0, keepdim=True), rtol=2e-5, atol=1e-45)
    assert mean_known(torch.full((2, 5), torch.inf)).tolist() == [[0.0], [0.0]]


def test_the_end_of_an_epoch_waits_once_for_the_device():
    """To learn which windows were trained on, whatever number of them and of pieces the table is worked on in."""

    class Waits(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            names.extend([op._schema.name] * (op._schema.name.split("::")[1] in WAITS))
            return op(*args, **(kwargs or {}))

    for storage in ("float32", "bfloat16", "int8"):
        sampler = stprune.Priority(storage=storage).bind(num_windows=40_000, num_nodes=3, count=2, seed=0)
        index = torch.arange(40_000)
        sampler.update(index, sampler.draw(index, 0)[0], torch.ones(40_000, 2))
        names = []
        with Waits():
            sampler.advance()
        assert names == ["aten::nonzero"]
        assert int((sampler.table.rows(index) == 1.0).sum()) == 80_000


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_new_draw_every_epoch_and_the_same_in_any_batch(name):
    sampler = sampler_with(SAMPLERS[name])
    scored(sampler, 50)
    index = torch.arange(50)
    first = sampler.nodes(index)
    assert torch.equal(sampler.nodes(index.flip(0)), first.flip(0))
    assert torch.equal(sampler.nodes(index[10:11].numpy()), first[10:11])
    assert torch.equal(sampler.nodes(index[::3]), first[::3])
    assert torch.equal(sampler.nodes(index[7:8].expand(4)), first[[7] * 4])
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


@pytest.mark.parametrize("name", ["uniform", "priority-bfloat16", "priority-int8", "stratified", "observed", "windows"])
def test_a_compiled_step_has_no_graph_break(name):
    """Weights and scores of pairs inside torch.compile(fullgraph=True), with what the eager step gives, in two epochs."""
    results = []
    for compiled in (False, True):
        torch._dynamo.reset()
        sampler = sampler_with(stprune.Observed(observed_of(torch.arange(50))) if name == "windows" else SAMPLERS[name])
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


# --- holes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [~HOLES, observed_of(torch.arange(50)), observed_of], ids=["nodes", "windows", "function"])
def test_no_drawn_node_is_a_hole_and_every_observed_one_is_drawn_equally_often(mask):
    """`Observed` in 500 epochs of 50 windows, which have 10 observed nodes at least; 8 are drawn."""
    index, epochs = torch.arange(50), 500
    sampler = sampler_with(stprune.Observed(mask))
    there = ~HOLES.expand(50, -1) if mask is not observed_of and mask.dim() == 1 else observed_of(index)
    seen = torch.zeros(50, NUM_NODES)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        seen.scatter_add_(1, sampler.nodes(index), torch.ones(50, 8))
    assert not bool(seen[~there].any())
    number = there.sum(1, keepdim=True).double()
    chance = 8 / number
    # The counts of a draw without replacement are negatively correlated: scaled to a chi-square with number - 1 degrees.
    part = (seen - epochs * chance).square() / (epochs * chance * (1 - chance)) * (number - 1) / number
    statistic, degrees = float(part[there].sum()), float((number - 1).sum())
    assert abs(statistic - degrees) < 4.5 * (2 * degrees) ** 0.5


def test_masks_of_windows_draw_alike_in_every_form():
    index = torch.arange(50)
    forms = observed_of(index), observed_of, lambda index: observed_of(index).t().contiguous().t()
    samplers = [sampler_with(stprune.Observed(mask)) for mask in forms]
    (node, weight), *rest = (sampler.draw_nodes(index) for sampler in samplers)
    for others, others_weight in rest:
        assert torch.equal(node, others)
        assert torch.equal(weight, others_weight)
    assert torch.equal(samplers[0].node_weights(index[3:9], node[3:9].flip(1)), weight[3:9].flip(1))


def test_a_window_with_too_few_observed_nodes_is_filled_with_others_of_weight_zero():
    mask = torch.zeros(50, NUM_NODES, dtype=torch.bool)
    mask[0, [3, 20]] = mask[2, :12] = True  # two, none and twelve observed nodes; the other windows have none
    sampler = sampler_with(stprune.Observed(mask))
    node, weight = sampler.draw_nodes(torch.arange(3))
    assert bool((node.diff(dim=1) > 0).all())
    assert {3, 20} <= set(node[0].tolist())
    assert bool(mask[2][node[2]].all())
    # 10 nodes are drawn where 14 are observed: 2 of 2 in the first window, 8 of 12 in the last.
    share = 10 / 14
    wanted = torch.stack(
        [torch.where((node[0] == 3) | (node[0] == 20), share, 0.0), torch.zeros(8), torch.full((8,), share * 1.5)]
    )
    torch.testing.assert_close(weight, wanted)
    sampler.set_epoch(1)
    assert not torch.equal(sampler.nodes(torch.arange(3)), node)
    nothing = sampler_with(stprune.Observed(torch.zeros(50, NUM_NODES, dtype=torch.bool)))
    assert not bool(nothing.draw_nodes(torch.arange(50))[1].any())


def test_holes_leave_the_masked_loss_as_it_is():
    """Where no window has more observed nodes than are drawn, the loss is the masked loss of all nodes."""
    mask = observed_of(torch.arange(50)) & (torch.arange(NUM_NODES) < 12)
    sampler = sampler_with(stprune.Observed(mask), node_ratio=0.5)
    criterion = stprune.PrunedLoss(sampler, null_value=0.0)
    prediction = torch.randn(50, 3, NUM_NODES, generator=torch.Generator().manual_seed(0))
    target = torch.where(mask.unsqueeze(1), prediction + 1.0 + torch.arange(NUM_NODES), 0.0)
    node = sampler.nodes(torch.arange(50))
    assert int(mask.sum(1).max()) <= 12
    parts = (stprune.gather_nodes(part, node, dim=2) for part in (prediction.requires_grad_(), target))
    loss = criterion(*parts, torch.arange(50), node)
    with torch.no_grad():
        torch.testing.assert_close(loss.detach(), criterion(prediction, target))
    loss.backward()
    assert not bool(prediction.grad.masked_select(~mask.unsqueeze(1)).any())


def test_a_function_is_asked_once_for_every_window_and_with_ids_of_the_host():
    asked = []

    def mask(index):
        asked.append(index)
        return observed_of(index)

    sampler = sampler_with(stprune.Observed(mask), num_windows=2500)
    assert torch.equal(torch.cat(asked), torch.arange(2500))
    assert max(map(len, asked)) <= 1024
    sampler.nodes(torch.tensor([7, 3]))
    assert asked[-1].tolist() == [7, 3]


def test_a_mask_takes_a_bit_for_a_node():
    assert stprune.Observed(torch.ones(1000, 641, dtype=torch.bool))._rows.nbytes == 1000 * 81


# --- growth ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_more_windows_and_nodes_draw_as_a_sampler_made_for_them(name):
    """`grow`, against one of the grown sizes that has learned the same; and its state fits that one."""
    new = {
        "stratified": {"groups": torch.cat([GROUPS, torch.tensor([9] * 6)])},
        "cluster": {"adjacency": torch.from_numpy(to_numpy_array(grid_2d_graph(6, 5)))},
        "observed": {"mask": torch.arange(30) % 3 != 1},
        "observed by window": {"mask": lambda index: torch.cat([observed_of(index), observed_of(index)[:, :6]], 1)},
    }
    new["clusters of 3"] = new["cluster"]
    again = {
        "stratified": lambda: stprune.Stratified(**new["stratified"]),
        "cluster": lambda: stprune.Cluster(**new["cluster"]),
        "clusters of 3": lambda: stprune.Cluster(**new["cluster"], cluster_size=3),
        "observed": lambda: stprune.Observed(**new["observed"]),
        "observed by window": lambda: stprune.Observed(**new["observed by window"]),
    }.get(name, lambda: SAMPLERS[name])
    small = {"num_windows": 50, "num_nodes": NUM_NODES, "count": 8, "seed": 3}
    large = {"num_windows": 70, "num_nodes": 30, "count": 9, "seed": 3}
    grown, made = (stprune.nodes.resolve("test", one) for one in (SAMPLERS[name], again()))
    grown, made = grown.bind(**small), made.bind(**large)
    index = torch.arange(70)
    if grown.wants_scores:
        scores = torch.rand(50, NUM_NODES, generator=torch.Generator().manual_seed(1)) + 0.1
        for one in (grown, made):
            one.table.update(index[:50], torch.arange(NUM_NODES).expand(50, -1), scores)
    grown.grow(70, 30, 9, **new.get(name, {}))
    node, weight = grown.draw(index, 2)
    expected, expected_weight = made.draw(index, 2)
    assert torch.equal(node, expected)
    assert weight is expected_weight is None or torch.equal(weight, expected_weight)
    assert grown.settings() == made.settings()
    made.load_state_dict(grown.state_dict())
    grown.load_state_dict(made.state_dict())
    assert torch.equal(made.draw(index, 2)[0], node)


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
def test_growth_keeps_the_scores_of_pairs_also_those_that_wait(storage):
    sampler = stprune.Priority(storage=storage).bind(num_windows=5, num_nodes=70, count=7, seed=0)
    everyone = torch.arange(70).expand(2, -1)
    sampler.table.update(torch.tensor([1, 4]), everyone, torch.full((2, 70), 2.0))
    node = sampler.draw(torch.tensor([1, 2]), 0)[0]
    sampler.update(torch.tensor([1, 2]), node, torch.full((2, 7), 8.0))
    sampler.grow(9, 150, 15)
    rows = sampler.table.rows(torch.arange(9))
    assert bool((rows[[1, 4], :70] == 2.0).all())
    assert int((rows < torch.inf).sum()) == 140
    sampler.update(torch.tensor([8]), sampler.draw(torch.tensor([8]), 0)[0], torch.full((1, 15), 4.0))
    sampler.advance()
    rows = sampler.table.rows(torch.arange(9))
    assert int((rows < torch.inf).sum()) == 140 + 7 + 15
    for window in (1, 2):
        assert bool((rows[window, node[window - 1]] == 8.0).all())
    assert int((rows[1, :70] == 2.0).sum()) == 63


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("uniform", (49, 24, 8), "Uniform.grow: num_windows must be at least 50, got 49"),
        ("priority", (50, 23, 8), "Priority.grow: num_nodes must be at least 24, got 23"),
        ("cluster", (50, 24, 7), r"Cluster.grow: count must lie in \[8, 24\], got 7"),
        ("cluster", (50, 30, 9), "adjacency must have one row for each of 30 nodes, got 24"),
        ("stratified", (50, 30, 9), "groups must have one label for each of 30 nodes, got 24"),
        ("observed", (50, 30, 9), r"mask must have the shape \(30,\) or \(50, 30\), got \(24,\)"),
        ("observed by window", (50, 30, 9), r"mask\(index\) must be bool of shape \(50, 30\), got torch.bool \(50, 24\)"),
    ],
)
def test_growth_is_refused_where_something_is_missing_and_nothing_is_changed(name, sizes, message):
    sampler = stprune.nodes.resolve("test", SAMPLERS[name]).bind(num_windows=50, num_nodes=NUM_NODES, count=8, seed=0)
    before, settings = sampler.draw(torch.arange(50), 1)[0], dict(vars(sampler))
    with pytest.raises(ValueError, match=message):
        sampler.grow(*sizes)
    assert vars(sampler) == settings
    assert torch.equal(sampler.draw(torch.arange(50), 1)[0], before)


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
        (lambda: sampler_with("fair"), ValueError, "Sampler: node_sampler must be one of priority, uniform, or Priority"),
        (lambda: sampler_with(3), TypeError, "PruningSampler: node_sampler must be a name or a NodeSampler, got int"),
        (lambda: sampler_with(stprune.Priority), TypeError, "node_sampler must be .*, got the class Priority"),
        (lambda: sampler_with(stprune.Stratified(GROUPS[:5])), ValueError, "one label for each of 24 nodes, got 5"),
        (lambda: sampler_with(SAMPLERS["stratified"], node_ratio=2 / 24), ValueError, "each of 3 groups, got 2"),
        (lambda: stprune.Stratified(GROUPS.float()), TypeError, "groups must be int64"),
        (lambda: stprune.Stratified(-GROUPS), ValueError, "groups must be labels >= 0, got -7"),
        (lambda: stprune.Cluster(GRID[:3]), ValueError, "adjacency must be square"),
        (lambda: stprune.Cluster(GRID, cluster_size=0), ValueError, "cluster_size must be at least 1"),
        (lambda: sampler_with(stprune.Cluster(GRID[:5, :5])), ValueError, "one row for each of 24 nodes, got 5"),
        (lambda: sampler_with("observed"), ValueError, "Priority.., Stratified.*, Cluster.* or Observed.mask., got 'observed"),
        (lambda: stprune.Observed([True]), TypeError, "mask must be a tensor or a function of window ids, got list"),
        (lambda: stprune.Observed(HOLES.long()), TypeError, "mask must be bool, got torch.int64"),
        (lambda: stprune.Observed(HOLES.view(2, 3, 4)), ValueError, "or .num_windows, num_nodes., got shape .2, 3, 4."),
        (lambda: sampler_with(stprune.Observed(HOLES[:5])), ValueError, "shape .24,. or .50, 24., got .5,."),
        (lambda: sampler_with(stprune.Observed(HOLES.expand(49, -1))), ValueError, "or .50, 24., got .49, 24."),
        (lambda: sampler_with(stprune.Observed(lambda index: HOLES)), ValueError, "shape .50, 24., got torch.bool .24,."),
        (lambda: sampler_with(stprune.Observed(lambda index: index)), ValueError, "got torch.int64 .50,."),
        (lambda: sampler_with(stprune.Observed(lambda index: None)), ValueError, "got NoneType"),
        (lambda: stprune.Priority(storage="int4"), ValueError, "storage must be one of float32, bfloat16, int8"),
        (lambda: stprune.Priority(floor=0.0), ValueError, "floor must lie in"),
        (lambda: stprune.Priority(floor=1e-40), ValueError, "floor must lie in .1e-36, 1., got 1e-40"),
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
