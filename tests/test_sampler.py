"""PruningSampler: loaders, lengths, ranks, resume, fixed length, memory."""

import copy
import io
import math
import pickle
import re

import numpy as np
import pytest
import torch
from own_process import run as run_alone
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import stprune
from stprune.epochs import Epochs
from stprune.table import LAYOUT, ScoreTable

METHODS = sorted(stprune.METHODS)


def scored(n=100, epoch=1, num_epochs=8, **kwargs):
    """A sampler in its second epoch, with every sample scored."""
    sampler = stprune.PruningSampler(n, num_epochs=num_epochs, **kwargs)
    sampler.table.update(torch.arange(n), torch.empty(n).log_normal_(generator=torch.Generator().manual_seed(1)))
    sampler.set_epoch(epoch)
    return sampler


def ids_of(loader):
    return [int(i) for index, _ in loader for i in index]


def dataset(n=100):
    return stprune.IndexedDataset(TensorDataset(torch.arange(n, dtype=torch.float32), torch.arange(n) * 2))


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield 1


# --- the contract of a sampler ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_len_is_right_before_iter_in_every_epoch(method):
    sampler = stprune.PruningSampler(101, num_epochs=8, keep_ratio=0.3, method=method)
    for epoch in range(8):
        sampler.set_epoch(epoch)
        length = len(sampler)
        ids = list(sampler)
        assert len(ids) == length
        assert len(set(ids)) == length
        assert all(type(i) is int for i in ids[:3])
        sampler.update(torch.tensor(ids), torch.tensor(ids) * 1.5 + 1)
    assert length == 101  # annealed


def test_neither_iterators_nor_scores_nor_set_epoch_again_move_the_running_epoch():
    sampler = scored(keep_ratio=0.5)
    plan, order = sampler.plan, list(sampler)
    first, second = iter(sampler), iter(sampler)
    head = next(first)
    sampler.update(torch.tensor(order[:10]), torch.full((10,), 99.0))
    sampler.set_epoch(1)
    assert [head, *first] == list(second) == list(sampler) == order
    assert sampler.plan is plan
    assert sampler.epoch == 1


def test_the_schedule_asks_for_the_ratio():
    sampler = scored(n=1000, num_epochs=8, keep_ratio=0.3)
    lengths = []
    for epoch in range(1, 8):
        sampler.set_epoch(epoch)
        lengths.append(len(sampler))
    assert lengths == [300] * 6 + [1000]
    assert [sampler.keep_ratio_at(e) for e in (0, 6, 7)] == [0.3, 0.3, 1.0]


def test_scores_steer_the_next_epoch():
    sampler = scored(n=100, keep_ratio=0.1, method="top-k", epoch=0)
    sampler.update(torch.arange(100), torch.arange(100.0))
    sampler.set_epoch(1)
    assert sorted(sampler) == list(range(90, 100))


@pytest.mark.parametrize(("n", "size"), [(1000, 64), (200_000, 1000)])  # the larger one is made chunk by chunk
@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_are_the_order_in_arrays(n, size, drop_last):
    sampler = stprune.PruningSampler(n, num_epochs=1, method="full")
    batches = sampler.batches(size, drop_last=drop_last)
    arrays = list(batches)
    assert len(arrays) == len(batches) == n // size + (n % size > 0 and not drop_last)
    assert {len(a) for a in arrays[:-1]} == {size}
    assert all(isinstance(a, np.ndarray) and a.dtype == np.int64 for a in arrays)
    joined, order = np.concatenate(arrays).tolist(), list(sampler)
    assert joined == order[: len(joined)]
    assert sorted(order) == list(range(n))


def test_total_steps_is_what_a_run_takes():
    for fixed_length in (False, True):
        for drop_last in (False, True):
            sampler = stprune.PruningSampler(1001, num_epochs=8, keep_ratio=0.3, fixed_length=fixed_length, drop_last=drop_last)
            steps = 0
            for epoch in range(8):
                sampler.set_epoch(epoch)
                for ids in sampler.batches(64):
                    steps += 1
                    sampler.update(torch.from_numpy(ids), torch.rand(len(ids)) + 0.1)
                if epoch == 0:  # drop_last may leave a few unknown, which the next epoch must keep
                    sampler.table.update(torch.arange(1001), torch.rand(1001) + 0.1)
            assert steps == sampler.total_steps(64)
    # An upper bound where the method decides how many it keeps.
    assert stprune.PruningSampler(1000, num_epochs=10, method="infobatch").total_steps(100) == 100


