"""transformers' Trainer as its users use it: steps, schedule, evaluations, losses, and runs that resume inside an epoch."""

import os
import signal

import pytest
import torch
from example_checks import example
from loops import NUM_EPOCHS, STEPS
from rank_processes import on_two_processes
from readme import code_of
from torch import multiprocessing

import stprune

transformers = pytest.importorskip("transformers", reason="transformers is missing: pip install stprune[frameworks]")
pytest.importorskip("accelerate", reason="accelerate is missing: pip install stprune[frameworks]")

from stprune.integrations.transformers import PruningTrainer  # noqa: E402

NUM_SAMPLES, BATCH_SIZE = 64, 8
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SHAPE = {"vocab_size": 32, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


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


def arguments(folder, **settings):
    settings = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "learning_rate": 0.01} | settings
    return transformers.TrainingArguments(output_dir=folder, **settings)


def trained(folder, resume=None, callbacks=None, per_process=BATCH_SIZE, sampler=None, **settings):
    settings = {"eval_strategy": "epoch", "save_steps": 1, "logging_strategy": "no"} | settings
    trainer = Recorded(
        classifier(),
        arguments(folder, num_train_epochs=NUM_EPOCHS, per_device_train_batch_size=per_process, **settings),
        train_dataset=sentences(),
        eval_dataset=sentences()[:16],
        callbacks=callbacks,
        sampler=sampler or stprune.PruningSampler(NUM_SAMPLES, num_epochs=NUM_EPOCHS),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


class Evaluations(transformers.TrainerCallback):
    def __init__(self):
        self.steps = []

    def on_evaluate(self, args, state, control, **_):
        self.steps.append(state.global_step)


@pytest.mark.parametrize(("options", "steps"), [({}, STEPS), ({"fixed_length": True}, (4, 4, 4, 4))])
def test_steps_schedule_and_evaluations_are_the_samplers(options, steps, tmp_path):
    """With epochs of changing length and of one: the schedule ends at 0 with the last step."""
    sampler, evaluations = stprune.PruningSampler(NUM_SAMPLES, num_epochs=NUM_EPOCHS, **options), Evaluations()
    trainer = trained(tmp_path, sampler=sampler, callbacks=[evaluations], save_strategy="no")
    assert trainer.state.global_step == trainer.state.max_steps == len(trainer.ids) == sum(steps)
    assert trainer.lr_scheduler.get_last_lr()[0] == 0.0
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
        trainer = trained(
            tmp_path / "resumed",
            tmp_path / "whole" / f"checkpoint-{step}",
            gradient_accumulation_steps=accumulate,
            save_strategy="no",
        )
        assert trainer.ids == whole.ids[sum(batches[:step]) :], f"after step {step}"
        assert trainer.state.global_step == sum(lengths)
        torch.testing.assert_close(trainer.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


def test_a_run_begun_again_after_a_failure_is_a_new_run(tmp_path):
    """As in a notebook: the sampler is the first run's, whose samples of the epoch do not count in the second."""

    class Fail(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            assert state.global_step < 5

    sampler = stprune.PruningSampler(NUM_SAMPLES, num_epochs=NUM_EPOCHS)
    with pytest.raises(AssertionError):
        trained(tmp_path, sampler=sampler, callbacks=[Fail()], save_strategy="no")
    whole = trained(tmp_path / "whole", sampler=sampler)
    assert whole.state.global_step == sum(STEPS)
    resumed = trained(tmp_path / "resumed", tmp_path / "whole" / "checkpoint-2", save_strategy="no")
    assert resumed.ids == whole.ids[2:]


def killed(folder, num_threads):
    torch.set_num_threads(num_threads)

    class Kill(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 10:
                os.kill(os.getpid(), signal.SIGKILL)

    trained(folder, callbacks=[Kill()])


def test_a_killed_run_continues(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=killed, args=(tmp_path, torch.get_num_threads()))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    resumed = trained(tmp_path, resume=True)
    whole = trained(tmp_path / "whole", save_strategy="no")
    assert resumed.ids == whole.ids[10:]
    # Ten steps were made in another process, whose sums may be split otherwise: the last bits are not promised.
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), rtol=1e-3, atol=1e-6)


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
    generator = torch.Generator().manual_seed(0)
    data = [
        {"input_ids": torch.randint(1, 32, (2 + number % 9,), generator=generator), "unused": number} for number in range(20)
    ]
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)), data, {"data_collator": pad}


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
    """BERT accepts num_items_in_batch and then ignores it: its own Trainer is right without accumulation only."""
    return classifier(), sentences()[:20], {}


