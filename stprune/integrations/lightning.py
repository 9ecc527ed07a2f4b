"""Lightning, under either of its names: a callback that gives every epoch its own length and continues runs exactly."""

from __future__ import annotations

import sys
from typing import Any

import torch

from stprune import PrunedMean, PruningSampler

_OP = "Pruning"
_PACKAGES = "lightning.pytorch", "pytorch_lightning"


class Pruning:
    """The callback of a pruned run: `Trainer(callbacks=[Pruning(sampler, batch_size=64)])`.

    It is a `Callback` of `lightning.pytorch` or of `pytorch_lightning`, whichever is imported: import nothing but the one
    whose Trainer runs. Lightning reads the length of the training loader once; the callback lets it read the length again
    in every epoch that has another one, so that every epoch is whole and has its validation; Lightning asks for the loader
    anew then, as with `reload_dataloaders_every_n_epochs`. `trainer.estimated_stepping_batches` in `configure_optimizers` is
    the run's number of steps, as long as no epoch is longer than the first and the trainer runs all of the sampler's epochs.

    The sampler's state is in every checkpoint, and `trainer.fit(ckpt_path=...)` goes on from each of them, written in the
    middle of an epoch or at its end, with the samples of the uninterrupted run. On several ranks the sampler shares the
    samples out itself; Lightning leaves it alone where the loader was given `sampler=sampler`, and must be told to
    (`use_distributed_sampler=False`) where it was given `batch_sampler=sampler.batches(...)`.

    Where Lightning cuts epochs short (`limit_train_batches`, `max_steps`, `fast_dev_run`), the rest of the plan is left out;
    the sampler tells it once, except of `max_steps`.

    Args:
        sampler: the run's sampler, which the training loader was given.
        batch_size: of the training loader, on each rank.

    Raises:
        RuntimeError: neither package is imported.
        TypeError: `sampler` is no PruningSampler.
        ValueError: when the fit begins: the training loader has another sampler or batch size, or the trainer runs more epochs
            than the sampler.

    Source:
        The hooks of Lightning 2.6; tests/frameworks/test_lightning.py says when they change.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        bases = tuple(sys.modules[name].Callback for name in _PACKAGES if name in sys.modules)
        if not bases:
            raise RuntimeError(f"{_OP}: {' or '.join(_PACKAGES)} must be imported first, the one whose Trainer runs")
        return object.__new__(type(cls.__name__, (cls, *bases), {}))

    def __init__(self, sampler: PruningSampler, *, batch_size: int) -> None:
        if not isinstance(sampler, PruningSampler):
            raise TypeError(f"{_OP}: sampler must be a PruningSampler, got {type(sampler).__name__}")
        self.sampler = sampler
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"{_OP}: batch_size must be an integer of at least 1, got {batch_size!r}")
        self.batch_size = batch_size
        self._state: dict[str, Any] | None = None  # a checkpoint's, until training has gone on from it
        self._length = 0  # of the sampler when Lightning last read that of the loader
        self._max_steps: int | None = None  # the trainer's own, while another number stands in its place

    def __reduce__(self) -> Any:
        # The class was made by __new__ and has no name by which pickle could find it.
        return _made, (type(self).__mro__[1], self.sampler, self.batch_size)

    # --- the length --------------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let Lightning's estimate of the run's steps end at the sampler's number of them."""
        self._state = None  # an evaluation may have left that of its checkpoint
        last = self.sampler.num_epochs
        if stage != "fit" or last is None:
            return
        if trainer.max_epochs > last or (trainer.max_epochs == -1 and trainer.max_steps == -1):
            raise ValueError(f"{_OP}: trainer.max_epochs must be at most the sampler's {last} epochs, got {trainer.max_epochs}")
        total = self.sampler.total_steps(self.batch_size, trainer.accumulate_grad_batches)
        loop = trainer.fit_loop.epoch_loop
        self._max_steps = loop.max_steps
        loop.max_steps = total if loop.max_steps == -1 else min(loop.max_steps, total)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Give the trainer its own `max_steps` back: optimizers and schedulers are made."""
        if self._max_steps is not None:
            trainer.fit_loop.epoch_loop.max_steps, self._max_steps = self._max_steps, None

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """As `on_fit_start`, where `configure_optimizers` has failed."""
        self.on_fit_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin the sampler's epoch, if Lightning has not, and let Lightning read its length."""
        self.sampler.set_epoch(trainer.current_epoch)
        if len(self.sampler) != self._length:
            self._read_length(trainer)

    def _read_length(self, trainer: Any) -> None:
        """Let Lightning ask for the training loader anew, and so for its length and the interval of validations."""
        self._length = len(self.sampler)
        every = trainer.reload_dataloaders_every_n_epochs
        trainer.reload_dataloaders_every_n_epochs = -1  # so many epochs have always passed
        try:
            trainer.fit_loop.setup_data()
        finally:
            trainer.reload_dataloaders_every_n_epochs = every

    # --- the state ---------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Look at the loader; go on from a checkpoint's state."""
        self._check_loader(trainer.train_dataloader)
        self._length = len(self.sampler)
        state = self._state
        if state is None:
            # What another fit trained on in this epoch, before it failed, does not count in this one.
            self.sampler.resume_at(self.sampler.begin_position)
            return
        # A loader with a state of its own takes it the first time; the sampler's comes after it, from the callback.
        self._read_length(trainer)
        self.sampler.load_state_dict(state)
        fit, epoch = trainer.fit_loop, trainer.current_epoch
        for progress in (fit.epoch_progress.total, fit.epoch_progress.current):
            # With max_steps Lightning counts an epoch that a checkpoint ended twice, and so leaves out the next one.
            progress.processed = min(progress.processed, progress.completed)
        if epoch > state["epoch"] or not state["finished"]:
            self._state = None  # else Lightning has only to end this epoch: see on_train_epoch_end
        if epoch == self.sampler.num_epochs:
            return
        self.sampler.set_epoch(epoch)
        self._read_length(trainer)
        if epoch > state["epoch"]:
            # Lightning begins to count batches anew where its count has reached the length: that of the epoch before. And it
            # takes this epoch for the one before, so that checkpoints of the continued run would continue at wrong places.
            fit.epoch_loop.batch_progress.current.completed = trainer.num_training_batches
            fit.reset_restart_stage()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Where Lightning only had to end a checkpoint's epoch: leave the sampler as it was at its end."""
        if self._state is not None:
            self.sampler.load_state_dict(self._state)
            self._state = None

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Let the sampler hold the samples counted in the last epoch against its plan, unless `max_steps` cut it short."""
        if trainer.is_last_batch:
            self.sampler.finish()

    def state_dict(self) -> dict[str, Any]:
        """The sampler's state. A collective where ranks exchange scores: Lightning saves a checkpoint on every rank."""
        self.sampler.synchronize()
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep a checkpoint's state until training begins."""
        self._state = state

    def _check_loader(self, loader: Any) -> None:
        """Refuse a loader that shows another sampler or batch size; collections of loaders show neither."""
        source = getattr(loader, "batch_sampler", None) or loader
        theirs = getattr(source, "sampler", self.sampler)
        if theirs is not self.sampler:
            raise ValueError(
                f"{_OP}: the training loader must have the callback's sampler, got {type(theirs).__name__}. Where Lightning "
                "has replaced it: Trainer(use_distributed_sampler=False, overfit_batches=0)"
            )
        size = getattr(source, "batch_size", None)
        if size not in (None, self.batch_size):
            raise ValueError(f"{_OP}: batch_size must be the training loader's {size}, got {self.batch_size}")


class BatchPruning(Pruning):
    """For a library whose own training step computes the loss: it knows the batch that this step is about.

    Args:
        sampler, batch_size: as in `Pruning`.

    Attributes:
        mean: the `PrunedMean` of the run.
        batch: the training batch under way; None between steps, so in validation.
    """

    def __init__(self, sampler: PruningSampler, *, batch_size: int) -> None:
        super().__init__(sampler, batch_size=batch_size)
        self.mean = PrunedMean(sampler)
        self.batch: Any = None

    def trains(self, values: torch.Tensor) -> bool:
        """Whether these losses are those of a training step."""
        return self.batch is not None and self.mean.trains(values)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Remember the batch."""
        self.batch = batch

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Forget the batch."""
        self.batch = None


def _made(cls: type[Pruning], sampler: PruningSampler, batch_size: int) -> Any:
    return cls(sampler, batch_size=batch_size)