# --- fixed length ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [m for m in METHODS if stprune.METHODS[m].exact_count and m != "full"])
def test_fixed_length_is_the_same_in_every_epoch(method):
    sampler = stprune.PruningSampler(1000, num_epochs=8, keep_ratio=0.3, method=method, fixed_length=True)
    for epoch in range(8):
        sampler.set_epoch(epoch)
        assert len(sampler) == 300
        ids = torch.tensor(list(sampler))
        sampler.update(ids, torch.rand(300, generator=torch.Generator().manual_seed(epoch)))


# --- loaders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"drop_last": True},
        {"num_workers": 2, "prefetch_factor": 4},
        {"num_workers": 2, "persistent_workers": True},
    ],
    ids=str,
)
def test_under_a_data_loader(options):
    sampler = scored(n=101, keep_ratio=0.5)
    loader = DataLoader(dataset(101), batch_size=8, sampler=sampler, **options)
    for epoch in (1, 2, 7):
        sampler.set_epoch(epoch)
        size = len(sampler) // 8 if options.get("drop_last") else -(-len(sampler) // 8)
        assert len(loader) == size
        expected = list(sampler)
        for _ in range(2):
            delivered = ids_of(loader)
            assert delivered == expected[: len(delivered)]
            assert math.ceil(len(delivered) / 8) == size


def test_pin_memory():
    # without a GPU the loader warns and does not pin; ids still arrive as they are
    sampler = scored(keep_ratio=0.5)
    with pytest.warns(UserWarning) if not torch.cuda.is_available() else pytest.MonkeyPatch.context():
        loader = DataLoader(dataset(), batch_size=8, sampler=sampler, pin_memory=True)
        assert ids_of(loader) == list(sampler)


def test_batches_as_batch_sampler_follow_the_epoch():
    sampler = scored(keep_ratio=0.5)
    loader = DataLoader(dataset(), batch_sampler=sampler.batches(16))
    for epoch in (1, 7):
        sampler.set_epoch(epoch)
        assert ids_of(loader) == list(sampler)
        assert len(loader) == math.ceil(len(sampler) / 16)


@pytest.mark.parametrize("drop_last", [False, True])
def test_under_torchs_batch_sampler(drop_last):
    """torch 2.6 calls iter() on the sampler again and again (pytorch#137423)."""
    sampler = scored(n=101, keep_ratio=0.5)
    batches = BatchSampler(sampler, 8, drop_last)
    delivered = [i for batch in batches for i in batch]
    assert len(delivered) == (48 if drop_last else 50)
    assert delivered == list(sampler)[: len(delivered)]
    assert len(list(batches)) == len(batches)