@pytest.mark.parametrize("made", [classes, language_model, forecaster])
def test_with_nothing_pruned_it_is_the_trainers_own_run(made, tmp_path):
    """Accumulated batches, the last ones fewer, with a last batch that is smaller and sentences of different length."""

    class Forecaster(PruningTrainer):
        def sample_losses(self, outputs, inputs):
            return (outputs.prediction_outputs - inputs["future_values"]) ** 2

    results = []
    for cls in (Forecaster if made is forecaster else PruningTrainer, Ordered):
        model, data, options = made()
        settings = arguments(
            tmp_path, num_train_epochs=1, per_device_train_batch_size=3, save_strategy="no", logging_steps=1,
            gradient_accumulation_steps=1 if made is classes else 4, max_grad_norm=0.0, optim="sgd",
        )  # fmt: skip
        sampler = stprune.PruningSampler(len(data), num_epochs=1, method="full")
        if cls is Ordered:
            Ordered.order = list(sampler)
        else:
            options["sampler"] = sampler
        trainer = cls(model, settings, train_dataset=data, **options)
        trainer.train()
        results.append((trainer.model.state_dict(), [log["loss"] for log in trainer.state.log_history if "loss" in log]))
    assert len(results[0][1]) == (7 if made is classes else 2)
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_losses_per_sample_must_have_the_mean_of_the_models_own_loss(tmp_path):
    """GPT2 shifts its labels without a word of it in its configuration; a model of one's own may do anything."""

    class Half(transformers.BertForSequenceClassification):
        def forward(self, input_ids, labels):
            outputs = super().forward(input_ids, labels=labels)
            outputs["loss"] = outputs["loss"] / 2
            return outputs

    _, data, options = language_model()
    shape = {"vocab_size": 32, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
    for model, samples, other in (
        (transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)), data, options),
        (Half(classifier().config), sentences(), {}),
    ):
        sampler = stprune.PruningSampler(len(samples), num_epochs=1)
        settings = arguments(tmp_path, num_train_epochs=1, save_strategy="no")
        trainer = PruningTrainer(model, settings, train_dataset=samples, sampler=sampler, **other)
        if other:
            trainer.train()
        else:
            with pytest.raises(ValueError, match="sample_losses must have the mean of the model's own loss"):
                trainer.train()


