"""Data that grows, slots used again, and runs without an end."""

import copy
import re

import numpy as np
import pytest
import torch
from loops import saved

import stprune

METHODS = sorted(stprune.METHODS)
UNKNOWN_FIRST = [name for name in METHODS if stprune.METHODS[name]().needs_scores and name != "rs2"]


def stream_of(n=60, method="st-prune", **settings):
    return stprune.PruningSampler(n, num_epochs=None, method=method, **{"keep_ratio": 0.5} | settings)


def score_of(ids, epoch):
    """A score that tells sample and epoch."""
    return (ids * 7 % 31 + epoch + 1).float()


def train(sampler, epoch, log=None, stop=None):
    sampler.set_epoch(epoch)
    for at, ids in enumerate(sampler.batches(8)):
        if at == stop:
            return
        index = torch.from_numpy(ids)
        if log is not None:
            log.append((epoch, ids.tolist(), sampler.weights_of(index).tolist()))
        sampler.update(index, score_of(index, epoch))


# --- no end ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_run_without_an_end_keeps_its_ratio_in_any_epoch(method):
    sampler = stream_of(100, method, keep_ratio=0.3)
    for epoch in (0, 1, 2, 1000, 2**32 - 1, 5):
        train(sampler, epoch)
        assert sampler.keep_ratio_at(epoch) == 0.3
        if epoch > 0 and sampler.method.exact_count and method != "full":
            assert len(sampler) == 30
    assert "epoch 5 of a stream" in repr(sampler)


@pytest.mark.parametrize("kind", ["step", "none"])
def test_schedules_without_an_end(kind):
    sampler = stream_of(method="soft-random", schedule=kind, anneal=0.0)
    assert sampler.constant_length
    assert {sampler.keep_ratio_at(epoch) for epoch in (0, 7, 10**9)} == {0.5}
    own = stream_of(method="soft-random", schedule=lambda epoch: 0.25 if epoch == 10**9 else 0.5)
    assert (own.keep_ratio_at(10**9), own.constant_length) == (0.25, False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "cosine"}, "PruningSampler: schedule must be step, none or a function for num_epochs=None, got 'cosine'"),
        ({"num_epochs": 0}, "PruningSampler: num_epochs must lie in"),
    ],
)
def test_what_a_run_without_an_end_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        stprune.PruningSampler(10, **{"num_epochs": None} | settings)


@pytest.mark.parametrize("epoch", [-1, 2**32])
def test_epochs_of_a_run_without_an_end(epoch):
    with pytest.raises(ValueError, match=rf"set_epoch: epoch must lie in \[0, 4294967295\], got {epoch}"):
        stream_of().set_epoch(epoch)


def test_total_steps_needs_an_end():
    with pytest.raises(ValueError, match="PruningSampler.total_steps: num_epochs must be given to the sampler, got None"):
        stream_of().total_steps(8)


@pytest.mark.parametrize("epoch", [0, 3, 2**32 - 1])
@pytest.mark.parametrize("stop", [1, None])
def test_a_run_without_an_end_resumes(epoch, stop):
    whole, first, second = (stream_of() for _ in range(3))
    logs = [], []
    train(whole, epoch, logs[0])
    train(first, epoch, logs[1], stop)
    second.load_state_dict(saved(first.state_dict()))
    if stop is not None:
        train(second, epoch, logs[1])
    after = min(epoch + 1, 2**32 - 1)
    for sampler, log in ((whole, logs[0]), (second, logs[1])):
        if after > epoch:
            train(sampler, after, log)
    assert logs[0] == logs[1]
    with pytest.raises(ValueError, match="num_epochs must be 4 as in this sampler, got None in the saved state"):
        stprune.PruningSampler(60, num_epochs=4, keep_ratio=0.5).load_state_dict(first.state_dict())


