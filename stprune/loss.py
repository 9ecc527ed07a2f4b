"""PrunedLoss: loss, scores, table update and gradient weights in one call."""

from __future__ import annotations

import math
from typing import Any

import torch

from stprune.ops import _check
from stprune.ops.pruned_loss import Five, arranged, channels_of, checked_dims, checked_loss, functorch_is_active, pruned_loss
from stprune.ops.pruned_step import pruned_step
from stprune.sampler import PruningSampler

_OP = "PrunedLoss"
RESCALES = ("per_step", "epoch_sum")


class PrunedLoss(torch.nn.Module):
    """The masked training loss of a pruned run: call it instead of your own.

    In training (module in training mode, gradients enabled) it scores the samples of the batch (eq. 4), hands the scores to
    the sampler's table, and multiplies every sample's share of the loss by its weight (eq. 10). In evaluation it is the
    plain masked loss and touches nothing.

    A batch of drawn nodes (`node`) is weighted by pair: where the sampler's law draws some nodes more often than others, it
    multiplies each node's share of the loss by the node's weight; where the law asks for the nodes' errors, the mean |error| of
    each over its entries (channels weigh alike) goes back to the sampler, NaN for a node without entries. Scores of windows
    stay unweighted.

    One op reads prediction and target once and yields loss, scores and counts; one op writes the gradient. The batch loss is
    the weighted sum over unmasked entries divided by their unweighted number: weights of 1 give, bit for bit, what evaluation
    gives. Half-precision inputs are reduced in float32. The inputs are never modified or copied.

    Args:
        sampler: the run's sampler.
        loss: "mae", "mse", "huber", "mape" (a ratio; entries with |target| < mape_floor are left out of everything) or
            "quantile" (the pinball loss).
        null_value: target value that means missing (0.0 in traffic data); NaN targets are then missing too. None: nothing is.
            Compared with the target as it is given, before any de-normalisation.
        spatial, temporal: lambda_S and lambda_T of eq. 4, >= 0; 0 for both scores by the plain loss.
        rescale: "per_step" makes the mean weight of the epoch 1, so that the learning rate keeps its meaning;
            "epoch_sum" takes the weights as they are, so that an epoch's gradient sum keeps its size (InfoBatch's rule).
        huber_delta: where the huber loss turns linear, > 0.
        mape_floor: smallest |target| with a relative error, > 0, in the target's unit.
        quantile: of the pinball loss, in (0, 1).
        mean, std: the scaler's, which turn the model's output into the target's unit: loss and scores are those of
            prediction * std + mean. A number, or a tensor of the nodes [N] (grids: [H, W]) or of nodes and channels [N, C],
            where N may be 1. Give both or neither.
        normalized_target: the target is in the model's unit too and is mapped the same way.
        node_scale: [N] positive or a number: errors are divided by it, in loss and scores, so that busy nodes do not dominate.
            Not for "mape", which is relative already.
        horizon_weights: [T] >= 0: the loss of step t is multiplied by them. They leave the spreads alone and are not
            normalised: a mean of 1 keeps the loss's size.
        dims: what the dimensions of prediction and target are, as in `residual_stats`; None is "BTNC" or "BTN".

    Shape:
        prediction, target [B, T, N, C], [B, T, N] or as `dims` says; index [B] int64; node [B, m] int64 or None, with N = m
        then. Returns a scalar, float64 for float64 inputs and float32 otherwise.

    Example:
        >>> import torch, stprune
        >>> sampler = stprune.PruningSampler(4, num_epochs=2)
        >>> criterion = stprune.PrunedLoss(sampler)
        >>> prediction = torch.zeros(2, 12, 3, 1, requires_grad=True)
        >>> criterion(prediction, torch.ones(2, 12, 3, 1), torch.tensor([0, 3])).item()
        1.0
        >>> sampler.table.scores
        tensor([1., inf, inf, 1.])

    Source:
        Eq. 1-4, 10, 13 (our definition of ST-Prune's rescaling).
    """

    mean: torch.Tensor | None
    std: torch.Tensor | None
    node_scale: torch.Tensor | None
    horizon_weights: torch.Tensor | None

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
        mape_floor: float = 1e-4,
        quantile: float = 0.5,
        mean: float | torch.Tensor | None = None,
        std: float | torch.Tensor | None = None,
        normalized_target: bool = False,
        node_scale: float | torch.Tensor | None = None,
        horizon_weights: Any = None,
        dims: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(sampler, PruningSampler):
            raise TypeError(f"{_OP}: sampler must be a PruningSampler, got {type(sampler).__name__}")
        self.sampler = sampler
        self.loss, self.parameter = checked_loss(_OP, loss, huber_delta, mape_floor, quantile)
        self.rescale = _check.choice(_OP, "rescale", rescale, RESCALES)
        self.null_value = None if null_value is None else float(null_value)
        self.spatial = _check.real(_OP, "spatial", spatial, 0.0, math.inf)
        self.temporal = _check.real(_OP, "temporal", temporal, 0.0, math.inf)
        self.dims = checked_dims(_OP, dims)
        self.normalized_target = bool(normalized_target)
        if (mean is None) != (std is None):
            raise ValueError(f"{_OP}: mean and std must be given together")
        if normalized_target and mean is None:
            raise ValueError(f"{_OP}: mean and std must be given for a normalized_target, got None")
        if node_scale is not None and self.loss == "mape":
            raise ValueError(f"{_OP}: node_scale must be None for the loss 'mape', which is relative already")
        for name, value in (
            ("mean", _numbers("mean", mean, positive=False)),
            ("std", _numbers("std", std, positive=True)),
            ("node_scale", _numbers("node_scale", node_scale, positive=True)),
            ("horizon_weights", _horizon(horizon_weights)),
        ):
            if value is None:  # a plain attribute is found sooner than a module's
                setattr(self, name, None)
            else:
                self.register_buffer(name, value, persistent=False)
        self._columns: tuple[Any, torch.Tensor] | None = None

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
            prediction, target: [B, T, N, C] or [B, T, N], or as `dims` says, in the target's unit (prediction: in the model's,
                if mean and std are given). Of one dtype; or prediction bfloat16 or float16 beside a float32 target, as
                under autocast.
            index: [B] int64 ids of the samples, which must be in the epoch's plan; not needed in evaluation.
            node: [B, m] int64 drawn nodes, if the batch holds m nodes per window.
            mask: bool of the shape of `target`, False where an entry is to be left out.

        Returns:
            A scalar.

        Raises:
            TypeError, ValueError: shapes or dtypes do not fit, `index` is missing in training, or holds an id that is not in
                the plan (for ids on a GPU the loss is NaN instead, as asking would synchronise; under torch.compile it is a
                RuntimeError).
            RuntimeError: a second derivative is asked for.
        """
        if node is None and self.dims is None and self.training and not torch.compiler.is_compiling():
            value = self._step(prediction, target, index, mask)
            if value is not None:
                return value
        return self._general(prediction, target, index, node, mask)

    def _step(
        self, prediction: torch.Tensor, target: torch.Tensor, index: torch.Tensor | None, mask: torch.Tensor | None
    ) -> torch.Tensor | None:
        """A step of training on the host by one op; None where it takes several, or an argument has to be explained."""
        plain = type(prediction) is type(target) is torch.Tensor and (mask is None or type(mask) is torch.Tensor)
        if not plain or type(index) is not torch.Tensor or not torch.is_grad_enabled():
            return None
        if not (prediction.is_cpu and target.is_cpu and index.is_cpu):
            return None
        if not (prediction.requires_grad or target.requires_grad) or functorch_is_active():
            return None
        arguments = self.sampler.step_arguments(per_step=self.rescale == "per_step")
        if arguments is None:
            return None
        try:
            affine = None if self.mean is None and self.node_scale is None else self._affine(prediction, None)
            horizon = None if self.horizon_weights is None else self._horizon(prediction, self.horizon_weights)
            options = (self.null_value, self.loss, self.parameter, self.spatial, self.temporal)
            return pruned_step(prediction, target, mask, affine, horizon, index, *arguments, *options)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None  # Nothing was changed.

    def _general(
        self,
        prediction: torch.Tensor,
        target: torch.Tensor,
        index: torch.Tensor | None,
        node: torch.Tensor | None,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        _check_batch(prediction, target, mask, node, self.dims)
        affine = None if self.mean is None and self.node_scale is None else self._affine(prediction, node)
        horizon = None if self.horizon_weights is None else self._horizon(prediction, self.horizon_weights)
        p, t = prediction, target
        if self.dims is not None:
            p, t = arranged(p, self.dims), arranged(t, self.dims)
            mask = None if mask is None else arranged(mask, self.dims)
        options = (mask, affine, horizon)
        if not (self.training and torch.is_grad_enabled()):
            return self._fused(p, t, None, *options)[0]
        if index is None:
            raise TypeError(f"{_OP}: index must be given in training; call .eval() or use torch.no_grad() to evaluate")
        index = _check.index(_OP, "index", index)
        if index.numel() != p.shape[0]:
            raise ValueError(f"{_OP}: index must hold one id for each of {p.shape[0]} samples, got {index.numel()}")
        device = p.device
        if self.sampler.table.device != device:
            self.sampler.to(device)
        weight = self.sampler.weights_of(index, per_step=self.rescale == "per_step")
        if p.dtype == torch.float64 or weight.device != device:
            weight = weight.to(device, _accumulator(p), non_blocking=True)
        if node is None:
            value, _, rest, _, _ = self._fused(p, t, weight, *options)
            self.sampler.update(index, rest[2])
            return value
        sizes, counts_nodes = channels_of(prediction.shape, self.dims)
        shares = self.sampler.node_weights_of(index, node)
        column_weight = None if shares is None else _spread_nodes(shares.to(device, _accumulator(p)), sizes, counts_nodes)
        wanted = self.sampler.wants_pair_scores
        value, _, rest, _, means = self._fused(p, t, weight, *options, column_weight, wanted)
        self.sampler.update(index, rest[2])
        if wanted:
            self.sampler.update_pairs(index, node, _mean_of_channels(means, sizes, counts_nodes))
        return value

    def _fused(
        self,
        prediction: torch.Tensor,
        target: torch.Tensor,
        weight: torch.Tensor | None,
        mask: torch.Tensor | None,
        affine: torch.Tensor | None,
        horizon: torch.Tensor | None,
        column_weight: torch.Tensor | None = None,
        columns: bool = False,
    ) -> Five:
        return pruned_loss(
            prediction,
            target,
            mask,
            weight,
            affine,
            horizon,
            column_weight,
            self.null_value,
            self.loss,
            self.parameter,
            self.spatial,
            self.temporal,
            columns,
        )

    def _horizon(self, prediction: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        at = 1 if self.dims is None else self.dims.find("T")
        steps = prediction.shape[at] if at >= 0 else 1
        if weights.numel() != steps:
            raise ValueError(f"{_OP}: horizon_weights must have one weight for each of {steps} steps, got {weights.numel()}")
        return weights.to(prediction.device, _accumulator(prediction))

    def _affine(self, prediction: torch.Tensor, node: torch.Tensor | None) -> torch.Tensor:
        """[5, 1 or B, F]: factor and offset of prediction and of target, factor of their difference."""
        sizes, counts_nodes = channels_of(prediction.shape, self.dims)
        key = (tuple(sizes), prediction.device, _accumulator(prediction))
        if node is None and self._columns is not None and self._columns[0] == key:
            return self._columns[1]
        one = torch.ones((), dtype=torch.float64, device=prediction.device)
        std, mean, scale = (_on(value, one) for value in (self.std, self.mean, self.node_scale))
        factor = one if std is None else std
        offset = one * 0 if mean is None else mean
        both = self.normalized_target
        rows = (factor, offset, factor if both else one, offset if both else one * 0, one if scale is None else 1.0 / scale)
        columns = torch.broadcast_tensors(*(_columns(row, sizes, counts_nodes, node) for row in rows))
        table = torch.stack(columns).to(_accumulator(prediction))
        if node is None and not torch.compiler.is_compiling():
            self._columns = (key, table)
        return table


def _on(value: Any, like: torch.Tensor) -> torch.Tensor | None:
    return value.to(like.device, torch.float64) if isinstance(value, torch.Tensor) else None


def _accumulator(prediction: torch.Tensor) -> torch.dtype:
    return torch.float64 if prediction.dtype == torch.float64 else torch.float32


def _columns(value: torch.Tensor, sizes: list[int], counts_nodes: list[bool], node: torch.Tensor | None) -> torch.Tensor:
    """A value per node, or per node and channel, for every column: [1 or B, F]."""
    nodes = [size for size, counted in zip(sizes, counts_nodes, strict=True) if counted]
    channels = [size for size, counted in zip(sizes, counts_nodes, strict=True) if not counted]
    shape = [*nodes, *channels]
    if value.dim() > len(shape) and value.numel() != 1:
        raise ValueError(
            f"{_OP}: mean, std and node_scale must fit nodes and channels {tuple(shape)}, got {tuple(value.shape)}"
        )
    value = value.reshape(()) if value.numel() == 1 else value
    value = value.view(*value.shape, *[1] * (len(shape) - value.dim()))
    if node is not None and value.dim() > 0 and value.shape[0] > 1:
        value = value[node]
        batch = node.shape[0]
    else:
        value, batch = value.unsqueeze(0), 1
    try:
        full = value.expand(batch, *shape)
    except RuntimeError as error:
        raise ValueError(
            f"{_OP}: mean, std and node_scale must fit nodes and channels {tuple(shape)}, got {tuple(value.shape[1:])}"
        ) from error
    if len(channels) == 1 and counts_nodes[-1]:
        # Channels come before nodes in the tensors.
        full = full.movedim(-1, 1 + counts_nodes.index(False))
    return full.reshape(batch, -1)


def _spread_nodes(shares: torch.Tensor, sizes: list[int], counts_nodes: list[bool]) -> torch.Tensor:
    """Values [B, m] of nodes for every column, contiguous [B, F]."""
    view = [size if counted else 1 for size, counted in zip(sizes, counts_nodes, strict=True)]
    batch = shares.shape[0]
    return shares.reshape(batch, *view).expand(batch, *sizes).reshape(batch, math.prod(sizes)).contiguous()


def _mean_of_channels(means: torch.Tensor, sizes: list[int], counts_nodes: list[bool]) -> torch.Tensor:
    """Values [B, F] of columns for every node, [B, m] float32: the mean of its channels that have one."""
    channels = [1 + i for i, counted in enumerate(counts_nodes) if not counted]
    if channels:
        means = means.view(means.shape[0], *sizes).nanmean(channels)
    return means.to(torch.float32)


def _numbers(name: str, value: Any, *, positive: bool) -> torch.Tensor | None:
    """A setting as float64 numbers: finite, and above 0 if asked."""
    if value is None:
        return None
    if not isinstance(value, torch.Tensor):
        value = _check.real(_OP, name, value, -math.inf, math.inf)
    numbers = torch.as_tensor(value, dtype=torch.float64).detach().clone()
    if not bool(torch.isfinite(numbers).all()) or (positive and not bool((numbers > 0).all())):
        rule = "be positive and finite" if positive else "be finite"
        raise ValueError(f"{_OP}: {name} must {rule} everywhere")
    return numbers


def _horizon(weights: Any) -> torch.Tensor | None:
    if weights is None:
        return None
    numbers = torch.as_tensor(weights, dtype=torch.float64).detach().clone()
    if numbers.dim() != 1 or not bool((torch.isfinite(numbers) & (numbers >= 0)).all()):
        raise ValueError(f"{_OP}: horizon_weights must be one finite weight >= 0 for each step, got {tuple(numbers.shape)}")
    return numbers


def _check_batch(
    prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None, node: torch.Tensor | None, dims: str | None
) -> None:
    _check.floating(_OP, "prediction", prediction)
    _check.floating(_OP, "target", target)
    if prediction.dim() < 2 or prediction.shape != target.shape:
        raise ValueError(
            f"{_OP}: prediction must have the shape of target {tuple(target.shape)}, got {tuple(prediction.shape)}"
        )
    if prediction.device != target.device:
        raise ValueError(f"{_OP}: prediction must live on target's device {target.device}, got {prediction.device}")
    autocast = target.dtype == torch.float32 and prediction.dtype in (torch.bfloat16, torch.float16)
    if prediction.dtype != target.dtype and not autocast:
        raise TypeError(f"{_OP}: prediction must have target's dtype {target.dtype}, got {prediction.dtype}")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != target.shape):
        raise ValueError(f"{_OP}: mask must be bool of shape {tuple(target.shape)}, got {mask.dtype} {tuple(mask.shape)}")
    if dims is not None and len(dims) != prediction.dim():
        raise ValueError(f"{_OP}: dims {dims!r} must name the dimensions of prediction {tuple(prediction.shape)}")
    if node is None:
        return
    at = 2 if dims is None else dims.find("N")
    if (
        node.dtype != torch.int64
        or not 0 <= at < prediction.dim()
        or node.shape != (prediction.shape[0 if dims is None else dims.index("B")], prediction.shape[at])
    ):
        raise ValueError(
            f"{_OP}: node must be int64 [batch, nodes] matching prediction {tuple(prediction.shape)}, "
            f"got {node.dtype} {tuple(node.shape)}"
        )
