"""sharded=True in real processes: plan, weights, order and scores of a whole table, with n / ranks scores on each rank."""

import contextlib
import copy
import os
import signal
import time

import pytest
import rank_processes
import test_ranks
import torch
from torch import distributed

import stprune
from stprune.reference import table_update as reference
from stprune.reference.finite_stats import tree_sum
from stprune.sharded.owners import bounds_of, own_nodes, root_of

MOST = 4
METHODS = ("st-prune", "infobatch", "top-k")
SIZES = (3, 3 * 4096 + 5)  # fewer blocks of 4,096 than ranks; a block cut short
SHARED = 9001  # of three blocks: a rank of four owns none
SAMPLED = 140_001  # enough for a sample to bracket the constant of the budget


def spread(n, random):
    return torch.rand(n, generator=random).pow(8)


INPUTS = {
    "normal": spread,
    "nan and inf": lambda n, random: torch.where(torch.rand(n, generator=random) < 0.1, torch.nan, spread(n, random)),
    "ties": lambda n, random: torch.randint(0, 3, (n,), generator=random).float(),
    "all equal": lambda n, random: torch.full((n,), 0.7),
    "zeros": lambda n, random: torch.zeros(n) - 0.0,
    "negative": lambda n, random: torch.randn(n, generator=random),
}


def pair(n, **options):
    """A sampler with the whole table on every rank, and one with a part of it."""
    return [stprune.PruningSampler(n, num_epochs=8, keep_ratio=0.3, sharded=sharded, **options) for sharded in (False, True)]


def same(name, *, sampled=False, strata=False):
    """Epochs of both samplers with the same scores; what differs is returned, by method, size and epoch."""

    def case(rank, start):
        start()
        if strata:
            return [found for method in METHODS for found in differences(method, 50_003, INPUTS[name], 2, strata=True)]
        cases = [("st-prune", SAMPLED)] if sampled else [(method, n) for method in METHODS for n in SIZES]
        return [found for method, n in cases for found in differences(method, n, INPUTS[name], 2 if sampled else 3)]

    return case


def differences(method, n, values, epochs, *, strata=False):
    rule = stprune.METHODS[method]()
    if method == "st-prune" and values is INPUTS["negative"]:
        rule = stprune.METHODS[method](alpha=0.7)
    labels = torch.arange(n) * 7 // 5003 % 9 if strata else None  # stretches of time, of which each comes again
    whole, part = pair(n, method=rule, seed=n, drop_last=method == "infobatch", strata=labels)
    for epoch in range(epochs):
        scores = values(n, torch.Generator().manual_seed(epoch))
        one, other = epoch_of(whole, epoch, scores), epoch_of(part, epoch, scores)
        yield from (f"{method} {n} {epoch} {key}" for key in one if one[key] != other[key])
    for sampler in (whole, part):
        sampler.set_epoch(epochs)  # ages the scores
    low, high = part.table.owners.start, part.table.owners.stop
    if not equal(whole.table.scores[low:high], part.table.scores):
        yield f"{method} {n} scores"


def equal(one, other):
    return torch.equal(one.nan_to_num(nan=-7.0), other.nan_to_num(nan=-7.0))


def epoch_of(sampler, epoch, values):
    sampler.set_epoch(epoch)
    ids = torch.tensor(list(sampler), dtype=torch.int64)
    sampler.update(ids, values[ids])
    sampler.update(ids[:2], values[ids[:2]] * 3.0)  # a second loss of a batch
    return {
        "ids": ids.tolist(),
        "weights": sampler.weights_of(ids).tolist(),
        "lengths": (len(sampler), len(sampler.plan)),
        "mean": sampler.plan.mean_weight,
        "trained": (sampler.table.share if sampler.sharded else sampler.table).num_trained,
    }


def first_epoch(rank, start):
    """Nothing is known: no message is needed for it, so that one rank may ask for its length alone."""
    start()
    sampler = stprune.PruningSampler(5000, num_epochs=4, method="top-k", sharded=True)
    with test_ranks.Counted() as counted:
        if rank == 0:
            len(sampler)
    return counted.messages, sorted(sampler)