# --- more samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", UNKNOWN_FIRST)
def test_new_samples_come_first_and_old_ones_keep_everything(method):
    sampler = stream_of(60, method)
    for epoch in range(3):
        train(sampler, epoch)
    before = copy.deepcopy(sampler.table)
    sampler.grow(80)
    table = sampler.table
    for mine, theirs in zip(table.columns[:3], before.columns[:3], strict=True):
        assert mine is None or torch.equal(mine[:60], theirs)
    assert torch.equal(table.scores[60:], torch.full((20,), torch.inf))
    assert torch.equal(table.variance[60:], torch.zeros(20))
    assert (table.num_nonfinite(), table.num_trained, table.num_samples) == (0, before.num_trained, 80)
    sampler.set_epoch(3)
    assert set(range(60, 80)) <= set(sampler.plan.indices.tolist())
    if sampler.method.exact_count:
        assert len(sampler) == 40


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_the_epoch_under_way_goes_on_as_planned(method, ratio):
    plain, grown = (stream_of(60, method, keep_ratio=ratio) for _ in range(2))
    for epoch in range(2):
        for sampler in (plain, grown):
            train(sampler, epoch)
            sampler.set_epoch(epoch + 1)
        before, order = grown.plan, list(grown)
        iterator = iter(grown)
        head = [next(iterator) for _ in range(3)]
        grown.grow(grown.table.num_samples)  # as large as it is
        grown.grow(60 + 10 * (epoch + 1))
        assert grown.plan is before
        assert [*head, *iterator] == list(grown) == order
        index = torch.tensor(order)
        if epoch == 0:
            assert order == list(plain)
            assert torch.equal(grown.weights_of(index), plain.weights_of(index))
        # A new id is not in the plan yet, also where that holds all the old ones.
        criterion, new = stprune.PrunedLoss(grown), 60 + 10 * epoch
        prediction = torch.ones(2, 3, 4, requires_grad=True)
        message = f"index must hold ids of the plan of epoch {epoch + 1}, got {new}"
        with pytest.raises(ValueError, match=message):
            criterion(prediction, torch.zeros(2, 3, 4), torch.tensor([order[0], new]))
        with pytest.raises(ValueError, match=message):
            grown.weights_of(torch.tensor([new]))
        criterion(prediction, torch.zeros(2, 3, 4), index[:2]).backward()
        assert grown.table.num_trained == 2


def test_strata_grow_with_the_labels_of_the_new():
    labels = torch.arange(60) % 3
    sampler = stream_of(60, strata=labels, min_per_stratum=2)
    train(sampler, 0)
    for new, message in (
        (None, "strata must label the new samples, got None"),
        (torch.zeros(9, dtype=torch.int64), "strata must have one label for each of 10 new samples, got 9"),
        (torch.full((10,), -1), "strata must be labels >= 0, got -1"),
    ):
        before = str(sampler.state_dict())
        with pytest.raises(ValueError, match=f"PruningSampler.grow: {message}"):
            sampler.grow(70, new)
        assert str(sampler.state_dict()) == before
    with pytest.raises(TypeError, match="PruningSampler.grow: strata must be int64, got torch.float32"):
        sampler.grow(70, torch.zeros(10))
    with pytest.raises(
        ValueError, match="PruningSampler.grow: strata must be None for a sampler without strata, got 10 labels"
    ):
        stream_of(60).grow(70, torch.zeros(10, dtype=torch.int64))
    new = torch.tensor([3, 3, 0, 1, 2, 300, 300, 3, 3, 300])
    sampler.grow(70, new)
    assert torch.equal(sampler.strata, torch.cat([labels, new]))
    whole = stprune.PruningSampler(70, num_epochs=None, keep_ratio=0.5, strata=torch.cat([labels, new]), min_per_stratum=2)
    state = saved(sampler.state_dict())
    whole.load_state_dict(state)
    for each in (sampler, whole):
        each.set_epoch(1)
    assert torch.equal(sampler.plan.indices, whole.plan.indices)
    assert torch.equal(sampler.plan.weights, whole.plan.weights)
    quota = stream_of(60, strata=labels, min_per_stratum=[2, 3, 4])
    with pytest.raises(ValueError, match="grow: min_per_stratum must have one number for each of 4 strata, got 3"):
        quota.grow(61, torch.tensor([3]))
    quota.grow(61, torch.tensor([2]))


@pytest.mark.parametrize("method", METHODS)
def test_states_load_into_samplers_of_their_size(method):
    small, grown = stream_of(60, method), stream_of(60, method)
    train(small, 0)
    train(grown, 0)
    old = saved(small.state_dict())
    grown.set_epoch(1)
    for ids in list(grown.batches(8))[:2]:
        grown.update(torch.from_numpy(ids), score_of(torch.from_numpy(ids), 1))
    grown.grow(90)
    new = saved(grown.state_dict())
    for sampler, state, message in (
        (grown, old, "num_samples must be 90 as in this sampler, got 60 in the saved state"),
        (small, new, "num_samples must be 60 as in this sampler, got 90 in the saved state"),
    ):
        before = str(sampler.state_dict())
        with pytest.raises(ValueError, match=f"PruningSampler.load_state_dict: {message}"):
            sampler.load_state_dict(state)
        assert str(sampler.state_dict()) == before
    small.grow(90)
    fresh = stream_of(90, method)
    logs = []
    for sampler in (grown, small, fresh):
        log = []
        if sampler is not grown:
            sampler.load_state_dict(copy.deepcopy(new))
        log.append(list(sampler) if sampler is not grown else list(sampler)[16:])
        for epoch in (2, 3):
            train(sampler, epoch, log)
        logs.append(log)
    assert logs[0] == logs[1] == logs[2]


