"""Faults that came up in use: each test is the loop in which one showed."""

import contextlib
import copy
import warnings

import numpy as np
import pytest
import torch
from loops import saved

import stprune


@contextlib.contextmanager
def warned(action):
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        yield


def run_of(n=64, num_epochs=4, method="soft-random", keep_ratio=1.0, **settings):
    return stprune.PruningSampler(n, num_epochs=num_epochs, method=method, keep_ratio=keep_ratio, **settings)


def train(sampler, batches, losses=1):
    for ids in batches:
        for _ in range(losses):
            sampler.update(torch.from_numpy(np.asarray(ids)), torch.ones(len(ids)))


@pytest.mark.parametrize("settings", [{}, {"drop_last": True, "num_replicas": 3, "rank": 1}])
def test_an_epoch_that_dropped_its_tail_is_over(settings):
    sampler, again = (run_of(70, **settings) for _ in range(2))
    train(sampler, sampler.batches(8, drop_last=True))
    again.load_state_dict(saved(sampler.state_dict()))
    full = len(sampler) // 8
    passes = [len(list(again.batches(8, drop_last=True))) for _ in range(2)]
    assert (passes, again.epoch) == ([full, full], 1)
    anew = run_of(70, **settings)
    anew.load_state_dict(saved(sampler.state_dict()))
    anew.set_epoch(0)
    assert len(list(anew)) == len(anew)


@pytest.mark.parametrize(("ranks", "drop_last"), [((1, 2), False), ((3, 2), True)])
def test_a_finished_epoch_is_over_for_another_number_of_ranks_too(ranks, drop_last):
    before, after = (run_of(10, num_replicas=number, rank=0, drop_last=drop_last) for number in ranks)
    train(before, before.batches(2))
    after.load_state_dict(saved(before.state_dict()))
    assert len(list(after)) == len(after)
    assert after.epoch == 1


def test_a_look_at_the_ids_after_a_resume_moves_no_position():
    sampler, again = run_of(), run_of()
    train(sampler, list(sampler.batches(8))[:3])
    again.load_state_dict(saved(sampler.state_dict()))
    list(again)
    train(again, list(again.batches(8))[:1])
    assert again.state_dict()["position"] == 8


def test_pairs_keep_their_position_through_padding_and_second_losses():
    sampler = stprune.PruningSampler(
        3, num_epochs=2, num_nodes=3, granularity="pair", method="soft-random", keep_ratio=1.0, num_replicas=2, rank=1
    )
    batches = list(sampler.batches(1))
    positions = []
    for ids in batches:
        train(sampler, [ids])
        positions.append(sampler.state_dict()["position"])
    train(sampler, batches[:1])
    assert [*positions, sampler.state_dict()["position"]] == [2, 4, 6, 8, 10, 10]
    sampler.update(torch.empty(0, dtype=torch.int64), torch.empty(0))
    assert sampler.state_dict()["position"] == 10


@pytest.mark.filterwarnings("error")
def test_two_losses_a_batch_are_no_second_pass_and_no_collision():
    sampler = run_of()
    loader = torch.utils.data.DataLoader(torch.arange(64), batch_size=16, sampler=sampler, num_workers=2)
    train(sampler, loader, losses=2)
    sampler.set_epoch(1)
    train(sampler, list(loader)[:2], losses=2)  # half of the epoch, all of which was delivered
    with pytest.raises(RuntimeWarning, match="64 losses of 32 distinct samples came: 32 were left out"):
        sampler.set_epoch(2)
    sampler.set_epoch(2)


@pytest.mark.parametrize("fault", ["schedule", "warning", "nodes"])
def test_set_epoch_goes_on_after_something_has_raised(fault, monkeypatch):
    """A function of the user's, or a warning that is an error: the second call does what the first should have done."""
    fails = []

    def flaky(*_):
        if fails:
            raise OSError(fails.pop())
        return 0.5

    samplers = []
    for _ in range(2):
        sampler = stprune.PruningSampler(64, num_epochs=4, schedule=flaky, num_nodes=4, node_ratio=0.5)
        sampler.set_epoch(0)
        sampler.update(torch.arange(64), torch.where(torch.arange(64) == 3, torch.nan, torch.arange(64.0)))
        samplers.append(sampler)
    if fault == "nodes":
        monkeypatch.setattr(samplers[0].node_sampler, "advance", flaky)
    if fault != "warning":
        fails.append("for once")
    with pytest.raises(RuntimeWarning if fault == "warning" else OSError), warned("error"):
        samplers[0].set_epoch(1)
    with warned("ignore"):
        for sampler in samplers:
            sampler.set_epoch(1)
    one, other = samplers
    assert one.plan.epoch == one.table.epoch == 1
    assert torch.equal(one.plan.indices, other.plan.indices)
    assert torch.equal(one.table.scores.nan_to_num(), other.table.scores.nan_to_num())


