"""From the third epoch on a plan takes no fresh memory, and one that somebody holds never changes."""

import copy
import pickle
import sys

import numpy as np
import pytest
import torch

import stprune
from stprune.plan_memory import PlanMemory

N = 2_000_000
METHODS = ("st-prune", "infobatch", "soft-random", "full")


def sampler_of(method="st-prune", n=20_000, strata=None, keep_ratio=0.5):
    sampler = stprune.PruningSampler(n, num_epochs=20, keep_ratio=keep_ratio, method=method, strata=strata, schedule="none")
    sampler.table.update(torch.arange(n), torch.rand(n, generator=torch.Generator().manual_seed(1)))
    return sampler


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_strata", [None, 24])
def test_the_third_epoch_makes_no_large_tensor(method, num_strata):
    sampler = sampler_of(method, N, None if num_strata is None else torch.arange(N) % num_strata)
    for epoch in range(3):
        sampler.set_epoch(epoch)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        sampler.set_epoch(3)
        for ids in sampler.batches(1000):
            assert len(ids) <= 1000
    large = {event.name: event.cpu_memory_usage for event in profile.events() if event.cpu_memory_usage >= N}
    assert not large


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults")
@pytest.mark.parametrize("method", ["st-prune", "infobatch"])
def test_later_epochs_fetch_no_fresh_memory_from_the_system(method):
    import resource

    sampler = sampler_of(method, N, torch.arange(N) % 24 if method == "st-prune" else None)
    faults = []
    for epoch in range(10):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        sampler.set_epoch(epoch)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    # The kept ids alone have two thousand pages of 4 KiB.
    assert sorted(faults[2:])[2] < 200, faults


@pytest.mark.parametrize("method", METHODS)
def test_epochs_share_memory_and_plan_what_a_pure_function_plans(method):
    strata = torch.arange(20_000) % 3
    sampler = sampler_of(method, strata=strata)
    places = set()
    for epoch in range(1, 6):
        sampler.set_epoch(epoch)
        expected = stprune.plan_epoch(sampler.table.scores, method=method, keep_ratio=0.5, epoch=epoch, seed=0, strata=strata)
        plan = sampler.running.plan  # `plan` would give its memory away
        assert torch.equal(plan.indices, expected.indices)
        assert torch.equal(plan.weights, expected.weights)
        assert plan.mean_weight == expected.mean_weight
        places.add(sampler.running.plan.indices.data_ptr())
    assert len(places) == 1


def test_training_steps_leave_the_memory_free():
    sampler = sampler_of()
    criterion = stprune.PrunedLoss(sampler)
    x, y = (torch.rand(20_000, 3, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(2))
    weight = torch.ones(4, 4, requires_grad=True)
    places = set()
    for epoch in range(1, 5):
        sampler.set_epoch(epoch)
        places.add(sampler.running.plan.indices.data_ptr())
        for ids in sampler.batches(5000):
            loss = criterion(x[ids] @ weight, y[ids], torch.from_numpy(ids))
            loss.backward()
        del loss
    assert len(places) == 1


HOLDERS = {
    "plan": lambda sampler: sampler.plan,
    "ids": lambda sampler: sampler.plan.indices,
    "a slice of the weights": lambda sampler: sampler.plan.weights[3:7],
    "an array": lambda sampler: sampler.plan.indices.numpy()[5:],
    "a shard": lambda sampler: (sampler.plan.shard(0, 2), sampler.plan),
}


def content(held):
    if isinstance(held, tuple):
        return content(held[0])
    if isinstance(held, stprune.EpochPlan):
        return np.concatenate([held.indices.numpy(), held.weights.numpy()])
    return held.copy() if isinstance(held, np.ndarray) else held.clone().numpy()


@pytest.mark.parametrize("name", HOLDERS)
@pytest.mark.parametrize("method", METHODS[:3])
def test_what_somebody_holds_keeps_its_content(name, method):
    sampler = sampler_of(method)
    held = []
    for epoch in range(8):
        if epoch > 0:  # the first epoch is planned unasked
            sampler.set_epoch(epoch)
        held.append((HOLDERS[name](sampler), content(HOLDERS[name](sampler)).copy()))
    for plan, before in held:
        assert np.array_equal(content(plan), before)


def test_an_iterator_of_the_last_epoch_goes_on_with_its_plan():
    makers = (
        lambda sampler: iter(sampler),
        lambda sampler: iter(sampler.batches(70)),
        lambda sampler: iter(torch.utils.data.DataLoader(torch.arange(20_000), batch_size=70, sampler=sampler)),
    )
    for make in makers:
        sampler = sampler_of()
        sampler.set_epoch(1)
        expected = list(sampler)
        iterator = make(sampler)
        got = [next(iterator) for _ in range(3)]
        for epoch in range(2, 6):
            sampler.set_epoch(epoch)
        assert [int(i) for part in [*got, *iterator] for i in np.atleast_1d(part)] == expected


def test_copies_have_memory_of_their_own():
    sampler = sampler_of()
    sampler.set_epoch(1)
    copies = [copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))]
    before = sampler.plan.indices.clone()
    for other in copies:
        for epoch in range(2, 5):
            other.set_epoch(epoch)
    assert torch.equal(sampler.plan.indices, before)
    assert len(pickle.dumps(PlanMemory(10**9))) < 1000


def test_a_much_larger_plan_leaves_no_memory_behind():
    memory = PlanMemory(100_000)
    taken = memory.take(100_000)
    memory.made(100_000)
    assert memory.take(50_100) is taken
    assert memory.take(10_000) is not taken