@pytest.mark.parametrize(
    ("number", "error", "message"),
    [
        (59, ValueError, "num_samples must lie in [60, 4611686018427387904], got 59"),
        (-1, ValueError, "num_samples must lie in"),
        (80.0, TypeError, "num_samples must be an integer, got 80.0"),
        (True, TypeError, "num_samples must be an integer, got True"),
        ("80", TypeError, "num_samples must be an integer, got '80'"),
        (None, TypeError, "num_samples must be an integer, got None"),
    ],
)
def test_growth_refused(number, error, message):
    sampler = stream_of()
    train(sampler, 0)
    before = str(sampler.state_dict())
    with pytest.raises(error, match=re.escape(f"PruningSampler.grow: {message}")):
        sampler.grow(number)
    assert str(sampler.state_dict()) == before


def test_a_sharded_sampler_does_not_grow():
    sampler = stream_of(60, sharded=True)
    for grow in (sampler.grow, sampler.grow_nodes):
        with pytest.raises(ValueError, match="must be (False to grow|given to the sampler first)"):
            grow(80)
    assert sampler.table.num_samples == 60


def test_an_empty_sampler_grows():
    sampler = stream_of(0)
    assert list(sampler) == []
    sampler.grow(5)
    sampler.set_epoch(1)
    assert sorted(sampler) == [0, 1, 2, 3, 4]


def test_growth_under_a_loader():
    """The data set grows beside the sampler; the loader made before goes on."""
    data = list(range(40))
    sampler = stream_of(40)
    loader = torch.utils.data.DataLoader(data, batch_size=8, sampler=sampler)
    for epoch in range(6):
        sampler.set_epoch(epoch)
        ids = torch.cat(list(loader))
        assert sorted(ids.tolist()) == sampler.plan.indices.tolist()
        sampler.update(ids, score_of(ids, epoch))
        data += range(len(data), len(data) + 10)
        sampler.grow(len(data))
    assert sampler.table.num_samples == 100


# --- more windows of nodes, more nodes -----------------------------------------------------------------------------------


def test_pairs_grow_by_windows():
    sampler = stream_of(10, num_nodes=4, granularity="pair")
    train(sampler, 0)
    with pytest.raises(ValueError, match="PruningSampler.grow: num_samples must be a multiple of num_nodes 4, got 50"):
        sampler.grow(50)
    sampler.grow(48)
    assert (sampler.num_windows, sampler.table.num_samples) == (12, 48)
    assert sampler.windows(torch.tensor([47])).item() == 11
    lazy = stream_of(10, "soft-random", num_nodes=4, granularity="pair")
    order = list(lazy)
    lazy.grow(48)
    assert list(lazy) == order
    state = saved(lazy.state_dict())
    lazy.load_state_dict(state)
    assert list(lazy) == order
    lazy.set_epoch(1)
    assert (len(lazy), max(lazy) >= 40) == (24, True)


