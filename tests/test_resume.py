"""A run that is saved and continued trains on what the uninterrupted run trains on: the same ids, in the same order.

In a plain loop; tests/frameworks has the same in the frameworks.
"""

import warnings

import pytest
import torch
from loops import BATCH_SIZE, EVERY_STEP, NUM_EPOCHS, NUM_WINDOWS, STEPS, Run, place, saved, uninterrupted

import stprune

KINDS = ["sampler", "batches", "windows"]


# --- a plain loop ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names_epoch", [True, False])
def test_plain_loop_continues_from_every_step(kind, names_epoch):
    ids, states, _ = uninterrupted(kind, lambda run: saved(run.sampler.state_dict()))
    assert [len(batch) for batch in ids] == [BATCH_SIZE] * sum(STEPS)
    for step in EVERY_STEP:
        run = Run(kind)
        run.sampler.load_state_dict(states[step - 1])
        epoch, done = place(step)
        assert (len(run.sampler), len(run.sampler.batches(BATCH_SIZE)), len(run.loader)) == (
            STEPS[epoch] * BATCH_SIZE,
            STEPS[epoch],
            STEPS[epoch],
        ), "the length is the whole epoch's"
        # A finished epoch's state begins the next one.
        first = epoch + (done == STEPS[epoch])
        for at in range(first, NUM_EPOCHS):
            run.epoch(None if at == first and not names_epoch else at)
            assert len(run.loader) == STEPS[at]
        assert run.ids == ids[step:], f"after step {step}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_epoch_begins_anew_where_set_epoch_names_it(kind):
    ids, states, _ = uninterrupted(kind, lambda run: saved(run.sampler.state_dict()))
    run = Run(kind)
    run.sampler.load_state_dict(states[11])
    run.epoch(1)
    assert run.ids == ids[8:12]
    run.ids.clear()
    for epoch in (2, 3):
        run.epoch(epoch)
    assert run.ids == ids[12:]


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_first_pass_after_a_load_is_shorter(kind):
    ids, states, _ = uninterrupted(kind, lambda run: saved(run.sampler.state_dict()))
    run = Run(kind)
    run.sampler.load_state_dict(states[2])
    next(iter(run.loader))  # a look at the first batch changes nothing
    assert [[Run.parts(batch)[0].tolist() for batch in run.loader] for _ in range(2)] == [ids[3:8], ids[:8]]


def test_a_loop_goes_on_with_the_next_epoch_after_a_finished_one():
    ids, states, _ = uninterrupted("sampler", lambda run: saved(run.sampler.state_dict()))
    for step in [0, *EVERY_STEP]:
        run = Run("sampler")
        if step:
            run.sampler.load_state_dict(states[step - 1])
        for epoch in range(run.sampler.next_epoch, NUM_EPOCHS):
            run.epoch(epoch)
        assert run.ids == ids[step:], f"after step {step}"


def test_a_resumed_run_is_saved_and_continued_again():
    ids, states, _ = uninterrupted("sampler", lambda run: saved(run.sampler.state_dict()))
    state = states[2]
    for step in range(3, 24):
        run = Run()
        run.sampler.load_state_dict(state)
        run.train(next(iter(run.loader)))
        assert run.ids == [ids[step]]
        state = saved(run.sampler.state_dict())


# --- a forgotten set_epoch ---------------------------------------------------------------------------------------------


def batches_of(sampler):
    return map(torch.from_numpy, sampler.batches(BATCH_SIZE))


def inputs(index):
    prediction = (index.float().view(-1, 1, 1, 1) + torch.arange(3.0).view(1, 3, 1, 1)).requires_grad_()
    return prediction, torch.zeros_like(prediction)


def said(run):
    """How often `set_epoch` was asked for while `run` ran."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return sum("set_epoch" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("method", sorted(stprune.METHODS))
def test_a_forgotten_set_epoch_is_said_once(method):
    sampler = stprune.PruningSampler(NUM_WINDOWS, num_epochs=NUM_EPOCHS, method=method)
    criterion = stprune.PrunedLoss(sampler)

    def train(passes):
        for _ in range(passes):
            for index in batches_of(sampler):
                criterion(*inputs(index), index).backward()

    assert said(lambda: train(1)) == 0
    assert said(lambda: train(3)) == 1


@pytest.mark.parametrize("node_ratio", [0.5, 1.0])
def test_a_forgotten_set_epoch_says_that_the_same_nodes_are_drawn(node_ratio):
    sampler = stprune.PruningSampler(NUM_WINDOWS, num_epochs=NUM_EPOCHS, num_nodes=4, node_ratio=node_ratio)

    def train():
        for index in batches_of(sampler):
            sampler.update(index, torch.ones(len(index)))

    train()
    with pytest.warns(RuntimeWarning, match="trained on a second time") as caught:
        train()
    assert ["of each window the same nodes are drawn" in str(each.message) for each in caught] == [node_ratio < 1]


def test_no_word_about_set_epoch_without_a_second_trained_pass():
    def evaluate():
        run = Run()
        for epoch in range(NUM_EPOCHS):
            run.epoch(epoch)
            with torch.no_grad():
                for batch in run.loader:
                    run.loss(batch, 1.0)
            run.criterion.eval()
            run.epoch()
            run.criterion.train()
        for _ in range(3):
            iter(run.sampler)
            list(run.sampler)

    def two_criteria():
        sampler = stprune.PruningSampler(NUM_WINDOWS, num_epochs=NUM_EPOCHS)
        criteria = stprune.PrunedLoss(sampler), stprune.PrunedLoss(sampler, loss="mse")
        for index in batches_of(sampler):
            sum(criterion(*inputs(index), index) for criterion in criteria).backward()

    assert said(evaluate) == said(two_criteria) == 0
