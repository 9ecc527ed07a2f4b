"""A run that is saved and continued trains on what the uninterrupted run trains on: the same ids, in the same order.

In a plain loop, and in real Lightning and torchdata as their users use them: where those packages are missing, their tests
are skipped (`pip install stprune[frameworks]`).
"""

import logging
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


def test_a_resumed_run_is_saved_and_continued_again():
    ids, states, _ = uninterrupted("sampler", lambda run: saved(run.sampler.state_dict()))
    state = states[2]
    for step in range(3, 24):
        run = Run()
        run.sampler.load_state_dict(state)
        run.train(next(iter(run.loader)))
        assert run.ids == [ids[step]]
        state = saved(run.sampler.state_dict())


# --- Lightning -------------------------------------------------------------------------------------------------------


def lightning_fit(name, kind, hooks, folder=None, checkpoint=None):
    """The ids that a Trainer trains on; it writes a checkpoint into `folder` after every step and every epoch."""
    package = pytest.importorskip(name, reason=f"{name} is not installed: pip install stprune[frameworks]")
    logging.getLogger("lightning.pytorch" if name == "lightning" else name).setLevel(logging.ERROR)

    class Module(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            self.run = Run(kind)

        def train_dataloader(self):
            # Lightning asks for the length before it calls set_epoch itself.
            self.run.sampler.set_epoch(self.trainer.current_epoch)
            return self.run.new_loader()

        def training_step(self, batch, _):
            return self.run.loss(batch, self.weight)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.0)

        def on_save_checkpoint(self, checkpoint):
            if hooks:
                checkpoint["sampler"] = self.run.sampler.state_dict()

        def on_load_checkpoint(self, checkpoint):
            if hooks:
                self.run.sampler.load_state_dict(checkpoint["sampler"])

    class Save(package.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.save_checkpoint(folder / f"step {trainer.global_step}")

        def on_train_epoch_end(self, trainer, *_):
            trainer.save_checkpoint(folder / f"epoch {trainer.current_epoch}")

    module = Module()
    trainer = package.Trainer(
        accelerator="cpu",
        callbacks=[] if folder is None else [Save()],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=False,
        max_epochs=NUM_EPOCHS,
        reload_dataloaders_every_n_epochs=1,  # epochs differ in length
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few workers, loader not resumable by Lightning itself
        trainer.fit(module, ckpt_path=checkpoint)
    return module.run.ids


@pytest.mark.parametrize("name", ["lightning", "pytorch_lightning"])
@pytest.mark.parametrize(
    ("kind", "hooks"),
    [
        ("torch", False),  # the control: Lightning counts what is left, and begins with the epoch's first batches
        ("sampler", True),
        ("batches", True),
        ("windows", True),
        ("windows", False),  # Lightning saves a loader's state unasked
    ],
)
def test_lightning_continues_from_every_checkpoint(name, kind, hooks, tmp_path):
    ids = lightning_fit(name, kind, hooks, tmp_path)
    steps = (8, 8, 8, 8) if kind == "torch" else STEPS
    assert len(ids) == sum(steps)
    ends = [sum(steps[: epoch + 1]) for epoch in range(NUM_EPOCHS)]
    # Lightning calls a checkpoint written by the last step of an epoch unfinished where the next epoch is longer, and skips
    # as many steps of that one, whatever the sampler does. What it writes at an epoch's end it does not.
    left_out = {end for end, this, after in zip(ends, steps, steps[1:], strict=False) if this < after}
    names = {f"step {step}": step for step in range(1, sum(steps) + 1) if step not in left_out}
    if hooks or kind == "torch":  # Lightning does not load a loader's state of an epoch's end
        names |= {f"epoch {epoch}": end for epoch, end in enumerate(ends)}
    for file, step in names.items():
        resumed = lightning_fit(name, kind, hooks, checkpoint=tmp_path / file)
        if kind == "torch":
            assert len(resumed) == sum(steps) - step, file
        else:
            assert resumed == ids[step:], file


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