@pytest.mark.parametrize("method", ["st-prune", "soft-random", "ucb"])
@pytest.mark.parametrize("with_strata", [False, True])
def test_pairs_move_to_their_new_numbers(method, with_strata):
    strata = {"strata": torch.arange(40) % 3} if with_strata else {}
    sampler = stream_of(10, method, num_nodes=4, granularity="pair", **strata)
    for epoch in range(2):
        train(sampler, epoch)
    stored = sampler.table.stored
    before, plan = copy.deepcopy(sampler.table), sampler.plan
    moved = lambda ids: torch.div(ids, 4, rounding_mode="floor") * 6 + ids % 4
    sampler.grow_nodes(6, **({"strata": torch.full((20,), 3)} if with_strata else {}))
    assert (sampler.num_nodes, sampler.num_windows, sampler.table.num_samples) == (6, 10, 60)
    new = torch.ones(60, dtype=torch.bool)
    new[moved(torch.arange(40))] = False
    if stored:
        for mine, theirs in zip(sampler.table.columns[:3], before.columns[:3], strict=True):
            assert mine is None or torch.equal(mine[moved(torch.arange(40))], theirs)
        assert torch.equal(sampler.table.scores[new], torch.full((20,), torch.inf))
        assert torch.equal(sampler.plan.indices, moved(plan.indices))
        assert torch.equal(sampler.plan.weights, plan.weights)
    if with_strata:
        assert torch.equal(sampler.strata[moved(torch.arange(40))], torch.arange(40) % 3)
        assert set(sampler.strata[new].tolist()) == {3}
    assert len(sampler.plan) == len(plan)
    state = saved(sampler.state_dict())
    assert state["finished"]
    again = stream_of(10, method, num_nodes=6, granularity="pair", **({"strata": sampler.strata} if with_strata else {}))
    again.load_state_dict(state)
    logs = []
    for each in (sampler, again):
        log = []
        for epoch in (2, 3):
            train(each, epoch, log)
        logs.append(log)
    assert logs[0] == logs[1]
    if method == "st-prune":
        assert set(new.nonzero().flatten().tolist()) <= {i for e, ids, _ in logs[0] if e == 2 for i in ids}


@pytest.mark.parametrize("node_sampler", ["uniform", "priority"])
def test_nodes_of_windows_grow_between_epochs(node_sampler):
    def step(sampler, ids, epoch):
        index = torch.from_numpy(ids)
        node = sampler.nodes(index)
        sampler.table.update(index, score_of(index, epoch), trained=True)
        sampler.take_in(index, node, (node + 1.0) if sampler.wants_pair_scores else None)

    sampler = stream_of(30, num_nodes=8, node_ratio=0.5, node_sampler=node_sampler)
    for ids in sampler.batches(8):
        step(sampler, ids, 0)
    sampler.grow_nodes(11)
    sampler.grow(40)
    assert sampler.nodes(torch.tensor([39])).shape == (1, 6)
    state = saved(sampler.state_dict())
    again = stream_of(40, num_nodes=11, node_ratio=0.5, node_sampler=node_sampler)
    again.load_state_dict(state)
    with pytest.raises(ValueError, match="num_(samples|nodes) must be"):
        stream_of(30, num_nodes=8, node_ratio=0.5, node_sampler=node_sampler).load_state_dict(state)
    for each in (sampler, again):
        each.set_epoch(1)
        for ids in each.batches(8):
            step(each, ids, 1)
        each.set_epoch(2)
    assert torch.equal(sampler.nodes(torch.arange(40)), again.nodes(torch.arange(40)))
    assert int(sampler.nodes(torch.arange(40)).max()) == 10


def test_node_samplers_are_told_about_new_nodes():
    groups = torch.tensor([0, 0, 1, 1])
    sampler = stream_of(6, num_nodes=4, node_ratio=0.5, node_sampler=stprune.Stratified(groups))
    before = str(sampler.state_dict())
    with pytest.raises(ValueError, match="groups must have one label for each of 6 nodes"):
        sampler.grow_nodes(6)
    assert (sampler.num_nodes, str(sampler.state_dict())) == (4, before)
    sampler.grow_nodes(6, groups=torch.tensor([0, 0, 1, 1, 2, 2]))
    assert sampler.nodes(torch.tensor([5])).shape == (1, 3)
    assert (sampler.nodes(torch.arange(6)) >= 4).sum(1).tolist() == [1] * 6


@pytest.mark.parametrize("settings", [{"granularity": "pair"}, {"node_ratio": 0.5}], ids=str)
def test_nodes_do_not_grow_in_the_middle_of_an_epoch(settings):
    def refused(sampler):
        before = str(sampler.state_dict())
        with pytest.raises(RuntimeError, match="grow_nodes: the epoch must be over or not begun, got epoch 0 in the middle"):
            sampler.grow_nodes(8)
        assert str(sampler.state_dict()) == before

    make = lambda: stream_of(10, num_nodes=4, **settings)
    sampler = make()
    sampler.grow_nodes(5)
    sampler.set_epoch(0)
    sampler.grow_nodes(6)  # planned, but not begun
    iterator = iter(sampler.batches(4))
    sampler.grow_nodes(7)
    next(iterator)
    refused(sampler)  # ids are on their way
    sampler = make()
    batches = list(sampler.batches(4))
    sampler.grow_nodes(4)  # only looked at
    sampler.update(torch.from_numpy(batches[0]), torch.ones(4))
    refused(sampler)
    again = make()
    again.load_state_dict(saved(sampler.state_dict()))
    refused(again)  # a state from the middle
    sampler.set_epoch(1)
    sampler.grow_nodes(6)


