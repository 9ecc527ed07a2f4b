"""An epoch on a GPU without one: launches and waits of its plan, and where its ids live (tests/stand_in.py)."""

import itertools
import pathlib
import re

import pytest
import torch
from stand_in import CUDA, OnCuda, StandIn

import stprune
from stprune.loader import WindowLoader
from stprune.methods import resolve
from stprune.ops.strata import checked_strata
from stprune.plan import make_plan

N = 200_000  # more than 2^17, from where on the budget rule takes a sample; launches do not grow with the size


@pytest.fixture
def gpu():
    with StandIn() as mode:
        yield mode


# Launches of a plan and its whole order; the same with strata, however many; waits.
COSTS = {
    "st-prune": (10, 12, 2),
    "infobatch": (10, 12, 2),
    "soft-random": (11, 13, 2),
    "rs2": (10, 10, 1),
    "top-k": (16, 16, 2),
    "epsilon-greedy": (16, 16, 2),
    "ucb": (16, 16, 2),
    "spaced": (16, 16, 2),
    "seta": (18, 18, 2),
    "full": (3, 3, 0),
}


def test_the_published_table_is_this_one():
    table = (pathlib.Path(__file__).resolve().parents[1] / "csrc" / "cuda" / "README.md").read_text()
    rows = re.findall(r"\| `([\w-]+)` \| (\d+) \| (\d+) \| (\d+) \|", table)
    assert {name: tuple(map(int, numbers)) for name, *numbers in rows} == COSTS
    assert set(COSTS) == set(stprune.METHODS)


@pytest.mark.parametrize("num_strata", [0, 24, 1000])
@pytest.mark.parametrize("method", COSTS)
def test_launches_and_waits_of_a_plan(gpu, method, num_strata):
    scores = torch.randn(N, generator=torch.Generator().manual_seed(0)).exp()
    strata = checked_strata("test", torch.arange(N) % num_strata, N) if num_strata else None
    settings = {"method": resolve("test", method), "keep_ratio": 0.5, "epoch": 1, "seed": 0}
    expected = make_plan(scores, **settings, strata=strata)
    on_device, there = scores.to(CUDA), strata and strata.to(CUDA)
    gpu.forget()
    plan = make_plan(on_device, **settings, strata=there)
    order = plan.order(0, len(plan))
    assert gpu.cost == (COSTS[method][num_strata > 0], COSTS[method][2])
    assert isinstance(order, OnCuda)
    assert torch.equal(order.inner, expected.order(0, len(plan)))
    assert torch.equal(plan.indices.inner, expected.indices)
    assert torch.equal(plan.weights.cpu(), expected.weights)
    assert plan.mean_weight == expected.mean_weight


def test_ids_go_to_the_host_once_where_a_loader_wants_them_there(gpu):
    scores = torch.randn(N, generator=torch.Generator().manual_seed(0)).exp()
    plan = stprune.plan_epoch(scores.to(CUDA), keep_ratio=0.8, epoch=1, seed=0)
    gpu.forget()
    stretches = [plan.share(start, 40_000, 0, 1, torch.device("cpu")) for start in range(0, 160_000, 40_000)]
    assert gpu.waits == ["_to_copy"] * 2  # ids and weights
    assert plan.lookup(stretches[0])[1].all()
    assert gpu.waits == ["_to_copy"] * 2
    assert torch.equal(torch.cat(stretches), plan.order(0, 160_000).cpu())


def windows(series, **settings):
    sampler = stprune.PruningSampler(500, num_epochs=4, keep_ratio=0.6, seed=3, num_nodes=5)
    sampler.to(series.device)
    loader = WindowLoader(series, sampler, batch_size=64, history=6, horizon=6, **settings)
    sampler.table.update(torch.arange(500, device=series.device), torch.linspace(0.1, 2, 500, device=series.device))
    loader.set_epoch(1)
    return loader


