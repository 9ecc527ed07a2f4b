"""PrunedLoss: loss, scores, table update and gradient weights in one call."""

from __future__ import annotations

import torch

from stprune.ops import _check, score
from stprune.plan import EpochPlan
from stprune.sampler import PruningSampler

_OP = "PrunedLoss"
LOSSES = ("mae", "mse", "huber")
RESCALES = ("per_step", "epoch_sum")


class PrunedLoss(torch.nn.Module):
    """The masked training loss of a pruned run: call it instead of your own.

    In training (module in training mode, gradients enabled) it scores the samples of the batch (eq. 4), hands the scores to
    the sampler's table, and multiplies every sample's share of the loss by its weight (eq. 9-10). In evaluation it is the
    plain masked loss and touches nothing.

    The batch loss is the weighted sum over unmasked entries divided by their unweighted number, so that weights of 1 give
    the plain masked loss bit for bit. Half-precision inputs are reduced in float32. The inputs are never modified.

    Args:
        sampler: the run's sampler.
        loss: "mae", "mse" or "huber".
        null_value: target value that means missing (0.0 in traffic data); NaN targets are then missing too. None: nothing is.
        spatial, temporal: lambda_S and lambda_T of eq. 4, >= 0; 0 for both scores by the plain loss.
        rescale: "per_step" makes the mean weight of the epoch 1, so that the learning rate keeps its meaning;
            "epoch_sum" takes the weights as they are, so that an epoch's gradient sum keeps its size (InfoBatch's rule).
        huber_delta: where the huber loss turns linear, > 0.

    Shape:
        prediction, target [B, T, N, C] or [B, T, N]; index [B] int64; node [B, m] int64 or None, with N = m then. Returns a
        scalar, float64 for float64 inputs and float32 otherwise.

    Example:
        >>> import torch, stprune
        >>> sampler = stprune.PruningSampler(4, num_epochs=2)
        >>> criterion = stprune.PrunedLoss(sampler)
        >>> prediction = torch.zeros(2, 12, 3, 1, requires_grad=True)
        >>> float(criterion(prediction, torch.ones(2, 12, 3, 1), torch.tensor([0, 3])))
        1.0
        >>> sampler.table.scores
        tensor([1., inf, inf, 1.])

    Source:
        Eq. 1-4, 9, 10, 13 (our definition of ST-Prune's rescaling).
    """

    def __init__(
        self,
        sampler: PruningSampler,
        *,
        loss: str = "mae",
        null_value: float | None = None,
        spatial: float = 0.5,
        temporal: float = 0.5,
        rescale: str = "per_step",
        huber_delta: float = 1.0,
    ) -> None:
        super().__init__()
        if not isinstance(sampler, PruningSampler):
            raise TypeError(f"{_OP}: sampler must be a PruningSampler, got {type(sampler).__name__}")
        self.sampler = sampler
        self._device_plan: tuple[EpochPlan, EpochPlan] | None = None  # the epoch's plan, and its copy beside the ids
        self.loss = _check.choice(_OP, "loss", loss, LOSSES)
        self.rescale = _check.choice(_OP, "rescale", rescale, RESCALES)
        self.null_value = None if null_value is None else float(null_value)
        self.spatial = _check.real(_OP, "spatial", spatial, 0.0, float("inf"))
        self.temporal = _check.real(_OP, "temporal", temporal, 0.0, float("inf"))
        self.huber_delta = _check.real(_OP, "huber_delta", huber_delta, 0.0, float("inf"), low_open=True)

    def extra_repr(self) -> str:
        return f"loss={self.loss!r}, null_value={self.null_value}, rescale={self.rescale!r}"

    def forward(
        self,
        prediction: torch.Tensor,
        target: torch.Tensor,
        index: torch.Tensor | None = None,
        node: torch.Tensor | None = None,
        *,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The batch loss.

        Args:
            prediction, target: [B, T, N, C] or [B, T, N], in the target's unit.
            index: [B] int64 ids of the samples, which must be in the epoch's plan; not needed in evaluation.
            node: [B, m] int64 drawn nodes, if the batch holds m nodes per window.
            mask: bool of the shape of `target`, False where an entry is to be left out.

        Returns:
            A scalar.

        Raises:
            TypeError, ValueError: shapes or dtypes do not fit, `index` is missing in training, or holds an id that is not in
                the plan (for ids on a GPU the loss is NaN instead, as asking would synchronise).
        """
        _check_batch(prediction, target, mask, node)
        error, valid = self._elementwise(prediction, target, mask)
        if not (self.training and torch.is_grad_enabled()):
            return _masked_mean(error, valid)
        if index is None:
            raise TypeError(f"{_OP}: index must be given in training; call .eval() or use torch.no_grad() to evaluate")
        index = _check.index(_OP, "index", index)
        if index.numel() != prediction.shape[0]:
            raise ValueError(f"{_OP}: index must hold one id for each of {prediction.shape[0]} samples, got {index.numel()}")
        if self.sampler.table.device != prediction.device:
            self.sampler.to(prediction.device)
        weight = self._weights(index).to(prediction.device, error.dtype, non_blocking=True)
        with torch.no_grad():
            scores = score(
                prediction.detach(),
                target.detach(),
                spatial=self.spatial,
                temporal=self.temporal,
                mask=mask,
                null_value=self.null_value,
                loss=self.loss,
            )
        self.sampler.update(index, scores)
        return _masked_mean(error * weight.view(-1, *[1] * (error.dim() - 1)), valid)

    def _elementwise(
        self, prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Loss of every entry, zero where it is left out, and which entries count (None: all)."""
        valid = mask
        if self.null_value is not None:
            present = ~torch.isnan(target)
            if self.null_value == self.null_value:  # not NaN
                present &= target != self.null_value
            valid = present if mask is None else present & mask
        if prediction.dtype in (torch.float16, torch.bfloat16):
            prediction, target = prediction.float(), target.float()
        error = prediction - target
        if valid is not None:
            # Before abs or square, so that a NaN in a masked entry reaches neither loss nor gradient.
            error = torch.where(valid, error, 0.0)
        if self.loss == "mae":
            return error.abs(), valid
        if self.loss == "mse":
            return error.square(), valid
        return torch.nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=self.huber_delta), valid

    def _weights(self, index: torch.Tensor) -> torch.Tensor:
        """[B] float32 weights of the batch, where its ids are."""
        plan = self.sampler.plan
        if index.device.type != "cpu":
            if self._device_plan is None or self._device_plan[0] is not plan:
                self._device_plan = (plan, plan.to(index.device))
            weight, known = self._device_plan[1].lookup(index)
            # An unknown id turns the loss into NaN instead of training on it silently; asking would synchronise.
            weight = torch.where(known, weight, torch.nan)
        else:
            weight, known = plan.lookup(index)
            if not bool(known.all()):
                bad = int(index[~known][0])
                raise ValueError(f"{_OP}: index must hold ids of the plan of epoch {plan.epoch}, got {bad}")
        return weight / plan.mean_weight if self.rescale == "per_step" else weight


