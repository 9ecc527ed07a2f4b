"""What the samples counted say against the plan: faults are told, each by one warning, and correct training is not."""

import contextlib
import math
import warnings

import numpy as np
import pytest
import torch
from loops import saved
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

import stprune

NUM_EPOCHS = 5


def sampler_of(n=320, method="st-prune", **settings):
    return stprune.PruningSampler(n, num_epochs=NUM_EPOCHS, method=method, **settings)


def losses_of(sampler, ids, times=1):
    for _ in range(times):
        sampler.update(torch.as_tensor(np.asarray(ids)), torch.rand(len(ids)) + 0.1)


def words(run, *samplers):
    """What `run(sampler)` says about counts, with the epochs that it was said in."""
    said = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for sampler in samplers:
            run(sampler)
    for each in caught:
        if "distinct samples came" in str(each.message):
            assert each.category is RuntimeWarning
            assert __file__ in each.filename, "the warning points at the user's line"
            said.append(str(each.message))
    return said


def epochs(sampler, batch_size, step, numbers=range(NUM_EPOCHS), drop_last=None):
    for epoch in numbers:
        sampler.set_epoch(epoch)
        for at, ids in enumerate(sampler.batches(batch_size, drop_last=drop_last)):
            step(epoch, at, ids)
    sampler.finish()
    sampler.finish()


# --- correct training is silent -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", sorted(stprune.METHODS))
@pytest.mark.parametrize("times", [1, 2, 3])
def test_whole_multiples_are_two_criteria_or_sam_or_checkpointing(method, times):
    sampler = sampler_of(101, method)
    assert words(lambda s: epochs(s, 8, lambda e, a, ids: losses_of(s, ids, times)), sampler) == []


@pytest.mark.parametrize("batch_size", [1, 7, 64, 100])
@pytest.mark.parametrize("where", ["sampler", "batches", "loader", "workers"])
def test_a_dropped_tail_is_silent(where, batch_size):
    def run(sampler):
        options = {"num_workers": 2, "prefetch_factor": 4} if where == "workers" else {}
        drop = where != "sampler"
        loader = DataLoader(torch.arange(100), batch_size=batch_size, sampler=sampler, drop_last=drop, **options)
        batches = sampler.batches(batch_size, drop_last=True) if where == "batches" else loader
        for epoch in range(NUM_EPOCHS if where != "workers" else 3):
            sampler.set_epoch(epoch)
            for ids in batches:
                losses_of(sampler, ids, 2)
        sampler.finish()

    if where == "workers" and batch_size < 64:
        pytest.skip("many batches of workers take long and show the same")
    options = {"drop_last": True, "num_replicas": 3, "rank": 1, "process_group": "none"} if where == "sampler" else {}
    assert words(run, sampler_of(100, keep_ratio=1.0, **options)) == []


@pytest.mark.parametrize("n", [1, 2, 5, 7, 31])
@pytest.mark.parametrize("ranks", [2, 3, 5])
@pytest.mark.parametrize("settings", [{}, {"num_nodes": 3, "granularity": "pair", "method": "soft-random"}], ids=str)
def test_padding_is_silent(n, ranks, settings):
    samplers = [sampler_of(n, num_replicas=ranks, rank=r, process_group="none", **settings) for r in range(ranks)]
    assert words(lambda s: epochs(s, 2, lambda e, a, ids: losses_of(s, ids, 2)), *samplers) == []


@pytest.mark.parametrize("method", ["st-prune", "soft-random"])
@pytest.mark.parametrize("pairs", [False, True])
def test_resumed_epochs_are_silent_also_with_another_number_of_ranks(method, pairs):
    nodes = {"num_nodes": 3, "granularity": "pair"} if pairs else {}
    make = lambda ranks, rank: sampler_of(
        40, method, num_replicas=ranks, rank=rank, process_group="none", keep_ratio=0.7, **nodes
    )

    def resumed(stop, ranks):
        sampler = make(1, 0)
        losses_of(sampler, list(sampler))
        sampler.set_epoch(1)
        for ids in list(sampler.batches(4))[:stop]:
            losses_of(sampler, ids)
        for rank in range(ranks):
            again = make(ranks, rank)
            again.load_state_dict(saved(sampler.state_dict()))
            if stop % 2:
                list(again)  # a look
                again.load_state_dict(saved(sampler.state_dict()))
            epochs(again, 4, lambda e, a, ids, s=again: losses_of(s, ids), range(1, 4))

    for stop in range(0, 8):
        for ranks in (1, 2, 3):
            assert words(lambda _, stop=stop, ranks=ranks: resumed(stop, ranks), None) == []