def messages(rank, start):
    """What an epoch change sends: messages and bytes of each."""
    start()
    found = {}
    for n in (150_000, 300_000):
        sampler = stprune.PruningSampler(n, num_epochs=4, keep_ratio=0.2, sharded=True)
        epoch_of(sampler, 0, spread(n, torch.Generator().manual_seed(0)))
        epoch_of(sampler, 1, spread(n, torch.Generator().manual_seed(1)))
        with test_ranks.Counted() as counted:
            sampler.set_epoch(2)
        found[n] = sorted(counted.bytes, reverse=True), len(sampler.plan)
    return found


def resumed_part(number, before, after):
    """Go on from the states of `before` ranks, train on `number` samples of each, and leave a state of each rank."""

    def case(rank, start):
        folder = start()
        world = torch.distributed.get_world_size()
        sampler = stprune.PruningSampler(9000, num_epochs=6, keep_ratio=0.2, sharded=True, method="st-prune")
        if before == 0:
            for epoch in range(2):
                epoch_of(sampler, epoch, spread(9000, torch.Generator().manual_seed(epoch)))
            sampler.set_epoch(2)
        else:
            states = [stprune.checkpoint.load(folder / f"state {each} of {before}.pt") for each in range(before)]
            sampler.load_state_dict(stprune.reshard(states, world, rank))
            sampler.set_epoch(2)
        ids = list(sampler)[:number]
        sampler.update(torch.tensor(ids), torch.tensor(ids) / 9000)
        sampler.synchronize()
        stprune.checkpoint.save(sampler.state_dict(), folder / f"state {rank} of {world}.pt")
        refused = []
        if before:
            try:
                sampler.load_state_dict(states[0])
            except ValueError as error:
                refused.append(str(error))
        again = list(sampler) if number > 200 else None  # a second pass: the whole epoch
        sampler.set_epoch(3)
        return {"ids": ids, "refused": refused, "next": sorted(sampler), "again": again, "kept": len(sampler.plan)}

    return case


def uninterrupted(rank, start):
    start()
    sampler = stprune.PruningSampler(9000, num_epochs=6, keep_ratio=0.2, method="st-prune")
    for epoch in range(2):
        values = spread(9000, torch.Generator().manual_seed(epoch))
        sampler.set_epoch(epoch)
        ids = torch.tensor(list(sampler))
        sampler.update(ids, values[ids])
    sampler.set_epoch(2)
    ids = list(sampler)
    sampler.update(torch.tensor(ids), torch.tensor(ids) / 9000)
    sampler.set_epoch(3)
    return {"ids": sorted(ids), "next": sorted(sampler)}


def foreign(rank, start):
    """An id of another rank's share is refused by every way in, and nothing is changed."""
    start()
    sampler = stprune.PruningSampler(64, num_epochs=4, method="top-k", sharded=True)
    sampler.set_epoch(0)
    other = torch.tensor(sorted(set(range(64)) - set(sampler))[:2])
    criterion = stprune.PrunedLoss(sampler)
    prediction = torch.ones(2, 3, 1, requires_grad=True)
    said = []
    for call in (
        lambda: sampler.update(other, torch.ones(2)),
        lambda: criterion(prediction, torch.zeros(2, 3, 1), other),
        lambda: stprune.PrunedMean(sampler)(prediction.mean((1, 2)), other),
        lambda: sampler.weights_of(other),
    ):
        try:
            call()
        except ValueError as error:
            said.append(f"{error}" if str(int(other[0])) in str(error) else "no id")
    return said, sampler.table.share.num_losses, int(other[0])


def foreign_unasked(rank, start):
    """Rank 1 alone trained on an id of the other share where asking would have waited, as on a GPU."""
    start()
    sampler = stprune.PruningSampler(64, num_epochs=4, method="top-k", sharded=True)
    sampler.set_epoch(0)
    other = sorted(set(range(64)) - set(sampler))[1:2]
    if rank == 1:
        rows = sampler.table.places(torch.tensor(other))
        reference.update_known(*sampler.table.share.columns, rows, torch.ones(1), None, None, 0.5, True)
    try:
        sampler.set_epoch(1)
    except ValueError as error:
        return str(error), other[0]


