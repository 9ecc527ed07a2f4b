"""BasicTS 1.1: a callback that trains on the windows of a sampler."""

from __future__ import annotations

import os
from typing import Any

from basicts.metrics import ALL_METRICS  # type: ignore[import-not-found]
from basicts.runners.callback import BasicTSCallback  # type: ignore[import-not-found]
from basicts.utils import RunnerStatus  # type: ignore[import-not-found]

from stprune import IndexedDataset, PrunedLoss, PruningSampler, checkpoint, indexed
from stprune.integrations.requirements import require_constant_length, require_whole_windows

_OP = "Pruning"
_INDEX = "stprune_index"
_LOSSES = {"MAE": "mae", "MSE": "mse"}
"""Losses of BasicTS that are, to the rounding, what PrunedLoss calls so; its HUBER also counts missing entries."""


class Pruning(BasicTSCallback):
    """Trains a BasicTS forecaster on the sampler's windows: put it into the config's `callbacks`.

    It gives the runner's training loader a `PruningSampler` of its windows and sets the loss of every training batch; batch
    size, workers, collate function, prefetching, validation and test stay BasicTS's. Epochs have one length, since BasicTS
    counts epochs in steps: `fixed_length` is True unless you say otherwise, and options whose epochs differ in length are
    refused. Every epoch has ``len(loader)`` batches, also the last one, whose last batch BasicTS alone leaves out.

    BasicTS keeps no state of callbacks. The sampler's state goes into ``stprune-<epoch>.state`` in the run's checkpoint folder
    before BasicTS's own checkpoint of that epoch, and a run that resumes reads it back. The files of the last two epochs stay,
    so that a run killed between the two files resumes too. The options are part of the config's md5, which names the folder.

    Args:
        loss: name of a loss of `PrunedLoss`; None: the config's, which then must be "MAE" or "MSE". It is computed where
            BasicTS computes its own: on normalised values, over the entries of `targets_mask`.
        options: of `PruningSampler`, all but its data and `num_epochs`; BasicTS's `from_json` gives them back like this.
        more: the same, as keywords: ``Pruning(keep_ratio=0.3, method="soft-random")``.

    Attributes:
        sampler: the run's sampler, from the start of the training on.

    Raises:
        ValueError: at the start of the training: an option breaks its rule, epochs differ in length, nodes are drawn, the
            config has `num_steps` in place of `num_epochs`, or its loss has no counterpart; at a batch: the model computes its
            own loss.
        FileNotFoundError: at the start of the training: a checkpoint of BasicTS lies in the folder, and no state beside it.

    Example:
        README.md, "BasicTS"; examples/basicts_stid.py.

    Source:
        Hooks of BasicTS 1.1.0, as its own `SelectiveLearning` uses them.
    """

    def __init__(self, loss: str | None = None, options: dict[str, Any] | None = None, **more: Any) -> None:
        super().__init__()
        # BasicTS writes attributes that are named like arguments into the config's file and md5.
        self.loss = loss
        self.options = {"fixed_length": True, **(options or {}), **more}

    def on_train_start(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        """Give the runner's loader the sampler, and the runner the loader's length."""
        loader = runner.train_data_loader
        if runner.num_epochs is None:
            raise ValueError(f"{_OP}: num_epochs must be given in the config, got None: with num_steps there are no epochs")
        sampler = PruningSampler(len(loader.dataset), num_epochs=runner.num_epochs, **self.options)
        require_constant_length(_OP, sampler, "BasicTS counts epochs in steps")
        require_whole_windows(_OP, sampler)
        criterion = PrunedLoss(sampler, loss=self._loss_of(runner.cfg.loss))
        if runner.start_epoch > 0:
            sampler.load_state_dict(checkpoint.load(_path(runner, runner.start_epoch)))
        self.sampler, self._criterion = sampler, criterion
        runner.train_data_loader = type(loader)(
            IndexedDataset(loader.dataset),
            # Not `sampler=`: under DDP BasicTS would number its epochs from 1.
            batch_sampler=sampler.batches(loader.batch_size),
            collate_fn=indexed(loader.collate_fn, key=_INDEX),
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
        )
        # Both were made of the full loader's length.
        runner.steps_per_epoch = len(runner.train_data_loader)
        runner.start_step = runner.start_epoch * runner.steps_per_epoch

    def _loss_of(self, own: Any) -> str:
        if self.loss is not None:
            return self.loss
        name = next((name for name, function in ALL_METRICS.items() if function is own), own)
        if name not in _LOSSES:
            raise ValueError(f"{_OP}: loss must be given where the config's is not one of {sorted(_LOSSES)}, got {name!r}")
        return _LOSSES[name]

    def on_epoch_start(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        """Begin the sampler's epoch."""
        # BasicTS stops at this step, before it is taken: without one more the run's last batch is left out.
        runner.num_steps = runner.num_epochs * runner.steps_per_epoch + 1
        self.sampler.set_epoch((runner.global_steps - 1) // runner.steps_per_epoch)

    def on_compute_loss(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        """Set the loss of a training batch."""
        if runner.status != RunnerStatus.TRAINING:
            return
        batch = kwargs["forward_return"]
        if "loss" in batch:
            raise ValueError(f"{_OP}: model must leave the loss to BasicTS, got one in what its forward returns")
        batch["loss"] = self._criterion(batch["prediction"], batch["targets"], batch[_INDEX], mask=batch["targets_mask"])

    def on_epoch_end(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        """Write the sampler's state, before BasicTS writes its checkpoint."""
        self.sampler.synchronize()
        if self.sampler.rank == 0:
            epoch = kwargs["epoch"]
            checkpoint.save(self.sampler.state_dict(), _path(runner, epoch))
            if os.path.exists(old := _path(runner, epoch - 2)):
                os.remove(old)

    def on_train_end(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        """Hold what the last epoch trained on against its plan."""
        self.sampler.finish()


def _path(runner: Any, epoch: int) -> str:
    # No name that BasicTS takes for a checkpoint of its own: those end with _<number>.pt.
    return os.path.join(runner.ckpt_save_dir, f"stprune-{epoch}.state")
