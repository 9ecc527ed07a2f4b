"""transformers' Trainer as its users use it: steps, schedule, evaluations, losses, and runs that resume inside an epoch."""

import os
import signal

import pytest
import torch
from loops import NUM_EPOCHS, STEPS, place
from processes import on_two_processes
from readme import code_of
from torch import multiprocessing

import stprune

transformers = pytest.importorskip("transformers", reason="transformers is missing: pip install stprune[frameworks]")
pytest.importorskip("accelerate", reason="accelerate is missing: pip install stprune[frameworks]")

from stprune.integrations.transformers import PruningTrainer  # noqa: E402

NUM_SAMPLES, BATCH_SIZE = 64, 8
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SHAPE = {"vocab_size": 32, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


@pytest.fixture(autouse=True)
def _quiet():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def classifier():
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SHAPE, **NO_DROPOUT, num_labels=3))


def sentences():
    words = torch.randint(5, 32, (NUM_SAMPLES, 6), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": each, "labels": number % 3} for number, each in enumerate(words)]


class Recorded(PruningTrainer):
    """A user's trainer that keeps the ids of every batch and the plan of every epoch."""

    def __init__(self, *values, **named):
        super().__init__(*values, **named)
        self.ids, self.plans = [], {}

    def training_step(self, model, inputs, *values, **named):
        self.ids.append(inputs["index"].tolist())
        self.plans[self.sampler.epoch] = self.sampler.plan.indices.tolist()
        return super().training_step(model, inputs, *values, **named)


def trained(folder, resume=None, callbacks=(), cls=Recorded, per_process=BATCH_SIZE, sampler=None, **settings):
    settings = {"eval_strategy": "epoch", "save_steps": 1, "logging_strategy": "no", "learning_rate": 0.01} | settings
    trainer = cls(
        classifier(),
        transformers.TrainingArguments(
            output_dir=folder,
            num_train_epochs=NUM_EPOCHS,
            per_device_train_batch_size=per_process,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            **settings,
        ),
        train_dataset=sentences(),
        eval_dataset=sentences()[:16],
        callbacks=[*callbacks, *QUIET],
        sampler=sampler or stprune.PruningSampler(NUM_SAMPLES, num_epochs=NUM_EPOCHS),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


class Evaluations(transformers.TrainerCallback):
    def __init__(self):
        self.steps = []

    def on_evaluate(self, args, state, control, **_):
        self.steps.append(state.global_step)


QUIET = []


@pytest.mark.parametrize(("options", "steps"), [({}, STEPS), ({"fixed_length": True}, (4, 4, 4, 4))])
def test_steps_schedule_and_evaluations_are_the_samplers(options, steps, tmp_path):
    """With epochs of changing length and of one: the schedule ends at 0 with the last step."""
    sampler, evaluations = stprune.PruningSampler(NUM_SAMPLES, num_epochs=NUM_EPOCHS, **options), Evaluations()
    trainer = trained(tmp_path, sampler=sampler, callbacks=[evaluations], save_strategy="no")
    assert trainer.state.global_step == trainer.state.max_steps == len(trainer.ids) == sum(steps)
    assert trainer.lr_scheduler.get_last_lr() == [0.0]
    assert evaluations.steps == [sum(steps[: epoch + 1]) for epoch in range(NUM_EPOCHS)]
    for epoch in range(NUM_EPOCHS):
        begin = sum(steps[:epoch])
        batches = trainer.ids[begin : begin + steps[epoch]]
        assert sorted(index for batch in batches for index in batch) == trainer.plans[epoch]
    # Evaluation of 16 samples an epoch reached no score and was not counted.
    assert sampler.table.num_losses == steps[-1] * BATCH_SIZE


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_continues_from_its_checkpoints(accumulate, tmp_path):
    whole = trained(tmp_path / "whole", gradient_accumulation_steps=accumulate)
    lengths = [-(-steps // accumulate) for steps in STEPS]
    assert whole.state.global_step == whole.state.max_steps == sum(lengths)
    batches = [min(accumulate, steps - at) for steps in STEPS for at in range(0, steps, accumulate)]
    for step in (3, 8, 10, 12, 17) if accumulate == 1 else (2, 3, 4, 5, 8):
        trainer = trained(tmp_path / "resumed", tmp_path / "whole" / f"checkpoint-{step}", gradient_accumulation_steps=accumulate,
                          save_strategy="no")
        assert trainer.ids == whole.ids[sum(batches[:step]) :], f"after step {step}"
        assert trainer.state.global_step == sum(lengths)
        torch.testing.assert_close(trainer.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


def killed(folder):
    class Kill(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 10:
                os.kill(os.getpid(), signal.SIGKILL)

    trained(folder, callbacks=[Kill()])


def test_a_killed_run_continues(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=killed, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    resumed = trained(tmp_path, resume=True)
    whole = trained(tmp_path / "whole", save_strategy="no")
    assert resumed.ids == whole.ids[10:]
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


# --- losses ----------------------------------------------------------------------------------------------------------


class Ordered(transformers.Trainer):
    """The plain Trainer, with the order of another run."""

    order = ()

    def _get_train_sampler(self, *_):
        return self.order


def pad(samples):
    longest = max(len(each["input_ids"]) for each in samples)
    rows = torch.stack([torch.nn.functional.pad(each["input_ids"], (0, longest - len(each["input_ids"]))) for each in samples])
    return {"input_ids": rows, "attention_mask": (rows > 0).long(), "labels": rows.where(rows > 0, -100)}


def language_model():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=32, n_embd=8, n_layer=1, n_head=2, n_positions=16, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    generator = torch.Generator().manual_seed(0)
    data = [
        {"input_ids": torch.randint(1, 32, (2 + number % 9,), generator=generator), "unused": number} for number in range(20)
    ]
    return transformers.GPT2LMHeadModel(config), data, {"data_collator": pad}


def forecaster():
    torch.manual_seed(0)
    config = transformers.PatchTSTConfig(
        num_input_channels=2, context_length=12, prediction_length=4, patch_length=4, patch_stride=4, d_model=8, ffn_dim=8,
        num_hidden_layers=1, num_attention_heads=2, attention_dropout=0.0, ff_dropout=0.0, head_dropout=0.0,
    )  # fmt: skip
    series = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    data = [{"past_values": series[at : at + 12], "future_values": series[at + 12 : at + 16]} for at in range(20)]
    return transformers.PatchTSTForPrediction(config), data, {}


def classes():
    return classifier(), sentences()[:20], {}


@pytest.mark.parametrize("made", [classes, language_model, forecaster])
def test_with_nothing_pruned_it_is_the_trainers_own_run(made, tmp_path):
    """Accumulated batches, the last ones fewer, with a last batch that is smaller and sentences of different length."""

    class Forecaster(PruningTrainer):
        def sample_losses(self, outputs, inputs):
            return (outputs.prediction_outputs - inputs["future_values"]) ** 2

    results = []
    for own in (False, True):
        model, data, options = made()
        arguments = transformers.TrainingArguments(
            output_dir=tmp_path, num_train_epochs=2, per_device_train_batch_size=3, gradient_accumulation_steps=4,
            use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no", logging_steps=1, learning_rate=0.01,
            max_grad_norm=0.0,
        )  # fmt: skip
        sampler = stprune.PruningSampler(len(data), num_epochs=2, method="full")
        if own:
            trainer = Ordered(model, arguments, train_dataset=data, **options)
            trainer.order = list(sampler)
            trainer.args.num_train_epochs = 1
        else:
            cls = Forecaster if made is forecaster else PruningTrainer
            sampler = stprune.PruningSampler(len(data), num_epochs=1, method="full")
            trainer = cls(model, set_epochs(arguments, 1), train_dataset=data, sampler=sampler, **options)
        trainer.train()
        results.append((trainer.model.state_dict(), [log["loss"] for log in trainer.state.log_history if "loss" in log]))
    assert len(results[0][1]) == 2
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)