def other_moments(rank, start):
    """Each rank loads its state of another epoch, as of a run that was killed between two ranks' checkpoints."""
    start()
    sampler = stprune.PruningSampler(9000, num_epochs=6, sharded=True)
    states = []
    for epoch in range(3):
        epoch_of(sampler, epoch, spread(9000, torch.Generator().manual_seed(epoch)))
        sampler.synchronize()
        states.append(copy.deepcopy(sampler.state_dict()))
    try:
        sampler.load_state_dict(states[rank])
    except ValueError as error:
        return str(error), sampler.epoch


def forgotten(rank, start):
    start()
    sampler = stprune.PruningSampler(64, num_epochs=4, method="top-k", sharded=True)
    epoch_of(sampler, 0, torch.arange(64.0))
    sampler.forget(torch.tensor([3, 4]))
    sampler.set_epoch(1)
    low = sampler.table.owners.start
    return [low + place for place, score in enumerate(sampler.table.scores.tolist()) if score == float("inf")]


class Deadly(test_ranks.Counted):
    """Kills this process where it would send its message of this number while it is open."""

    def __init__(self, number):
        self.number = number

    def counting(self, name, collective):
        count = super().counting(name, collective)

        def call(*arguments, **options):
            if len(self.messages) == self.number:
                os.kill(os.getpid(), signal.SIGKILL)
            return count(*arguments, **options)

        return call


def killed(phase, number=0):
    """The last rank is killed in set_epoch(3), at its message of this number, or before it saves its state of epoch 2."""

    def case(rank, start):
        folder = start()
        sampler = stprune.PruningSampler(SHARED, num_epochs=6, keep_ratio=0.3, sharded=True)
        dies, begin = rank == sampler.num_replicas - 1, time.monotonic()
        try:
            for epoch in range(4):
                with Deadly(number) if dies and epoch == 3 else contextlib.nullcontext():
                    sampler.set_epoch(epoch)
                score(sampler, epoch)
                sampler.synchronize()
                if dies and epoch == 2 and phase == "saving":
                    os.kill(os.getpid(), signal.SIGKILL)
                stprune.checkpoint.save(sampler.state_dict(), folder / f"{phase} {epoch} {rank}.pt")
        except RuntimeError:
            return {"seconds": time.monotonic() - begin}
        return "the run went on"

    return case


def score(sampler, epoch):
    ids = torch.tensor(list(sampler))
    distributed.all_reduce(torch.ones(4))  # as the gradients
    sampler.update(ids, spread(SHARED, torch.Generator().manual_seed(epoch))[ids])
    return ids.tolist()


def after_the_kill(phase, before):
    """The ranks that are left go on from the last epoch of which all states are there."""

    def case(rank, start):
        folder, world = start(), distributed.get_world_size()
        whole, sampler = (
            stprune.PruningSampler(SHARED, num_epochs=6, keep_ratio=0.3, sharded=sharded) for sharded in (False, True)
        )
        files = [[folder / f"{phase} {epoch} {each}.pt" for each in range(before)] for epoch in range(4)]
        last = max(epoch for epoch, each in enumerate(files) if all(file.is_file() for file in each))
        states = [stprune.checkpoint.load(file) for file in files[last]]
        sampler.load_state_dict(stprune.reshard(states, world, rank))
        for epoch in range(last + 1):
            whole.set_epoch(epoch)
            score(whole, epoch)
        found = []
        for each in (whole, sampler):
            each.set_epoch(last + 1)
            found.append(score(each, last + 1))
        return last, found[0] == found[1], len(found[1])

    return case