@pytest.mark.parametrize(
    ("number", "error", "message"), [(3, ValueError, "num_nodes must lie in"), (5.0, TypeError, "num_nodes must be an integer")]
)
def test_growth_of_nodes_refused(number, error, message):
    with pytest.raises(error, match=f"PruningSampler.grow_nodes: {message}"):
        stream_of(10, num_nodes=4, node_ratio=0.5).grow_nodes(number)
    with pytest.raises(ValueError, match="PruningSampler.grow_nodes: num_nodes must be given to the sampler first, got None"):
        stream_of(10).grow_nodes(4)


# --- slots used again -----------------------------------------------------------------------------------------------------


def test_a_forgotten_sample_is_unknown():
    table = stprune.ScoreTable(6, beta=0.5, track_variance=True)
    for value in (1.0, 4.0):
        table.update(torch.arange(6), torch.full((6,), value), trained=True)
        table.advance()
    table.update(torch.tensor([1, 2]), torch.tensor([torch.nan, torch.inf]))
    assert table.num_nonfinite() == 2
    table.forget(torch.tensor([2, 1, 2, 4]))
    assert table.num_nonfinite() == 0
    assert table.scores.tolist() == [2.5, torch.inf, torch.inf, 2.5, torch.inf, 2.5]
    assert table.variance[[1, 2, 4]].tolist() == [0.0] * 3
    table.update(torch.tensor([4, 5]), torch.tensor([8.0, 8.5]))
    assert table.scores[[4, 5]].tolist() == [8.0, 5.5], "the next score replaces, and is not smoothed"
    assert table.variance[4] == 0.0


@pytest.mark.parametrize("method", UNKNOWN_FIRST)
def test_forgotten_samples_come_first_in_the_next_epoch(method):
    sampler = stream_of(60, method)
    for epoch in range(3):
        train(sampler, epoch)
    gone = torch.arange(0, 60, 4)
    sampler.forget(gone)
    sampler.set_epoch(3)
    assert set(gone.tolist()) <= set(sampler.plan.indices.tolist())


def test_forgetting_leaves_the_epochs_position_alone():
    sampler = stream_of(method="soft-random", keep_ratio=1.0)
    order = list(sampler)
    index = torch.tensor(order)
    sampler.update(index[:24], torch.ones(24))
    sampler.forget(index[10:30])  # some were trained on, some were not yet
    assert sampler.state_dict()["position"] == 24
    again = stream_of(method="soft-random", keep_ratio=1.0)
    again.load_state_dict(saved(sampler.state_dict()))
    assert list(again) == order[24:]
    sampler.update(index[24:], torch.full((36,), 2.0))
    assert sampler.state_dict()["finished"]
    assert torch.equal(sampler.table.scores[index[10:24]], torch.full((14,), torch.inf))
    assert torch.equal(sampler.table.scores[index[24:]], torch.full((36,), 2.0))


def test_forgotten_windows_forget_their_pairs():
    sampler = stream_of(10, num_nodes=6, node_ratio=0.5, node_sampler="priority")
    index = torch.arange(10)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        sampler.table.update(index, torch.ones(10), trained=True)
        sampler.take_in(index, sampler.nodes(index), torch.ones(10, 3))
    sampler.forget(torch.tensor([3, 7]))
    sampler.set_epoch(2)
    known = (sampler.node_sampler.table.rows(index) < torch.inf).any(1)
    assert known.tolist() == [i not in (3, 7) for i in range(10)]