def _masked_mean(error: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    if valid is None:
        return error.mean()
    return error.sum() / valid.sum().clamp_min(1)


def _check_batch(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None, node: torch.Tensor | None) -> None:
    _check.floating(_OP, "prediction", prediction)
    _check.floating(_OP, "target", target)
    if prediction.dim() < 2 or prediction.shape != target.shape:
        raise ValueError(
            f"{_OP}: prediction must have the shape of target {tuple(target.shape)}, got {tuple(prediction.shape)}"
        )
    if prediction.device != target.device:
        raise ValueError(f"{_OP}: prediction must live on target's device {target.device}, got {prediction.device}")
    if prediction.dtype != target.dtype:
        raise TypeError(f"{_OP}: prediction must have target's dtype {target.dtype}, got {prediction.dtype}")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != target.shape):
        raise ValueError(f"{_OP}: mask must be bool of shape {tuple(target.shape)}, got {mask.dtype} {tuple(mask.shape)}")
    if node is not None and (
        node.dtype != torch.int64 or prediction.dim() < 3 or node.shape != (prediction.shape[0], prediction.shape[2])
    ):
        raise ValueError(
            f"{_OP}: node must be int64 [batch, nodes] matching prediction {tuple(prediction.shape)}, "
            f"got {node.dtype} {tuple(node.shape)}"
        )