def test_an_evaluation_in_inference_mode_leaves_training_alone():
    with torch.inference_mode():
        sampler = run_of(8)
        criterion = stprune.PrunedLoss(sampler, mean=10.0, std=2.0, horizon_weights=torch.ones(3))
        criterion(torch.randn(8, 3, 5), torch.randn(8, 3, 5))
    prediction = torch.randn(8, 3, 5, requires_grad=True)
    criterion(prediction, torch.randn(8, 3, 5), torch.arange(8)).backward()
    assert prediction.grad is not None


def test_a_node_sampler_of_inference_mode_learns_in_training():
    with torch.inference_mode():
        sampler = run_of(8, num_nodes=4, node_ratio=0.5, node_sampler="priority")
        sampler.grow(10)
        sampler.grow_nodes(6)
    index = torch.arange(10)
    node = sampler.nodes(index)
    stprune.PrunedMean(sampler)(torch.rand(node.shape, requires_grad=True), index, node).backward()


@pytest.mark.parametrize("method", ["st-prune", "soft-random", "infobatch", "full"])
def test_any_default_dtype(method):
    torch.set_default_dtype(torch.float64)
    try:
        sampler = run_of(method=method, keep_ratio=0.5)
        for epoch in range(2):
            sampler.set_epoch(epoch)
            train(sampler, sampler.batches(8))
        assert sampler.plan.weights.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_full_training_of_fixed_length_is_full():
    sampler = run_of(100, num_epochs=8, method="full", keep_ratio=0.5, fixed_length=True)
    lengths = [sampler.set_epoch(epoch) or len(sampler) for epoch in range(8)]
    assert lengths == [100] * 8


def test_total_steps_count_a_quota():
    strata = torch.arange(100) // 2
    sampler = run_of(100, keep_ratio=0.1, strata=strata, min_per_stratum=1, schedule="none")
    steps = 0
    for epoch in range(4):
        sampler.set_epoch(epoch)
        steps += len(sampler.batches(8))
    assert steps == sampler.total_steps(8)


def test_parameters_of_numpy_are_saved_as_numbers():
    make = lambda alpha: run_of(method=stprune.METHODS["st-prune"](alpha=alpha), keep_ratio=0.5)
    state = saved(make(np.float64(0.5)).state_dict())
    make(0.5).load_state_dict(copy.deepcopy(state))
    with pytest.raises(ValueError, match=r"method.alpha must be 0\.25 as in this sampler, got 0\.5"):
        make(np.float32(0.25)).load_state_dict(state)


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"epoch": 9}, ValueError, r"epoch must lie in \[0, 3\], got 9"),
    ({"position": -5}, ValueError, "position must be at least 0"),
    ({"count": 3}, ValueError, "indices and weights must have 3 entries"),
    ({"indices": torch.arange(32) + 40}, ValueError, "indices must lie in"),
    ({"weights": torch.ones(3)}, ValueError, "indices and weights must have 32 entries, got 32 and 3"),
])  # fmt: skip
def test_a_state_that_was_written_to_is_refused_and_changes_nothing(change, error, message):
    sampler, again = (run_of(keep_ratio=0.5) for _ in range(2))
    sampler.update(torch.arange(64), torch.rand(64))
    state, before = sampler.state_dict() | change, str(again.state_dict())
    with pytest.raises(error, match=f"PruningSampler.load_state_dict: {message}"):
        again.load_state_dict(state)
    assert str(again.state_dict()) == before


def test_a_position_in_another_order_of_the_windows_is_refused():
    make = lambda held: stprune.WindowLoader(
        torch.rand(87, 2), run_of(), batch_size=8, order="chunk", chunk_rows=8, memory_chunks=held
    )
    loader = make(5)
    train(loader.sampler, [index for index, _, _ in loader][:3])
    with pytest.raises(ValueError, match=r"order must be \(8, 9\) .* got \(8, 5\)"):
        make(9).load_state_dict(saved(loader.state_dict()))
    make(5).load_state_dict(saved(loader.state_dict()))


def test_nodes_that_were_not_drawn_are_refused():
    sampler = stprune.PruningSampler(8, num_epochs=2, num_nodes=10, node_ratio=0.5, node_sampler="priority")
    criterion, index = stprune.PrunedLoss(sampler), torch.arange(8)
    node, weight = sampler.draw_nodes(index)
    prediction, target = torch.zeros(8, 3, 5, requires_grad=True), torch.ones(8, 3, 5)
    with pytest.raises(ValueError, match="node must hold nodes that were drawn of its window"):
        criterion(prediction, target, index, node + 100)
    assert sampler.table.num_losses == 0
    assert torch.equal(
        criterion(prediction, target, index, node), criterion(prediction, target, index, node, node_weight=weight)
    )
