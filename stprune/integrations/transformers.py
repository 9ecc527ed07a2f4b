"""transformers' Trainer: the sampler's epochs, their real steps, weighted losses, and runs that resume inside an epoch."""

from __future__ import annotations

import functools
import math
import os
from typing import Any

import transformers
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.trainer_utils import seed_worker

from stprune import IndexedDataset, PrunedMean, PruningSampler, checkpoint, indexed
from stprune.integrations.accelerate import PruningLoader
from stprune.integrations.requirements import require_functions

_OP = "PruningTrainer"
_FILE = "pruning_sampler.pt"
_IGNORED = -100
"""Labels that count for nothing, everywhere in transformers."""

_PRIVATE = {
    "_run_epoch": {"epoch", "steps_in_epoch", "num_update_steps_per_epoch"},
    "_init_training_state": {"max_steps", "num_update_steps_per_epoch", "num_train_epochs", "resume_from_checkpoint", "trial"},
    "_get_collator_with_removed_columns": {"data_collator"},
}
"""What is not public and yet needed, with the arguments that are read: Trainer has no other place for an epoch of its own
length, and counts epochs by that of the first."""


class PruningTrainer(Trainer):  # type: ignore[misc]
    """A Trainer on a PruningSampler's plans, or a mixin before another Trainer: `class Mine(PruningTrainer, Other)`.

    Epochs may change in length: `max_steps` and the schedule are `sampler.total_steps`, every epoch has the steps it really
    has, and evaluation and checkpoints come as the arguments say. Each checkpoint holds the sampler's state, and a run that
    resumes from it, also inside an epoch, trains on what the uninterrupted run trains on; `ignore_data_skip` makes no
    difference. On several processes (torchrun) each trains on its share of the plan.

    The loss of a batch is `PrunedMean` of the losses per sample that `sample_losses` gives. With nothing pruned it is what the
    Trainer computes, also over accumulated batches (`num_items_in_batch`). Evaluation is the Trainer's own.

    Args:
        sampler: the run's sampler, for as many samples and epochs as `train_dataset` and `args.num_train_epochs` have.
        others: the Trainer's, without `compute_loss_func`, whose place `sample_losses` takes.

    Raises:
        TypeError, ValueError: an argument breaks its rule; the message names it.
        RuntimeError: this version of transformers lacks a function that is needed, or one process would use several GPUs.

    Source:
        `Trainer` of transformers 5.24.
    """

    def __init__(self, *others: Any, sampler: PruningSampler, **options: Any) -> None:
        require_functions(_OP, Trainer, _PRIVATE, "transformers 5.24", transformers.__version__)
        if not isinstance(sampler, PruningSampler):
            raise TypeError(f"{_OP}: sampler must be a PruningSampler, got {type(sampler).__name__}")
        super().__init__(*others, **options)
        if self.compute_loss_func is not None:
            raise ValueError(f"{_OP}: compute_loss_func must be None, got one: give losses per sample by sample_losses")
        if (order := self.args.train_sampling_strategy) != "random":
            raise ValueError(f"{_OP}: train_sampling_strategy must be 'random': the sampler gives the order, got {order!r}")
        if self.args.n_gpu > 1:
            raise RuntimeError(
                f"{_OP}: n_gpu must be at most 1 in a process (start the run by torchrun), got {self.args.n_gpu}"
            )
        for name, theirs in (("num_train_epochs", "num_epochs"), ("dataloader_drop_last", "drop_last")):
            given, wanted = getattr(self.args, name), getattr(sampler, theirs)
            if given != wanted:
                raise ValueError(f"{_OP}: {name} must be the sampler's {theirs} {wanted}, got {given}")
        if self.train_dataset is not None and len(self.train_dataset) != sampler.num_windows:
            raise ValueError(
                f"{_OP}: sampler must have a sample for each of train_dataset's {len(self.train_dataset)}, got "
                f"{sampler.num_windows}"
            )
        self.sampler = sampler
        self.criterion = PrunedMean(sampler)
        self._compared = False  # cross entropy with the model's own loss

    # --- losses ------------------------------------------------------------------------------------------------------

    def sample_losses(self, outputs: Any, inputs: dict[str, Any]) -> Any:
        """The losses of a batch without reduction; override it for models that predict anything but classes or tokens.

        Args:
            outputs: what the model returned; inputs: what it was given.

        Returns:
            [B] or [B, ...], or a pair of them and a mask of the same shape, False where an entry does not count.

        Raises:
            TypeError: the labels are no classes.
            ValueError: the mean of the first batch's cross entropy is not the model's own loss.
        """
        labels = inputs.get("labels")
        if labels is None or labels.is_floating_point():
            raise TypeError(f"{_OP}: labels must be int64 classes, unless sample_losses is overridden, got {labels!r:.40}")
        logits = outputs["logits"]
        encoder_decoder = getattr(getattr(self.model, "config", None), "is_encoder_decoder", False)
        if labels.ndim > 1 and getattr(self.model, "loss_function", None) is ForCausalLMLoss and not encoder_decoder:
            logits, labels = logits[:, :-1], labels[:, 1:]
        mask, logits = labels != _IGNORED, logits.movedim(-1, 1).float()
        values = cross_entropy(logits, labels, reduction="none", label_smoothing=self.args.label_smoothing_factor)
        if not self._compared and self.args.label_smoothing_factor == 0:
            self._compared = True
            mean, own = values[mask].mean().item(), outputs["loss"].item()
            if not math.isclose(mean, own, rel_tol=0.01, abs_tol=0.001):
                raise ValueError(
                    f"{_OP}: sample_losses must have the mean of the model's own loss {own:g}, got {mean:g}: override it"
                )
        return values, mask

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The weighted loss of a batch with ids, as training's are; the Trainer's own of any other."""
        if "index" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        index = inputs["index"]
        inputs = {name: value for name, value in inputs.items() if name != "index"}
        outputs = model(**inputs)
        losses = self.sample_losses(outputs, inputs)
        values, mask = losses if isinstance(losses, tuple) else (losses, None)
        loss = self.criterion(values, index, mask=mask)
        if num_items_in_batch is not None:
            # The Trainer divides by the items of all accumulated batches, and averages gradients over processes.
            labels = inputs["labels"][..., 1:] if self._loss_shifts_labels else inputs["labels"]
            loss = loss * (labels != _IGNORED).sum() / num_items_in_batch
            if self.args.average_tokens_across_devices:
                loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        return (loss, outputs) if return_outputs else loss

    # --- epochs ------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        """The training loader, whose batches hold the ids as "index", whatever collator there is."""
        args = self.args
        loader = DataLoader(
            IndexedDataset(self.train_dataset),
            batch_size=self._train_batch_size,
            sampler=self.sampler,
            drop_last=args.dataloader_drop_last,
            collate_fn=indexed(self._get_collator_with_removed_columns(self.data_collator, "training"), key="index"),
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            prefetch_factor=args.dataloader_prefetch_factor,
            in_order=args.dataloader_in_order,
            worker_init_fn=functools.partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
        )
        return PruningLoader(self.accelerator, loader)

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple[Any, ...]:
        """As the Trainer's, with the steps of the sampler's epochs."""
        _, steps, examples, _, batch, length, max_steps = super().set_initial_training_values(args, dataloader)
        total = self.sampler.total_steps(self._train_batch_size, accumulate=args.gradient_accumulation_steps)
        if args.max_steps > total:
            raise ValueError(f"{_OP}: max_steps must be at most the sampler's total_steps {total}, got {args.max_steps}")
        max_steps = total if args.max_steps < 0 else max_steps
        return self.sampler.num_epochs, steps, examples, max_steps * batch, batch, length, max_steps

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, resume_from_checkpoint: Any, trial: Any
    ) -> tuple[int, int]:
        super()._init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial)
        if self.state.global_step == 0:
            # What another run trained on in this epoch, before it failed, does not count in this one.
            if self.sampler.epoch == 0:
                self.sampler.resume_at(self.sampler.begin_position)
            return 0, 0
        state = checkpoint.load(os.path.join(resume_from_checkpoint, _FILE))
        self.sampler.load_state_dict(state)
        # The sampler delivers what is left of its epoch: the Trainer has nothing to skip.
        return state["epoch"] + state["finished"], 0

    def _run_epoch(self, **named: Any) -> None:
        sampler, args = self.sampler, self.args
        sampler.set_epoch(named["epoch"])
        count, step = sampler.total_size - sampler.begin_position, sampler.num_replicas * self._train_batch_size
        batches = count // step if sampler.drop_last else -(-count // step)
        named["steps_in_epoch"], named["num_update_steps_per_epoch"] = batches, -(-batches // args.gradient_accumulation_steps)
        super()._run_epoch(**named)

    def train(self, *values: Any, **named: Any) -> Any:
        """As the Trainer's; after the last epoch the samples that were trained on are held against the plan."""
        output = super().train(*values, **named)
        if self.state.global_step >= self.state.max_steps and self.args.max_steps < 0:
            self.sampler.finish()
        return output

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer's; a checkpoint's folder gets the sampler's state, with the scores of every process, too."""
        super().save_model(output_dir, _internal_call)
        if _internal_call and output_dir is not None:
            self.sampler.synchronize()
            if self.args.should_save:
                checkpoint.save(self.sampler.state_dict(), os.path.join(output_dir, _FILE))
