"""transformers' Trainer: a small PatchTST on a pruned set of windows, stopped inside an epoch and continued.

python examples/trainer.py
torchrun --nproc-per-node 2 examples/trainer.py
"""

import argparse
import shutil
import tempfile

import torch
from transformers import (
    PatchTSTConfig,
    PatchTSTForPrediction,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
    logging,
    set_seed,
)

import stprune
from stprune.integrations.transformers import PruningTrainer

HISTORY, HORIZON, NODES = 24, 6, 4


def windows(count, seed):
    """Waves of four nodes, of which some are noisy, as the model takes them."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.arange(count + HISTORY + HORIZON).unsqueeze(1) / 6
    series = torch.sin(steps + torch.arange(NODES)) + 0.1 * torch.arange(NODES) * torch.randn(
        len(steps), NODES, generator=generator
    )
    cut = [series[at : at + HISTORY + HORIZON] for at in range(count)]
    return [{"past_values": each[:HISTORY], "future_values": each[HISTORY:]} for each in cut]


class Forecaster(PruningTrainer):
    """The model's own loss, without its mean; and a note of the ids, which a user has no need of."""

    def sample_losses(self, outputs, inputs):
        return (outputs.prediction_outputs - inputs["future_values"]) ** 2

    def training_step(self, model, inputs, *values):
        self.ids.append(inputs["index"].tolist())
        self.planned[self.sampler.epoch] = set(self.sampler.plan.indices.tolist())
        return super().training_step(model, inputs, *values)


class Stop(TrainerCallback):
    """Ends the run after a step, in the middle of an epoch."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step == self.step
        control.should_save = control.should_training_stop


def run(options, folder, stop_at=None, resume=False):
    set_seed(0)
    config = PatchTSTConfig(
        num_input_channels=NODES, context_length=HISTORY, prediction_length=HORIZON, patch_length=6, patch_stride=6,
        d_model=16, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2,
    )  # fmt: skip
    train, test = windows(options.windows, 0), windows(options.windows // 4, 1)
    trainer = Forecaster(
        PatchTSTForPrediction(config),
        TrainingArguments(
            folder, num_train_epochs=options.epochs, per_device_train_batch_size=options.batch, eval_strategy="epoch",
            save_strategy="no", gradient_accumulation_steps=options.accumulate, learning_rate=1e-2, logging_strategy="no",
            use_cpu=True, report_to=[], disable_tqdm=True, label_names=["future_values"],
        ),
        train_dataset=train,
        eval_dataset=test,
        sampler=stprune.PruningSampler(len(train), num_epochs=options.epochs, keep_ratio=options.keep_ratio),
        callbacks=[] if stop_at is None else [Stop(stop_at)],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.ids, trainer.planned = [], {}
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--windows", type=int, default=1024)
    parser.add_argument("--keep-ratio", type=float, default=0.5)
    parser.add_argument("--batch", type=int, default=32, help="samples of a batch on one process")
    parser.add_argument("--accumulate", type=int, default=1, help="batches of an optimizer step")
    parser.add_argument("--folder", default=f"{tempfile.gettempdir()}/stprune_trainer", help="for checkpoints; emptied")
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    whole = run(options, options.folder)
    first, say = whole.is_world_process_zero(), print if whole.is_world_process_zero() else lambda *_: None
    planned, world = sum(map(len, whole.planned.values())), whole.args.world_size
    say(f"{sum(map(len, whole.ids)) * world} ids delivered, {planned} planned, {len(whole.planned)} epochs")
    losses = [each["eval_loss"] for each in whole.state.log_history if "eval_loss" in each]
    say(f"{whole.state.global_step} optimizer steps of {whole.state.max_steps}, {len(losses)} validations")
    say(f"test MSE {losses[0]:.4f} after the first epoch, {losses[-1]:.4f} after the last")
    if first:
        shutil.rmtree(options.folder, ignore_errors=True)
    stopped = run(options, options.folder, stop_at=whole.state.max_steps // 2 + 2)
    rest = run(options, options.folder, resume=True)
    say(f"stopped and continued, the same batches as without a stop: {stopped.ids + rest.ids == whole.ids}")


if __name__ == "__main__":
    main()