# --- ranks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [12, 13, 14, 2, 1])
@pytest.mark.parametrize("num_replicas", [1, 2, 3, 5])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_the_order_as_distributed_sampler_does(n, num_replicas, drop_last):
    ranks = [
        stprune.PruningSampler(n, num_epochs=1, method="full", num_replicas=num_replicas, rank=r, drop_last=drop_last)
        for r in range(num_replicas)
    ]
    order = ranks[0].plan.order(0, n).tolist()
    if drop_last:
        padded = order[: n // num_replicas * num_replicas]
    else:
        padded = (order * num_replicas)[: -(-n // num_replicas) * num_replicas]
    for rank, sampler in enumerate(ranks):
        assert list(sampler) == padded[rank::num_replicas]
        assert len(sampler) == len(padded) // num_replicas
        assert sampler.total_size == len(padded)


def test_trainers_take_it_for_a_distributed_sampler():
    sampler = stprune.PruningSampler(10, num_epochs=1, method="full", num_replicas=2, rank=1)
    assert isinstance(sampler, DistributedSampler)
    assert not isinstance(sampler, RandomSampler)
    assert sampler.num_samples == 5


# --- nodes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_nodes", "ratio", "count"), [(10, 0.3, 3), (30, 0.1, 3), (192, 0.3, 58), (5, 0.01, 1), (7, 1.0, 7)]
)
def test_number_of_nodes(num_nodes, ratio, count):
    sampler = stprune.PruningSampler(5, num_epochs=1, num_nodes=num_nodes, node_ratio=ratio)
    assert sampler.nodes(torch.tensor([0])).shape == (1, count)


def test_nodes_need_a_number():
    with pytest.raises(ValueError, match="num_nodes must be given to the sampler"):
        stprune.PruningSampler(5, num_epochs=1).nodes(torch.tensor([0]))


# --- resume ----------------------------------------------------------------------------------------------------------


def train(sampler, epochs, stop=None, log=None):
    """Deliver, score by a deterministic rule, and record; stop after `stop` batches of the last epoch."""
    log = [] if log is None else log
    for epoch in epochs:
        sampler.set_epoch(epoch)
        for count, ids in enumerate(sampler.batches(16)):
            if stop is not None and epoch == epochs[-1] and count == stop:
                return log
            index = torch.from_numpy(ids)
            weight = sampler.plan.lookup(index)[0]
            log.append((epoch, ids.tolist(), weight.tolist()))
            sampler.update(index, (index * 7 % 31 + epoch).float())
    return log


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop", [0, 1, 5])
def test_resume_in_the_middle_of_an_epoch_continues_bit_for_bit(method, stop):
    make = lambda: stprune.PruningSampler(300, num_epochs=6, keep_ratio=0.4, method=method, seed=3)
    whole = train(make(), range(6))
    first = make()
    log = train(first, range(4), stop=stop)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second = make()
    second.load_state_dict(torch.load(buffer, weights_only=True))
    assert len(second) == len(first)
    train(second, range(3, 6), log=log)
    assert log == whole


def test_resume_with_another_number_of_ranks():
    make = lambda replicas, rank: stprune.PruningSampler(
        120, num_epochs=4, method="soft-random", keep_ratio=0.5, num_replicas=replicas, rank=rank
    )
    old = [make(2, r) for r in range(2)]
    delivered = []
    for sampler in old:
        sampler.set_epoch(1)
        ids = next(iter(sampler.batches(10)))
        delivered += ids.tolist()
        sampler.update(torch.from_numpy(ids), torch.ones(10))
    state = old[0].state_dict()
    assert state["position"] == 20
    new = [make(4, r) for r in range(4)]
    for sampler in new:
        sampler.load_state_dict(state)
        assert len(sampler) == 15
        delivered += list(sampler)
        assert len(list(sampler)) == 15
    assert sorted(delivered) == old[0].plan.indices.tolist()


def test_prefetched_batches_do_not_count_as_trained():
    sampler = scored(keep_ratio=0.5)
    iterator = iter(DataLoader(dataset(), batch_size=5, sampler=sampler, num_workers=2, prefetch_factor=4))
    index, _ = next(iterator)
    sampler.update(index, torch.ones(5))
    assert sampler.state_dict()["position"] == 5
    order = list(sampler)
    other = scored(keep_ratio=0.5)
    other.load_state_dict(sampler.state_dict())
    assert list(other) == order[5:]


METHOD_OF = stprune.METHODS
STRATA = torch.arange(10) % 2


class Own:
    """A method without the base class; its parameter belongs to the state."""

    def __init__(self, share=0.5):
        self.share = share

    def inclusion(self, scores, *, keep_ratio, seed, epoch):
        return torch.full_like(scores, keep_ratio)

    def weights(self, probability):
        return torch.full_like(probability, self.share)


@pytest.mark.parametrize(
    ("saved", "loaded", "name"),
    [
        ({}, {"n": 11}, "num_samples must be 11"),
        ({}, {"seed": 1}, "seed must be 1"),
        ({}, {"keep_ratio": 0.4}, "keep_ratio must be 0.4"),
        ({}, {"num_epochs": 9}, "num_epochs must be 9"),
        ({}, {"drop_last": True}, "drop_last must be True"),
        ({}, {"method": "ucb"}, "method.name must be 'ucb'"),
        ({"method": METHOD_OF["st-prune"](alpha=1.0)}, {}, "method.alpha must be 0.5 as in this sampler, got 1.0"),
        ({"method": METHOD_OF["st-prune"](weight_cap=2.0)}, {}, "method.weight_cap must be 5.0"),
        ({"method": METHOD_OF["spaced"](spacing=2)}, {"method": "spaced"}, "method.spacing must be 24"),
        ({"method": Own(0.25)}, {"method": Own()}, "method.share must be 0.5"),
        ({}, {"strata": STRATA}, "strata must be"),
        ({"strata": STRATA}, {"strata": STRATA.flip(0)}, "strata must be"),
        ({"strata": STRATA, "min_per_stratum": 2}, {"strata": STRATA}, "min_per_stratum must be 0"),
    ],
)
def test_a_state_of_other_settings_is_refused_by_name_and_nothing_changes(saved, loaded, name):
    state = scored(**({"n": 10} | saved)).state_dict()
    other = scored(**({"n": 10} | loaded))
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=f"PruningSampler.load_state_dict: {re.escape(name)}"):
        other.load_state_dict(state)
    after = other.state_dict()
    assert str(after) == str(before)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            lambda state: {name: value for name, value in state.items() if name != "position"},
            ValueError,
            "must have the entries",
        ),
        (lambda state: state | {"table": {}}, ValueError, "state must have the entries"),
        (lambda state: state | {"extra": 1}, ValueError, "state must have the entries"),
        (lambda state: {"version": 99}, ValueError, "version must be 3, got 99"),
        (lambda state: [], TypeError, "state must be a dictionary, got list"),
    ],
)
def test_a_damaged_state_is_refused_and_nothing_changes(damage, error, message):
    sampler = scored(n=10)
    before = str(sampler.state_dict())
    with pytest.raises(error, match=message):
        sampler.load_state_dict(damage(sampler.state_dict()))
    assert str(sampler.state_dict()) == before


