"""pytorch-forecasting: ids in its batches, plan weights in its own weights, scores by its own loss."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_forecasting.metrics import MASE
from torch.utils.data import DataLoader

import stprune
from stprune.integrations import lightning

_OP = "Pruning"


class Pruning(lightning.Pruning):
    """The callback of a pruned run of pytorch-forecasting, and its training loader.

    The model and its loss stay as they are. A sample's plan weight multiplies the weights of its time steps, which the loss
    applies itself; its score is its mean loss over its time steps, before any weight. The loss is one that gives a value for
    each step by its function `loss` and takes weights: every `MultiHorizonMetric` (the losses of quantiles, distributions and
    points), but no `MultiLoss` and no metric of torchmetrics.

    A model's own term beside its loss, such as the backcast of NBeats, has no plan weights: set `backcast_loss_ratio=0.0`.

    Args:
        sampler: the run's sampler, over the samples of the `TimeSeriesDataSet`.
        batch_size: of the training loader, on each rank.

    Raises:
        TypeError: when training begins: the model's loss gives no value for each step.
        And as `stprune.integrations.lightning.Pruning`.
    """

    def loader(self, dataset: Any, **options: Any) -> DataLoader[Any]:
        """The training loader: that of `dataset.to_dataloader(train=True)`, with the sampler and with ids in its batches.

        Args:
            dataset: a `TimeSeriesDataSet`.
            **options: of the DataLoader, such as num_workers.
        """
        collate = dataset.to_dataloader(train=True).collate_fn
        return DataLoader(
            stprune.IndexedDataset(dataset),
            batch_size=self.batch_size,
            sampler=self.sampler,
            collate_fn=_IndexInX(stprune.indexed(collate)),
            **options,
        )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to take scores from the model's predictions."""
        super().on_train_start(trainer, pl_module)
        if not hasattr(pl_module.loss, "loss"):
            raise TypeError(f"{_OP}: the model's loss must give a value for each step, got {type(pl_module.loss).__name__}")
        self._hook = pl_module.register_forward_hook(self._score)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Multiply the batch's own weights, of samples [B] or of their time steps [B, T], by the plan's."""
        x, (_, weight) = batch
        plan = self.sampler.weights_of(x["index"]).to(weight)
        weight *= plan if weight.dim() == 1 else plan.unsqueeze(1)

    @torch.no_grad()
    def _score(self, module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x = inputs[0]
        if not module.training or "index" not in x:
            return
        target, lengths, loss = x["decoder_target"], x["decoder_lengths"], module.loss
        scaling: tuple[Any, ...] = ()
        if isinstance(loss, MASE):
            scaling = (loss.calculate_scaling(target, lengths, x["encoder_target"], x["encoder_lengths"]),)
        values = loss.loss(output["prediction"].detach(), target, *scaling)
        values = values.flatten(2).mean(2) if values.dim() > 2 else values
        steps = torch.arange(values.shape[1], device=values.device) < lengths.unsqueeze(1)
        if self.sampler.table.device != values.device:
            self.sampler.to(values.device)
        self.sampler.update(x["index"], torch.where(steps, values, 0.0).sum(1) / lengths)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Take no scores any more."""
        super().on_train_end(trainer, pl_module)
        self._hook.remove()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Take no scores any more, if training had begun: another fit would take each score twice."""
        super().on_exception(trainer, pl_module, exception)
        if hasattr(self, "_hook"):
            self._hook.remove()


class _IndexInX:
    """The library's batch (x, (target, weight)), with the ids in x and with weights of 1 where there are none."""

    def __init__(self, collate_fn: Any) -> None:
        self.collate_fn = collate_fn

    def __call__(self, items: Any) -> Any:
        index, (x, (target, weight)) = self.collate_fn(items)
        return x | {"index": index}, (target, torch.ones(len(index)) if weight is None else weight)