def test_it_is_a_mixin_for_other_trainers(tmp_path):
    """Of an encoder and a decoder, whose labels are not shifted."""

    class Translator(PruningTrainer, transformers.Seq2SeqTrainer):
        pass

    config = transformers.T5Config(
        vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    settings = transformers.Seq2SeqTrainingArguments(
        tmp_path, num_train_epochs=3, use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no", eval_strategy="epoch"
    )
    data = [{"input_ids": each["input_ids"], "labels": each["input_ids"].flip(0)} for each in sentences()]
    model, sampler = transformers.T5ForConditionalGeneration(config), stprune.PruningSampler(NUM_SAMPLES, num_epochs=3)
    trainer = Translator(model, settings, train_dataset=data, eval_dataset=data[:8], sampler=sampler)
    trainer.train()
    assert trainer.state.global_step == 8 + 4 + 8
    assert sum("eval_loss" in log for log in trainer.state.log_history) == 3


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "options", "said"),
    [
        ({"num_train_epochs": 3}, {}, "num_train_epochs must be the sampler's num_epochs 4, got 3"),
        ({"dataloader_drop_last": True}, {}, "dataloader_drop_last must be the sampler's drop_last False, got True"),
        ({"train_sampling_strategy": "group_by_length"}, {}, "train_sampling_strategy must be 'random'"),
        ({}, {"compute_loss_func": print}, "compute_loss_func must be None"),
        ({}, {"train_dataset": [{}] * 30}, "sampler must have a sample for each of train_dataset's 30, got 64"),
        ({"max_steps": 25}, {}, "max_steps must be at most the sampler's total_steps 24, got 25"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, options, said, tmp_path):
    settings = {"num_train_epochs": NUM_EPOCHS} | settings
    sampler = stprune.PruningSampler(NUM_SAMPLES, num_epochs=NUM_EPOCHS)
    with pytest.raises(ValueError, match=f"PruningTrainer: {said}"):
        PruningTrainer(
            classifier(), arguments(tmp_path, **settings), sampler=sampler, **{"train_dataset": sentences(), **options}
        ).train()


def test_labels_that_are_no_classes_need_losses_of_ones_own(tmp_path):
    model, data, _ = forecaster()
    sampler = stprune.PruningSampler(len(data), num_epochs=1)
    trainer = PruningTrainer(model, arguments(tmp_path, num_train_epochs=1), train_dataset=data, sampler=sampler)
    with pytest.raises(TypeError, match="PruningTrainer: labels must be int64 classes, unless sample_losses is overridden"):
        trainer.train()


def test_a_checkpoint_without_the_samplers_state_is_refused(tmp_path):
    trained(tmp_path, save_steps=20)
    (tmp_path / "checkpoint-20" / "pruning_sampler.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"pruning_sampler\.pt"):
        trained(tmp_path, tmp_path / "checkpoint-20")


@pytest.mark.parametrize("name", ["_run_epoch", "_init_training_state", "_get_collator_with_removed_columns"])
def test_a_trainer_without_what_is_needed_is_refused(name, tmp_path, monkeypatch):
    """Another version of transformers, in which these functions have other names or arguments."""
    monkeypatch.setattr(transformers.Trainer, name, lambda self, other: None)
    with pytest.raises(RuntimeError, match=f"PruningTrainer: Trainer must have {name}, as in transformers 5.24, got 5"):
        trained(tmp_path)


# --- two processes ---------------------------------------------------------------------------------------------------


def two_processes(rank, folder):
    settings = {"per_process": BATCH_SIZE // 2, "ddp_backend": "gloo", "optim": "sgd"}
    whole = trained(f"{folder}/whole", save_steps=10, **settings)
    resumed = trained(f"{folder}/resumed", f"{folder}/whole/checkpoint-10", save_strategy="no", **settings)
    weights = [parameter.tolist() for parameter in whole.model.parameters()]
    return {
        "ids": whole.ids,
        "plans": whole.plans,
        "resumed": resumed.ids,
        "steps": whole.state.global_step,
        "weights": weights,
    }


def test_two_processes_train_on_the_plan_and_continue(tmp_path):
    """And end with the weights of one process with the same batches."""
    first, second = on_two_processes(two_processes, str(tmp_path))
    one = trained(tmp_path / "one", save_strategy="no", optim="sgd")
    assert first["plans"] == second["plans"] == one.plans
    assert first["weights"] == second["weights"]
    for ours, weights in zip(one.model.parameters(), first["weights"], strict=True):
        torch.testing.assert_close(torch.tensor(weights), ours.detach(), rtol=1e-4, atol=1e-6)
    for epoch, steps in enumerate(STEPS):
        begin = sum(STEPS[:epoch])
        batches = first["ids"][begin : begin + steps] + second["ids"][begin : begin + steps]
        assert sorted(index for batch in batches for index in batch) == first["plans"][epoch]
    for rank in (first, second):
        assert rank["steps"] == len(rank["ids"]) == sum(STEPS)
        assert rank["resumed"] == rank["ids"][10:]


# --- what users read -------------------------------------------------------------------------------------------------


def test_readmes_code(tmp_path):
    settings = arguments(tmp_path, num_train_epochs=3, save_strategy="no")
    names = {"stprune": stprune, "model": classifier(), "args": settings, "train_set": sentences()}
    exec(code_of("transformers"), names)
    assert names["trainer"].state.global_step == 8 + 4 + 8


def test_the_example(tmp_path, capsys):
    options = ["--epochs", "3", "--windows", "256", "--accumulate", "2", "--folder", str(tmp_path)]
    example("trainer").main(options)
    said = capsys.readouterr().out
    assert "640 ids delivered, 640 planned, 3 epochs" in said
    assert "10 optimizer steps of 10, 3 validations" in said
    assert "the same batches as without a stop: True" in said