def test_a_sampler_that_stores_nothing_forgets_nothing():
    sampler = stream_of(10, "soft-random", num_nodes=4, granularity="pair")
    order = list(sampler)
    sampler.forget(torch.tensor([3]))
    assert list(sampler) == order


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (torch.tensor([60]), ValueError, r"index must lie in \[0, 59\], got 60"),
        (torch.tensor([-1]), ValueError, r"index must lie in \[0, 59\], got -1"),
        (torch.tensor([1.0]), TypeError, "index must be int64, got torch.float32"),
        (torch.tensor([True]), TypeError, "index must be int64, got torch.bool"),
        (torch.tensor([[1]]), ValueError, r"index must have one dimension, got shape \(1, 1\)"),
        ([1], TypeError, "index must be a tensor, got list"),
        (3, TypeError, "index must be a tensor, got int"),
    ],
)
def test_forgetting_refused(index, error, message):
    sampler = stream_of()
    train(sampler, 0)
    before = str(sampler.state_dict())
    with pytest.raises(error, match=f"ScoreTable.forget: {message}"):
        sampler.forget(index)
    assert str(sampler.state_dict()) == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3,), ValueError, "num_samples must lie in"),
        ((4.0,), TypeError, "num_samples must be an integer"),
        ((9, 2), ValueError, "num_samples must be a multiple of 2 rows, got 9 after 4"),
        ((8, 0), ValueError, "rows must be at least 1, got 0"),
    ],
)
def test_growth_of_a_table_refused(arguments, error, message):
    table = stprune.ScoreTable(4)
    with pytest.raises(error, match=f"ScoreTable.grow: {message}"):
        table.grow(arguments[0], rows=arguments[1] if len(arguments) > 1 else 1)
    assert table.num_samples == len(table.scores) == 4


# --- long runs ------------------------------------------------------------------------------------------------------------


SETTINGS = [
    *({"method": method} for method in METHODS),
    {"method": "soft-random", "granularity": "pair", "num_nodes": 3},
    {"method": "ucb", "granularity": "pair", "num_nodes": 3},
    {"method": "st-prune", "num_nodes": 6, "node_ratio": 0.5, "node_sampler": "priority"},
    {"method": "st-prune", "strata": torch.arange(40) % 3, "min_per_stratum": 2},
    {"method": "st-prune", "fixed_length": True},
]


@pytest.mark.parametrize(
    "settings", SETTINGS, ids=lambda each: "-".join(str(v) for v in each.values() if not torch.is_tensor(v))
)
def test_a_long_run_that_grows_and_forgets_continues_from_every_step(settings):
    """Each epoch the data grows, also in its middle, and slots are used again; a state after any step takes the same steps."""

    pairs = settings.get("granularity") == "pair"

    def make(size=40, **changed):
        return stream_of(size, **settings | changed)

    def events(sampler, epoch, at):
        """What the run's owner does after a step."""
        n = sampler.table.num_samples
        if at == 1:
            sampler.forget(torch.arange(epoch, n, 11))
        if at == 2:
            more = {"strata": torch.arange(12) % 3} if "strata" in settings else {}
            sampler.grow(n + (4 * sampler.num_nodes if pairs else 12), **more)

    def grow_nodes(sampler, epoch):
        if pairs and epoch % 2:
            sampler.grow_nodes(sampler.num_nodes + 1)

    def run(sampler, first, taken, log, states=None):
        """Epochs from `first` on, of which `taken` steps were taken before."""
        for epoch in range(first, 4 if pairs else 6):
            sampler.set_epoch(epoch)
            for at, ids in enumerate(sampler.batches(20 if pairs else 5), taken):
                index = torch.from_numpy(ids)
                node = sampler.nodes(index) if sampler.wants_pair_scores else None
                log.append(
                    (epoch, at, ids.tolist(), sampler.weights_of(index).tolist(), None if node is None else node.tolist())
                )
                sampler.table.update(index, score_of(index, epoch), trained=True)
                sampler.take_in(index, node, None if node is None else node + index[:, None] + 1.0)
                events(sampler, epoch, at)
                if states is not None:
                    grown = {} if sampler.strata is None else {"strata": sampler.strata}
                    grown |= {"num_nodes": sampler.num_nodes} if pairs else {}
                    states.append((epoch, at + 1, len(log), sampler.num_windows, grown, saved(sampler.state_dict())))
            taken = 0
            grow_nodes(sampler, epoch)
        sampler.finish()

    whole, states = [], []
    run(make(), 0, 0, whole, states)
    assert len(states) > 10
    for epoch, taken, steps, size, grown, state in states:
        again, log, over = make(size, **grown), [], state["finished"]
        again.load_state_dict(copy.deepcopy(state))
        if over:
            grow_nodes(again, epoch)
        run(again, epoch + over, 0 if over else taken, log)
        assert log == whole[steps:], f"after step {taken} of epoch {epoch}"


def test_ids_and_arrays_of_numpy_work():
    sampler = stream_of(np.int64(8))
    sampler.grow(np.int64(10))
    sampler.grow(np.uint8(12))
    assert sampler.table.num_samples == 12