def test_weights_of_a_full_plan_continue():
    """A method may keep everything and weigh it all the same."""
    make = lambda: stprune.PruningSampler(10, num_epochs=3, method=EverythingAtHalf(), keep_ratio=0.999)
    sampler, again = make(), make()
    sampler.set_epoch(1)
    again.load_state_dict(sampler.state_dict())
    index = torch.arange(10)
    assert again.weights_of(index, per_step=False).tolist() == sampler.weights_of(index, per_step=False).tolist() == [0.5] * 10


class EverythingAtHalf(stprune.Method):
    needs_scores = False

    def inclusion(self, scores, *, keep_ratio, seed, epoch):
        return torch.ones_like(scores)

    def weights(self, probability):
        return torch.full_like(probability, 0.5)


# --- copies, settings, scale -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_deliver_the_same(duplicate):
    sampler = scored(keep_ratio=0.5)
    assert list(duplicate(sampler)) == list(sampler)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(
    ("kept", "kind"),
    [
        (lambda sampler: sampler, Epochs),
        (lambda sampler: sampler, ScoreTable),
        (lambda sampler: sampler.table, ScoreTable),
        (stprune.PrunedLoss, ScoreTable),
        (stprune.PrunedMean, Epochs),
        (lambda sampler: stprune.WindowLoader(torch.rand(123, 2), sampler, batch_size=4), Epochs),
    ],
)
def test_a_pickle_of_another_version_is_refused(kept, kind, sharded, monkeypatch):
    """A sampler from before a batch's counts had a fourth number was loaded, and failed in its first training step."""
    held = kept(stprune.PruningSampler(100, num_epochs=2, sharded=sharded))
    with monkeypatch.context() as before:
        before.delattr(kind, "__getstate__")
        old = pickle.dumps(held)
    with pytest.raises(ValueError, match=r"layout of the pickle must be \d+, got None: another version .* state_dict\(\)"):
        pickle.loads(old)