@pytest.mark.parametrize(("start", "stride", "gap"), [(0, 1, False), (11, 2, False), (0, 1, True)])
def test_ids_stay_on_the_device_where_the_series_is(gpu, start, stride, gap):
    """No batch waits, and each is one launch, with a second one for starts that are not the ids themselves."""
    rows = start + stride * 499 + 12 + (11 if gap else 0)
    series = torch.rand(rows, 5, 1, generator=torch.Generator().manual_seed(0))
    times = torch.arange(rows) + 100 * (torch.arange(rows) >= 200)
    settings = {"start": start, "stride": stride} | ({"timestamps": times.numpy().astype("datetime64[h]")} if gap else {})
    expected = list(windows(series, **settings))
    loader = windows(series.to(CUDA), **settings)
    iterator = iter(loader)
    got = [next(iterator)]
    gpu.forget()
    got += itertools.islice(iterator, len(expected) - 2)
    assert gpu.waits == []
    assert gpu.ops == ["gather_windows"] * len(got[1:])
    assert len(gpu.launches) == (0 if (start, stride, gap) == (0, 1, False) else len(got[1:]))
    got += iterator
    for batch, other in zip(got, expected, strict=True):
        for one, two in zip(batch, other, strict=True):
            assert isinstance(one, OnCuda)
            assert torch.equal(one.inner, two)


@pytest.mark.parametrize(
    ("settings", "cost"),
    [({}, (16, 5)), ({"strata": torch.arange(N) % 24}, (18, 5)), ({"fixed_length": True}, (19, 6))],
    ids=["", "strata", "fixed_length"],
)
def test_launches_and_waits_between_epochs(gpu, settings, cost):
    """All of `set_epoch` but the order: the last epoch's counts, the table's age, the plan, scores without a number."""
    sampler = stprune.PruningSampler(N, num_epochs=4, **settings).to(CUDA)
    scores = torch.randn(N, generator=torch.Generator().manual_seed(0)).exp().to(CUDA)
    sampler.table.update(sampler.plan.indices, scores[: len(sampler.plan)], trained=True)
    sampler.set_epoch(1)
    gpu.forget()
    sampler.set_epoch(2)
    assert gpu.cost == cost


@pytest.mark.parametrize("node_sampler", ["uniform", "priority"])
def test_nodes_are_drawn_beside_the_ids_and_the_sampler_follows_the_loss(gpu, node_sampler, monkeypatch):
    """What README says of a loop on a GPU: ids go there with the batch, and nothing else has to."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)  # a CPU build of torch cannot say
    sampler = stprune.PruningSampler(50, num_epochs=2, num_nodes=40, node_ratio=0.1, node_sampler=node_sampler)
    criterion, ids = stprune.PrunedLoss(sampler), torch.tensor([3, 49, 0])
    expected, index = sampler.nodes(ids), ids.to(CUDA)
    before = sampler.nodes(index)
    begun, *_ = criterion.begin(index, 3, CUDA)
    assert (sampler.table.device, begun.device) == (CUDA, CUDA)
    for node in (before, sampler.nodes(index)):
        assert isinstance(node, OnCuda)
        assert torch.equal(node.inner, expected)


def observed(index):
    """Of 60 windows which of 40 nodes were observed: every third not, other ones in each window."""
    return (torch.arange(40) + index.unsqueeze(1)) % 3 > 0


NODES = {
    "uniform": ("uniform", 0, 1),
    "priority": ("priority", 0, 1),
    "stratified": (stprune.Stratified(torch.arange(40) % 3), 5, 3),
    "cluster": (stprune.Cluster(torch.diag(torch.ones(39), 1)), 4, 1),
    "observed everywhere": (stprune.Observed(torch.arange(40) % 3 > 0), 1, 1),
    "observed": (stprune.Observed(observed(torch.arange(60))), 19, 1),
}


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("ratio", [0.2, "auto"])
def test_a_draw_of_nodes_neither_waits_nor_fetches_from_the_host(gpu, name, ratio, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    node_sampler, torchs, ours = NODES[name]
    sampler = stprune.PruningSampler(60, num_epochs=2, num_nodes=40, node_ratio=ratio, node_sampler=node_sampler)
    expected = stprune.PruningSampler(60, num_epochs=2, num_nodes=40, node_ratio=0.2, node_sampler=node_sampler)
    sampler.to(CUDA)
    if ratio == "auto":
        sampler.draw_next(8)
    sampler.set_epoch(1)
    expected.set_epoch(1)
    host = torch.tensor([3, 59, 0])
    index = host.to(CUDA)
    sampler.nodes(index)
    gpu.forget()
    node = sampler.nodes(index)
    weight = sampler.node_weights(index, node)
    assert (gpu.waits, len(gpu.ops)) == ([], ours)
    assert len(gpu.launches) == torchs
    assert torch.equal(node.inner, expected.nodes(host))
    wanted = expected.node_weights(host, expected.nodes(host))
    assert (weight is None) == (wanted is None)
    assert weight is None or torch.equal(weight.inner, wanted)
    # From the host nothing comes along: that would wait for it, and no graph could be captured.
    assert gpu.fetched == 0