def test_epochs_that_were_only_looked_at_or_left_out_are_silent():
    def run(sampler):
        for epoch in (0, 3, 1, 4):
            sampler.set_epoch(epoch)
            len(sampler), sampler.plan, next(iter(sampler))
        sampler.set_epoch(0)
        list(sampler)
        sampler.set_epoch(1)
        losses_of(sampler, list(sampler))
        sampler.set_epoch(4)

    assert words(run, sampler_of()) == []
    # Losses are not asked of a method that needs none.
    assert words(lambda s: epochs(s, 8, lambda *_: None), sampler_of(method="soft-random"), sampler_of(method="full")) == []


def test_an_epoch_trained_twice_has_its_own_warning():
    def run(sampler):
        for epoch in range(2):
            sampler.set_epoch(epoch)
            for _ in range(2):
                for ids in sampler.batches(8):
                    losses_of(sampler, ids)
        sampler.finish()

    assert words(run, sampler_of(method="soft-random")) == []


def test_evaluation_between_and_gradients_that_are_dropped_are_silent():
    sampler = sampler_of(64)
    criterion = stprune.PrunedLoss(sampler)
    weight = torch.ones(1, requires_grad=True)

    def loss(ids):
        x = torch.from_numpy(ids).float().view(-1, 1, 1, 1)
        return criterion(x * weight, x, torch.from_numpy(ids))

    def step(epoch, at, ids):
        torch.utils.checkpoint.checkpoint(loss, ids, use_reentrant=False).backward()
        with torch.no_grad():
            loss(ids)
        criterion.eval()
        loss(ids)
        criterion.train()

    assert words(lambda s: epochs(s, 8, step), sampler) == []


# --- faults are told ------------------------------------------------------------------------------------------------------


def test_validation_losses_of_graph_wavenet_are_told_at_once():
    """320 windows in batches of 32, and 64 validation losses after them: 384 updates of 320 ids."""
    seen = []

    def run(sampler):
        for epoch in range(3):
            sampler.set_epoch(epoch)
            for ids in sampler.batches(32):
                losses_of(sampler, ids)
            for start in (0, 32):
                losses_of(sampler, np.arange(start, start + 32))
                seen.append(len(sampler._warned))

    said = words(run, sampler_of(method="full"))
    assert said == [
        "stprune: PruningSampler: epoch 0 has 320 samples for this rank, and 352 losses of 320 distinct samples came: probably "
        "the criterion is called in validation, without criterion.eval() before. Reported once."
    ]
    assert seen == [1] * 6, "it is told with the first of them"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("times", [1, 2])
def test_validation_losses_are_told_when_the_epoch_ends(workers, times):
    """Where batches are large beside the epoch, or have two losses, nothing can be said at once."""

    def run(sampler):
        loader = DataLoader(torch.arange(320), batch_size=64, sampler=sampler, num_workers=workers)
        for ids in loader:
            losses_of(sampler, ids, times)
        losses_of(sampler, np.arange(100))
        sampler.set_epoch(1)

    number = 320 * times + 100
    assert (
        f"epoch 0 has 320 samples for this rank, and {number} losses of 320 distinct samples came"
        in words(run, sampler_of())[0]
    )


def test_validation_losses_before_the_epoch_are_told():
    """Lightning's sanity check, for example, in a module that calls the criterion for both."""

    def run(sampler):
        sampler.set_epoch(0)
        losses_of(sampler, np.arange(64))
        epochs(sampler, 32, lambda e, a, ids: losses_of(sampler, ids), range(1))

    assert "384 losses of 320 distinct samples came: probably the criterion is called in val" in words(run, sampler_of())[0]


@pytest.mark.parametrize("nodes", [{}, {"num_nodes": 2, "granularity": "pair", "method": "soft-random", "keep_ratio": 1.0}])
def test_an_epoch_that_is_cut_short_is_told(nodes):
    """A framework that cached a length of 8 batches, of 12."""

    def run(sampler):
        epochs(sampler, 8, lambda e, a, ids: losses_of(sampler, ids) if e == 0 or a < 8 else None)

    settings = {"method": "soft-random", "keep_ratio": 1.0} | nodes
    said = words(run, sampler_of(48 if nodes else 96, **settings))
    assert len(said) == 1
    assert "epoch 1 has 96 samples for this rank, and 64 losses of 64 distinct samples came: 32 were left out" in said[0]


@pytest.mark.parametrize("skipped", [0, 3, 10])
@pytest.mark.parametrize("times", [1, 2])
def test_a_batch_never_trained_on_is_told(skipped, times):
    def run(sampler):
        epochs(sampler, 9, lambda e, a, ids: losses_of(sampler, ids, times) if a != skipped else None)

    said = words(run, sampler_of(100))  # 11 batches of 9, and one of 1
    assert len(said) == 1
    assert f"epoch 0 has 100 samples for this rank, and {91 * times} losses of 91 distinct samples came: 9 were left" in said[0]