def test_what_is_pickled_has_a_number_for_its_layout():
    """When this fails: give LAYOUT the next number, so that pickles from before are refused, and put the new names here."""
    sampler = scored()
    names = {
        1: (
            "_agreed _memory _planner _ranks _running _units _warned anneal auto_nodes draws_nodes drop_last epoch "
            "fixed_length granularity keep_ratio last_pass layout method min_per_stratum node_sampler num_epochs schedule seed "
            "sharded shuffle table",
            "_count _marks _scores _variance beta decay epoch layout num_samples stored",
            4,
        )
    }
    found = [" ".join(sorted(each.__getstate__())) for each in (sampler, sampler.table)]
    assert (*found, len(sampler.table.columns[3])) == names[LAYOUT]


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"keep_ratio": 0.0}, ValueError, r"keep_ratio must lie in \(0, 1\], got 0"),
        ({"keep_ratio": 1.5}, ValueError, "keep_ratio must lie in"),
        ({"keep_ratio": math.nan}, ValueError, "keep_ratio must lie in"),
        ({"data_source": 4.0}, TypeError, "data_source must be a length or a data set with one, got float"),
        ({"data_source": Stream()}, TypeError, "data_source must be a length or a data set with one, got Stream"),
        ({"method": "infobatch", "fixed_length": True}, ValueError, "fixed_length must be False .* got 'infobatch'"),
        ({"node_ratio": 0.5}, ValueError, "num_nodes must be given when node_ratio is below 1"),
        (
            {"data_source": DataLoader(range(10), 2)},
            TypeError,
            "must be a data set .* whose length counts batches",
        ),
        ({"data_source": True}, TypeError, "data_source must be an integer, got True"),
        ({"data_source": torch.tensor(4.0)}, TypeError, "data_source must be an integer, got 4.0"),
        ({"process_group": "all"}, ValueError, "process_group must be a process group, None or 'none', got 'all'"),
        ({"num_epochs": 0}, ValueError, "num_epochs must lie in"),
        ({"num_epochs": 2.0}, TypeError, "num_epochs must be an integer"),
        ({"anneal": 1.5}, ValueError, "anneal must lie in"),
        ({"seed": -1}, ValueError, "seed must lie in"),
        ({"node_ratio": 0.0}, ValueError, "node_ratio must lie in"),
        ({"num_replicas": 2, "rank": 2}, ValueError, r"rank must lie in \[0, 1\], got 2"),
        ({"method": "best"}, ValueError, "PruningSampler: method must be one of"),
        ({"schedule": "linear"}, ValueError, "schedule must be one of"),
        ({"strata": torch.zeros(9, dtype=torch.int64)}, ValueError, "one label for each of 10 samples, got 9"),
    ],
)
def test_bad_settings(kwargs, error, message):
    with pytest.raises(error, match=message):
        stprune.PruningSampler(**({"data_source": 10, "num_epochs": 4} | kwargs))


@pytest.mark.parametrize("epoch", [-1, 4])
def test_epoch_outside_the_run(epoch):
    sampler = stprune.PruningSampler(10, num_epochs=4)
    with pytest.raises(ValueError, match=rf"set_epoch: epoch must lie in \[0, 3\], got {epoch}; epochs count from 0$"):
        sampler.set_epoch(epoch)
    assert sampler.epoch == 0


@pytest.mark.parametrize("size", [np.int64(64), np.uint16(64), torch.tensor(64), range(64), torch.zeros(64, 2)])
def test_a_length_is_any_whole_number_or_whatever_has_one(size):
    assert len(stprune.PruningSampler(size, num_epochs=2)) == 64


def test_joined_data_sets_whose_ids_collide_are_refused():
    parts = [dataset(6), dataset(6)]
    joined = torch.utils.data.ConcatDataset(parts)
    with pytest.raises(ValueError, match="data_source must give every sample an id of its own"):
        stprune.PruningSampler(joined, num_epochs=2)
    # By its length alone nobody can know, before an epoch has come to its end.
    sampler = stprune.PruningSampler(len(joined), num_epochs=3)
    criterion = stprune.PrunedLoss(sampler)
    for index, (x, _) in DataLoader(joined, batch_size=4, sampler=sampler):
        criterion(x.view(-1, 1, 1).clone().requires_grad_(), torch.zeros(len(x), 1, 1), index).backward()
    with pytest.raises(ValueError, match="an id of its own, got 6 ids for 12 samples"):
        sampler.set_epoch(1)


def test_strata_are_copied():
    strata = torch.arange(10) % 2
    sampler = stprune.PruningSampler(10, num_epochs=2, strata=strata)
    strata.zero_()
    assert sampler.strata.tolist() == [0, 1] * 5


SCALE = """
import resource, torch, stprune
n = 50_000_000
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
sampler = stprune.PruningSampler(n, num_epochs=8, keep_ratio=0.5)
# scores of an earlier run, so that the first epoch is planned at half size
for start in range(0, n, 1 << 20):
    ids = torch.arange(start, min(n, start + (1 << 20)))
    sampler.table.update(ids, (ids % 1009).float() + 1)
base = peak()
sampler.set_epoch(1)
delivered = 0
for ids in sampler.batches(1 << 16):
    index = torch.from_numpy(ids)
    sampler.update(index, torch.ones(len(ids)))
    delivered += len(ids)
iterator = iter(sampler)
assert isinstance(next(iterator), int)
assert delivered == len(sampler) == n // 2
print((peak() - base) / 2**30)
"""


@pytest.mark.slow
def test_fifty_million_samples_fit_in_three_gigabytes_above_the_table():
    assert float(run_alone(SCALE)) < 3.0