CASES = {
    **{f"normal on {world}": (world, same("normal")) for world in (1, 2, 4)},
    **{f"{name} on 3": (3, same(name)) for name in INPUTS},
    **{f"normal, strata on {world}": (world, same("normal", strata=True)) for world in (1, 4)},
    "nan and inf, strata on 3": (3, same("nan and inf", strata=True)),
    "ties, sampled on 2": (2, same("ties", sampled=True)),
    "nan and inf, sampled on 3": (3, same("nan and inf", sampled=True)),
    "first epoch": (2, first_epoch),
    "messages": (3, messages),
    **{f"training on {world}": (world, test_ranks.training(sharded=True)) for world in (1, 3)},
    **{f"whole training on {world}": (world, test_ranks.training()) for world in (1, 3)},
    "part 1": (1, resumed_part(300, 0, None)),
    "part 2": (2, resumed_part(150, 1, None)),
    "part 3": (3, resumed_part(400, 2, None)),
    "uninterrupted": (1, uninterrupted),
    "foreign": (2, foreign),
    "foreign, unasked": (2, foreign_unasked),
    "forgotten": (2, forgotten),
    "other moments": (2, other_moments),
    # A killed process takes part in no case after this one. Messages of set_epoch: settings, then the exchange's two, the
    # plan's, and two of ids.
    "killed in exchange": (4, killed("exchange", 2)),
    "after exchange": (3, after_the_kill("exchange", 4)),
    "killed in plan": (3, killed("plan", 6)),
    "after plan": (2, after_the_kill("plan", 3)),
    "killed in saving": (2, killed("saving", 99)),
    "after saving": (1, after_the_kill("saving", 2)),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return rank_processes.results("test_sharded", tmp_path_factory.mktemp("ranks"), MOST)


@pytest.mark.parametrize("case", [name for name in CASES if name.split(" on ")[0].split(",")[0] in INPUTS])
def test_plans_and_scores_are_those_of_a_whole_table(results, case):
    assert results[case] == [[]] * CASES[case][0]


@pytest.mark.parametrize("world", [1, 3])
def test_training_is_that_of_a_whole_table_bit_for_bit(results, world):
    assert results[f"training on {world}"] == results[f"whole training on {world}"]
    assert len(results[f"training on {world}"][0]["losses"]) == 10


def test_the_first_epoch_needs_no_message(results):
    (alone, first), (_, second) = results["first epoch"]
    assert alone == []
    assert sorted(first + second) == list(range(5000))


def test_messages_stay_small_but_for_what_was_scored_and_what_is_trained_on(results):
    """24 bytes for each sample trained on, 12 for each scored, 4 for each that the budget's sample leaves open; few others."""
    for found in results["messages"]:
        for number, (sizes, kept) in found.items():
            assert kept == number // 5
            assert len(sizes) < 30
            assert sizes.count(4 << 16) == 1  # the sample
            dealt, scored, *others = (size for size in sizes if size != 4 << 16)
            assert dealt == pytest.approx(24 * kept / 3, rel=0.1)
            assert scored == 12 * kept / 3
            assert sum(others) < 0.3 * dealt, sizes


def test_more_ranks_resume_the_rest_of_an_epoch(results):
    plan = results["uninterrupted"][0]["ids"]
    assert len(plan) == 1800
    assert sorted(id for part in (1, 2, 3) for each in results[f"part {part}"] for id in each["ids"]) == plan
    for each in results["part 3"]:
        assert each["kept"] == 1800
        assert "reshard" in each["refused"][0]
    assert sorted(id for each in results["part 3"] for id in each["again"]) == plan
    assert sorted(id for each in results["part 3"] for id in each["next"]) == results["uninterrupted"][0]["next"]


def test_ids_of_another_rank_are_refused(results):
    for said, losses, bad in results["foreign"]:
        assert len(said) == 4
        assert all(f"got {bad}" in message for message in said), said
        assert losses == 0


def test_an_id_of_another_rank_that_nobody_asked_for_is_named_later(results):
    (said, _), (same, bad) = results["foreign, unasked"]
    assert said == same
    assert f"got {bad} in a batch" in said


def test_states_of_several_moments_are_refused_on_every_rank(results):
    first, second = results["other moments"]
    assert first == second
    assert "state must be of the same moment on every rank, got (epoch, position, count) [[0, 9000, 9000], [1," in first[0]
    assert first[1] == 2


def test_forgotten_samples_are_unknown_where_they_are_owned(results):
    assert sorted(id for each in results["forgotten"] for id in each) == [3, 4]


@pytest.mark.parametrize(("phase", "last"), [("exchange", 2), ("plan", 2), ("saving", 1)])
def test_a_killed_rank_ends_the_run_and_the_last_whole_checkpoint_resumes(results, phase, last):
    *left, dead = results[f"killed in {phase}"]
    assert dead == "the process ended"
    for each in left:
        assert each["seconds"] < rank_processes.TIMEOUT.total_seconds() + 10, each
    for each in results[f"after {phase}"]:
        assert each[:2] == (last, True)
        assert each[2] == -(-round(0.3 * SHARED) // len(results[f"after {phase}"]))


def test_trees_of_any_parts_add_up_as_one():
    random = torch.Generator().manual_seed(0)
    for blocks in (0, 1, 2, 3, 7, 8, 9, 33, 100):
        sums = torch.randn(blocks, generator=random, dtype=torch.float64)
        for ranks in (1, 2, 3, 5, 16):
            ends = [blocks * rank // ranks for rank in range(ranks + 1)]
            parts = [own_nodes(sums[low:high], low, blocks) for low, high in zip(ends[:-1], ends[1:], strict=True)]
            assert max(map(len, parts)) <= 2 * max(1, blocks).bit_length()
            assert root_of([list(node) for part in parts for node in part], blocks) == float(tree_sum(sums)), (blocks, ranks)


def test_ranges_cover_all_samples():
    for size in (0, 1, 4096, 4097, 10**10):
        for ranks in (1, 3, 1024):
            bounds = bounds_of(size, ranks)
            assert bounds[0] == 0
            assert bounds[-1] == size
            assert all(0 <= high - low <= -(-size // ranks) + 4096 for low, high in zip(bounds[:-1], bounds[1:], strict=True))


def test_methods_without_scores_have_no_table():
    for method, kept in (("full", 100), ("soft-random", 30)):
        sampler = stprune.PruningSampler(100, num_epochs=3, keep_ratio=0.3, method=method, sharded=True)
        assert len(set(sampler)) == kept
        assert not sampler.table.stored


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "seta"}, "method must be one of 'full', 'soft-random', 'st-prune', 'infobatch', 'top-k'"),
        ({"method": "ucb"}, "method must be one of"),
        ({"fixed_length": True}, "fixed_length must be False"),
        ({"strata": torch.zeros(8, dtype=torch.int64), "method": "soft-random"}, "strata must be None"),
        ({"strata": torch.zeros(8, dtype=torch.int64), "min_per_stratum": 2}, "min_per_stratum must be None"),
        ({"num_nodes": 4, "node_ratio": 0.5, "node_sampler": "priority"}, "node_sampler must draw without scores"),
        ({"process_group": "none"}, "process_group must be a group"),
    ],
)
def test_what_needs_all_scores_is_refused(options, message):
    with pytest.raises(ValueError, match=f"PruningSampler: {message}.*where sharded=True.*got"):
        stprune.PruningSampler(8, num_epochs=3, sharded=True, **options)


def test_growth_and_the_order_of_all_ranks_are_refused():
    sampler = stprune.PruningSampler(8, num_epochs=3, sharded=True)
    with pytest.raises(ValueError, match=r"PruningSampler.grow: sharded must be False"):
        sampler.grow(9)
    assert len(sampler) == 8
    for call in (lambda: sampler.plan.order(0, 3), lambda: sampler.plan.positions(torch.tensor([1]))):
        with pytest.raises(RuntimeError, match="sharded must be False"):
            call()
    with pytest.raises(ValueError, match="start must be a position of a pass"):
        sampler.plan.share(3, 9, 0, 1)


def test_states_that_do_not_belong_together_are_refused():
    states = [stprune.PruningSampler(size, num_epochs=3, sharded=True).state_dict() for size in (8, 9000)]
    with pytest.raises(ValueError, match=r"reshard: states must be of all ranks of one run, each once, got ranges"):
        stprune.reshard(states, 1, 0)
    with pytest.raises(ValueError, match="each once, got ranges \\[\\]"):
        stprune.reshard([], 1, 0)
    with pytest.raises(TypeError, match="reshard: states must be"):
        stprune.reshard([stprune.PruningSampler(8, num_epochs=3).state_dict()], 1, 0)
    halves = [stprune.reshard(states[1:], 2, rank) for rank in range(2)]
    halves[1]["epoch"] = 1
    with pytest.raises(ValueError, match="reshard: states must be of one moment of a run, got epoch 0 and 1"):
        stprune.reshard(halves, 1, 0)