def test_a_run_that_ends_in_the_middle_of_an_epoch_is_told_once():
    def run(sampler):
        for epoch in range(3):
            sampler.set_epoch(epoch)
            for ids in list(sampler.batches(32))[:2]:
                losses_of(sampler, ids)
        sampler.finish()
        again = sampler_of()
        again.load_state_dict(saved(sampler.state_dict()))
        losses_of(again, list(again)[:40])
        again.finish()

    said = words(run, sampler_of())
    assert len(said) == 1, "also once in a resumed run"
    assert "epoch 0 has 320 samples for this rank, and 64 losses of 64 distinct samples came: 256 were left out" in said[0]


def test_ids_of_another_data_set_are_told():
    def run(sampler):
        epochs(sampler, 16, lambda e, a, ids: losses_of(sampler, ids if e == 0 else 16 * a + np.arange(len(ids))))

    said = words(run, sampler_of(320, keep_ratio=0.5))
    assert len(said) == 1
    assert "epoch 1 has 160 samples for this rank, and 160 losses of 160 distinct samples came: " in said[0]
    assert "of these are not in the plan, but of another data set or epoch" in said[0]


def test_losses_that_never_come_are_told_at_the_end():
    said = words(lambda s: epochs(s, 8, lambda *_: None), sampler_of())
    assert len(said) == 1
    assert "0 losses of 0 distinct samples came: the criterion has another sampler, or is not in training mode" in said[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_ids_that_collide_are_refused_by_set_epoch_and_told_by_finish(workers):
    parts = [stprune.IndexedDataset(TensorDataset(torch.arange(6.0))) for _ in range(2)]
    joined = ConcatDataset(parts)
    sampler = sampler_of(len(joined))
    for index, _ in DataLoader(joined, batch_size=4, sampler=sampler, num_workers=workers):
        losses_of(sampler, index)
    before = str(sampler.state_dict())
    with pytest.raises(ValueError, match="index must name every sample of epoch 0 by an id of its own, got 6 ids for 12"):
        sampler.set_epoch(1)
    assert str(sampler.state_dict()) == before
    with pytest.warns(RuntimeWarning, match="got 6 ids for 12 samples"):
        sampler.finish()


def test_a_warning_that_is_an_error_leaves_the_run_usable():
    sampler = sampler_of()
    losses_of(sampler, list(sampler)[:64])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="256 were left out"):
            sampler.set_epoch(1)
        assert sampler.epoch == 0
        sampler.set_epoch(1)
    assert sampler.epoch == 1


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_steps_are_counted(dynamic):
    def run(cut):
        torch._dynamo.reset()
        sampler = sampler_of(40, method="full")
        criterion = stprune.PrunedLoss(sampler)
        weight = torch.ones(1, requires_grad=True)

        @torch.compile(backend="eager", dynamic=dynamic)
        def step(x, index):
            return criterion(x * weight, x, index)

        def take(epoch, at, ids):
            if at < cut:
                step(torch.from_numpy(ids).float().view(-1, 1, 1, 1), torch.from_numpy(ids)).backward()

        with contextlib.suppress(StopIteration):
            epochs(sampler, 12, take, range(3), drop_last=True)

    assert words(lambda _: run(9), None) == []
    assert (
        "has 36 samples for this rank, and 24 losses of 24 distinct samples came: 12 were left out"
        in words(lambda _: run(2), None)[0]
    )


# --- steps that make an optimizer step ----------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("drop_last", [False, True])
def test_total_steps_with_accumulation(accumulate, drop_last):
    """As Lightning, Accelerate and transformers' Trainer do it: an epoch's last step has the batches that are left."""
    sampler = sampler_of(101, keep_ratio=0.3, method="soft-random", drop_last=drop_last)
    steps = 0
    for epoch in range(NUM_EPOCHS):
        sampler.set_epoch(epoch)
        number = len(list(sampler.batches(8)))
        steps += sum((at + 1) % accumulate == 0 or at + 1 == number for at in range(number))
    assert sampler.total_steps(8, accumulate=accumulate) == steps
    assert math.ceil(sampler.total_steps(8) / accumulate) <= steps


@pytest.mark.parametrize(("accumulate", "error"), [(0, ValueError), (1.0, TypeError), (True, TypeError)])
def test_total_steps_refuses(accumulate, error):
    with pytest.raises(error, match=f"PruningSampler.total_steps: accumulate must .*, got {accumulate}"):
        sampler_of().total_steps(8, accumulate=accumulate)
