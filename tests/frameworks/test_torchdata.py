"""torchdata's StatefulDataLoader needs no line of ours: it continues a run as with torch's own DistributedSampler."""

import copy

import pytest
from loops import DATA, NUM_EPOCHS, NUM_WINDOWS, STEPS, Run, uninterrupted
from readme import code_of

import stprune

package = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is missing: pip install stprune[frameworks]")


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", ["torch", "sampler", "batches"])
def test_a_run_continues_from_every_state(kind, num_workers):
    """Nothing is saved but what StatefulDataLoader saves itself: with workers, four batches before they are trained on.

    Five cases, of which torch's sampler has the same: in the middle and at the last step of a full epoch and of a pruned one,
    and after an epoch's end; the state is loaded before or after `set_epoch`.
    """
    options = {"loader": package.StatefulDataLoader, "num_workers": num_workers}
    ids, after_step, after_epoch = uninterrupted(kind, lambda run: copy.deepcopy(run.loader.state_dict()), **options)
    steps = (8, 8, 8, 8) if kind == "torch" else STEPS
    assert len(ids) == sum(steps)
    ends = [sum(steps[: epoch + 1]) for epoch in range(NUM_EPOCHS)]
    cases = [(end, epoch + 1, state) for epoch, (end, state) in enumerate(zip(ends, after_epoch, strict=True))]
    # Workers take long to start: a few states are enough to see that they make no difference.
    for step in range(1, sum(steps) + 1) if num_workers == 0 else (3, 8, ends[1] - 1, ends[2]):
        cases.append((step, next(epoch for epoch, end in enumerate(ends) if step <= end), after_step[step - 1]))
    for step, first, state in cases:
        for named_before in (False, True) if num_workers == 0 and first < NUM_EPOCHS else (False,):
            run = Run(kind, **options)
            if named_before:
                run.sampler.set_epoch(first)
            run.loader.load_state_dict(state)
            for epoch in range(first, NUM_EPOCHS):
                run.epoch(epoch)
            assert run.ids == ids[step:], f"after step {step}, continued in epoch {first}"


def test_readmes_code():
    whole = Run("sampler", loader=package.StatefulDataLoader).epoch(0)
    first = Run("sampler", loader=package.StatefulDataLoader)
    first.sampler.set_epoch(0)
    for _, batch in zip(range(3), first.loader, strict=False):
        first.train(batch)
    sampler = stprune.PruningSampler(NUM_WINDOWS, num_epochs=NUM_EPOCHS)
    names = {"stprune": stprune, "StatefulDataLoader": package.StatefulDataLoader, "sampler": sampler}
    names |= {"train_set": DATA.dataset, "state": first.loader.state_dict()}
    exec(code_of("torchdata"), names)
    assert [index.tolist() for index, _ in names["loader"]] == whole.ids[3:]
