"""PrunedLoss: loss, scores, table update and gradient weights in one call."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch

from stprune import scaling
from stprune.criterion import Criterion, of_pairs
from stprune.ops import _check
from stprune.ops.pruned_loss import LOSSES, arranged, channels_of, checked_dims, checked_loss, pruned_loss
from stprune.ops.pruned_step import pruned_step
from stprune.reference.precision import accumulator
from stprune.sampler import PruningSampler

_OP = "PrunedLoss"
_SETTINGS = ("mean", "std", "node_scale", "horizon_weights")


class PrunedLoss(Criterion):
    """The masked training loss of a pruned run: call it instead of your own.

    In training it scores the samples of the batch (eq. 4), hands the scores to the sampler's table, and multiplies every
    sample's share of the loss by its weight (eq. 10). In evaluation it is the plain masked loss and touches nothing.

    A call is training where this module is in training mode, gradients are enabled, prediction or target requires a
    gradient and, if `model` is given, `model.training` is set. Loops that evaluate with gradients enabled need `model`.
    Inside of `checkpoint(use_reentrant=True)` the value is the plain one, as it is made with gradients off; its gradient is
    weighted. Losses of your own go through `PrunedMean`; so does a term that is added per sample, as it is unweighted outside.

    A sample's first batch of an epoch is what counts: a second criterion on the same batch, SAM's second pass or a recomputed
    loss (gradient checkpointing) gets its value and gradient, and moves neither the sampler's position nor a score. A sample
    without any entry (all targets missing) adds nothing to the loss and keeps the score it had.

    A batch of drawn nodes (`node`) is weighted by pair: where the sampler draws some nodes more often than others, it
    multiplies each node's share of the loss by the node's weight; where it asks for the nodes' errors, the mean |error| of
    each over its entries (channels weigh alike) goes back to it, NaN for a node without entries. Scores of windows stay
    unweighted.

    One op reads prediction and target once and yields loss, scores and counts; one op writes the gradient. The batch loss is
    the weighted sum over unmasked entries divided by their unweighted number: weights of 1 give, bit for bit, what evaluation
    gives. Half-precision inputs are reduced in float32. The inputs are never modified, and copied only for a `weight` that
    differs between steps which `dims` puts behind other dimensions.

    Args:
        sampler: the run's sampler.
        loss: "mae", "mse", "huber", "mape" (a ratio; entries with |target| < mape_floor are left out of everything) or
            "quantile" (the pinball loss).
        null_value: value of the series that means missing (0.0 in traffic data); NaN targets are then missing too. None:
            nothing is. It is in the series' unit: with `normalized_target` a target is missing where it is the scaler's image
            of null_value, up to the roundings of the scaler.
        null_tolerance: how far from null_value, in the series' unit, a target is still missing, >= 0. For targets that were
            normalised and mapped back before they came here, in which 0 has become 1.5e-5; the field uses 5e-5.
        spatial, temporal: lambda_S and lambda_T of eq. 4, >= 0; 0 for both scores by the plain loss.
        rescale: "per_step" makes the mean weight of the epoch 1, so that the learning rate keeps its meaning;
            "epoch_sum" takes the weights as they are, so that an epoch's gradient sum keeps its size (InfoBatch's rule).
        huber_delta: where the huber loss turns linear, > 0.
        mape_floor: smallest |target| with a relative error, > 0, in the target's unit.
        quantile: of the pinball loss, in (0, 1).
        mean, std: the scaler's, which turn the model's output into the target's unit: loss and scores are those of
            prediction * std + mean. A number, or numbers (tensor, array or list) of the nodes [N] (grids: [H, W]) or of nodes
            and channels [N, C], where N may be 1. Give both or neither.
        normalized_target: the target is in the model's unit too and is mapped the same way.
        node_scale: [N] positive or a number: errors are divided by it, in loss and scores, so that busy nodes do not dominate.
            Not for "mape", which is relative already.
        horizon_weights: [T] >= 0: the loss of step t is multiplied by them. They leave the spreads alone and are not
            normalised: a mean of 1 keeps the loss's size.
        dims: what the dimensions of prediction and target are, as in `residual_stats`; None is "BTNC" or "BTN".
        model: a module whose flag `training` must be set, too, in training; it does not become a part of this module.

    Shape:
        prediction, target [B, T, N, C], [B, T, N] or as `dims` says; index [B] int64; node [B, m] int64 or None, with N = m
        then. Returns a scalar, float64 for float64 inputs and float32 otherwise.

    The four settings mean, std, node_scale and horizon_weights are attributes, float64 tensors on the host whatever `.half()`
    or `.to()` do to the module. Assign others, or write into them, and the next call uses them. No state dict holds them.

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

    op = _OP
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
        null_tolerance: float = 0.0,
        spatial: float = 0.5,
        temporal: float = 0.5,
        rescale: str = "per_step",
        huber_delta: float = 1.0,
        mape_floor: float = 1e-4,
        quantile: float = 0.5,
        mean: Any = None,
        std: Any = None,
        normalized_target: bool = False,
        node_scale: Any = None,
        horizon_weights: Any = None,
        dims: str | None = None,
        model: Any = None,
    ) -> None:
        super().__init__(sampler, rescale, model)
        hint = "; a loss of your own goes through PrunedMean"
        code, self.parameter = checked_loss(_OP, loss, huber_delta, mape_floor, quantile, hint=hint)
        self.loss = LOSSES[code]
        self.null_value, self.null_tolerance = _check.null(_OP, null_value, null_tolerance)
        self.spatial = _check.real(_OP, "spatial", spatial, 0.0, sys.float_info.max)
        self.temporal = _check.real(_OP, "temporal", temporal, 0.0, sys.float_info.max)
        self.dims = checked_dims(_OP, dims)
        self.normalized_target = bool(normalized_target)
        if (mean is None) != (std is None):
            raise ValueError(f"{_OP}: mean and std must be given together, got {'mean' if std is None else 'std'} alone")
        if normalized_target and mean is None:
            raise ValueError(f"{_OP}: mean and std must be given for a normalized_target, got None")
        if node_scale is not None and self.loss == "mape":
            kind = type(node_scale).__name__
            raise ValueError(f"{_OP}: node_scale must be None for the loss 'mape', which is relative already, got {kind}")
        self.mean, self.std, self.node_scale, self.horizon_weights = mean, std, node_scale, horizon_weights
        self._affine_rows, self._horizon_row = scaling.Remembered(), scaling.Remembered()

    def __setattr__(self, name: str, value: Any) -> None:
        # Settings are plain attributes: buffers would follow `.half()`.
        if name in _SETTINGS:
            value = scaling.setting(name, value)
        super().__setattr__(name, value)

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
        weight: torch.Tensor | None = None,
        score: torch.Tensor | None = None,
        node_weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The batch loss.

        Args:
            prediction, target: [B, T, N, C] or [B, T, N], or as `dims` says, in the target's unit (prediction: in the model's,
                if mean and std are given). Of one dtype; or prediction bfloat16 or float16 beside a float32 target, as
                under autocast.
            index: [B] int64 ids of the samples, which must be in the epoch's plan; not needed in evaluation.
            node: [B, m] int64 drawn nodes, if the batch holds m nodes per window; needed in training where the sampler draws.
            mask: bool of the shape of `target`, False where an entry is to be left out.
            weight: your own weights, floating: [B], or with more of the first dimensions of `prediction`, each of its size or,
                after the first, 1. Of any sign. They are a part of the loss, in evaluation too, and of no score. Weights that
                differ between the steps of a window cost a second pass over prediction and target, others one number for
                each column (node and channel). No gradient flows into them: `PrunedMean` has one.
            score: [B] floating, what the table stores in place of the score of eq. 4; or [B, m] with node: scores of pairs,
                whose mean is the sample's. Costs two small ops.
            node_weight: [B, m] float32, what `sampler.draw_nodes` gave beside `node`; None asks the sampler, which knows them
                of the very tensor that it drew and draws again for others. A compiled step with drawn nodes should be given it:
                the draw is compiled anew for every epoch otherwise.

        Returns:
            A scalar.

        Raises:
            TypeError, ValueError: shapes or dtypes do not fit, `index` is missing in training, or holds an id that is not in
                the plan. On a GPU, where looking at the ids would wait for it, the loss is NaN for such an id, nothing is
                stored for it, and the sampler's next `set_epoch`, `state_dict` or `finish` raises the ValueError. Under
                torch.compile it is a RuntimeError.
            RuntimeError: a second derivative is asked for.
        """
        dims = self.dims
        _check_batch(prediction, target, mask, dims)
        sizes_of = dict(zip(dims or "BTNC", prediction.shape, strict=False))
        self.check_node(node, (sizes_of["B"], sizes_of.get("N")), "prediction", prediction)
        affine, horizon = self._affine(prediction, target, node), self._horizon(prediction)
        p, t, m = arranged(prediction, dims), arranged(target, dims), None if mask is None else arranged(mask, dims)
        loss = LOSSES.index(self.loss)
        options = (self.null_value, self.null_tolerance, loss, self.parameter, self.spatial, self.temporal)
        columns, entries = self._own_weight(weight, prediction, p)
        score = self.own_score(score, p.shape[0], node, p.device)
        if not self.trains(prediction, target):
            if entries is None:
                return pruned_loss(p, t, m, None, affine, horizon, columns, *options, False)[0]
            return _by_steps(p, t, m, None, affine, horizon, entries, options)

        index, place, arguments = self.begin(index, p.shape[0], p.device)
        sizes, counts_nodes = ([], []) if node is None else channels_of(prediction.shape, dims)
        shares = self.node_shares(index, node, node_weight)
        if shares is not None:
            shares = scaling.spread_nodes(shares.to(p.device, accumulator(p.dtype)), sizes, counts_nodes)
        if columns is not None:
            shares = columns if shares is None else shares * columns
        wanted = node is not None and (self.sampler.wants_pair_scores or (score is not None and score.dim() == 2))
        if score is None and entries is None:
            try:
                value, means = pruned_step(p, t, m, affine, horizon, shares, place, *arguments, *options, wanted)
            except RuntimeError:
                self.check_plan(place, arguments)
                raise
            pairs = None if means is None else scaling.mean_of_channels(means, sizes, counts_nodes)
        else:
            of_plan = self.weights(place, arguments)
            weights = of_plan.to(accumulator(p.dtype))
            if entries is None:
                found = pruned_loss(p, t, m, weights, affine, horizon, shares, *options, wanted)
                value, _, statistics, count, means = found
            else:
                entries = entries if shares is None else entries * shares.unsqueeze(1)
                value = _by_steps(p, t, m, weights, affine, horizon, entries, options)
                with torch.no_grad():
                    _, _, statistics, count, means = pruned_loss(p, t, m, None, affine, horizon, None, *options, wanted)
            pairs = scaling.mean_of_channels(means, sizes, counts_nodes) if wanted else None
            scores = statistics[2] if score is None else score
            if pairs is not None and scores.dim() == 2:
                scores, pairs = of_pairs(scores, ~pairs.isnan())
            self.take_scores(arguments, place, scores, count[:-1], of_plan)
        self.sampler.take_in(index, node, pairs if self.sampler.wants_pair_scores else None)
        return value

    def _own_weight(
        self, weight: torch.Tensor | None, prediction: torch.Tensor, arranged_prediction: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The user's weights [B, F] of columns, or [B, T, F] where they differ between the steps of a window."""
        if weight is None:
            return None, None
        weight = self.leading("weight", _check.floating(_OP, "weight", weight), "prediction", prediction)
        if weight.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{_OP}: weight must not require a gradient, which only PrunedMean gives, got one that does")
        weight = arranged(weight.to(accumulator(prediction.dtype)), self.dims)
        batch, steps, *columns = arranged_prediction.shape
        if weight.shape[1] == 1:
            return weight.squeeze(1).expand(batch, *columns).reshape(batch, math.prod(columns)).contiguous(), None
        return None, weight.expand(batch, steps, *columns).reshape(batch, steps, math.prod(columns)).contiguous()

    def _horizon(self, prediction: torch.Tensor) -> torch.Tensor | None:
        """The weights of the steps, [T] beside the prediction."""
        weights = self.horizon_weights
        if weights is None:
            return None
        at = 1 if self.dims is None else self.dims.find("T")
        steps = prediction.shape[at] if at >= 0 else 1
        if weights.numel() != steps:
            raise ValueError(f"{_OP}: horizon_weights must have one weight for each of {steps} steps, got {weights.numel()}")
        key = prediction.device, accumulator(prediction.dtype)
        return self._horizon_row.get(key, [weights], lambda: weights.to(key[1]).to(key[0]))

    def _affine(self, prediction: torch.Tensor, target: torch.Tensor, node: torch.Tensor | None) -> torch.Tensor | None:
        """What the fused ops take as affine, [5 or 7, 1 or B, F] beside the prediction; None where nothing is mapped."""
        settings = self.mean, self.std, self.node_scale
        if self.mean is None and self.std is None and self.node_scale is None:
            return None
        null = self.null_value, self.null_tolerance
        # Settings that are the same for all nodes are those of the drawn ones.
        drawn = None if scaling.num_nodes_of(settings) == 1 else node
        key = prediction.shape, drawn is None, null, self.normalized_target, prediction.dtype, target.dtype, prediction.device
        rows = self._affine_rows.get(key, settings, lambda: self._rows(prediction, target, drawn is not None))
        return rows if drawn is None else scaling.as_columns(rows, drawn, channels_of(prediction.shape, self.dims)[1])

    def _rows(self, prediction: torch.Tensor, target: torch.Tensor, drawn: bool) -> torch.Tensor:
        """The affine of all windows [5 or 7, 1, F]; or, where nodes are drawn, of all nodes that the settings speak of."""
        settings = self.mean, self.std, self.node_scale
        sizes, counts_nodes = channels_of(prediction.shape, self.dims)
        nodes = [size for size, counted in zip(sizes, counts_nodes, strict=True) if counted]
        channels = [size for size, counted in zip(sizes, counts_nodes, strict=True) if not counted]
        rows = scaling.affine_rows(
            *settings,
            (self.null_value, self.null_tolerance),
            normalized_target=self.normalized_target,
            target_dtype=target.dtype,
            nodes=[scaling.num_nodes_of(settings)] if drawn else nodes,
            channels=channels,
        )
        # Rounded on the host: some devices have no float64.
        rows = rows.to(accumulator(prediction.dtype)).to(prediction.device)
        return rows if drawn else scaling.as_columns(rows, None, counts_nodes)


def _by_steps(
    p: torch.Tensor,
    t: torch.Tensor,
    m: torch.Tensor | None,
    weight: torch.Tensor | None,
    affine: torch.Tensor | None,
    horizon: torch.Tensor | None,
    entries: torch.Tensor,
    options: tuple[Any, ...],
) -> torch.Tensor:
    """The batch loss with a weight for each entry [B, T, F]: every step of a window is handed to the op as a window."""
    batch, steps, columns = entries.shape

    def apart(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(batch * steps, 1, *x.shape[2:])

    entries = entries if horizon is None else entries * horizon.unsqueeze(1)
    if affine is not None and affine.shape[1] > 1:
        affine = affine.repeat_interleave(steps, 1)
    weight = None if weight is None else weight.repeat_interleave(steps)
    rows = apart(p), apart(t), None if m is None else apart(m)
    return pruned_loss(*rows, weight, affine, None, entries.reshape(batch * steps, columns), *options, False)[0]


def _check_batch(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None, dims: str | None) -> None:
    _check.floating(_OP, "prediction", prediction)
    if isinstance(target, torch.Tensor) and not target.is_floating_point():
        raise TypeError(
            f"{_OP}: target must be float32, float64, bfloat16 or float16, got {target.dtype}; losses of classes and others of "
            "your own go through PrunedMean"
        )
    _check.floating(_OP, "target", target)
    if prediction.shape != target.shape:
        raise ValueError(
            f"{_OP}: prediction must have the shape of target {tuple(target.shape)}, got {tuple(prediction.shape)}"
        )
    if dims is None and not 2 <= prediction.dim() <= 4:
        raise ValueError(
            f"{_OP}: prediction must be [B, T, N, C], [B, T, N] or [B, T], or dims must name its dimensions ('BTCHW', 'BCHW' "
            f"or 'BTHW' for a grid, 'BN' for one step), got shape {tuple(prediction.shape)}; losses of samples go through "
            "PrunedMean"
        )
    if prediction.device != target.device:
        raise ValueError(f"{_OP}: prediction must live on target's device {target.device}, got {prediction.device}")
    autocast = target.dtype == torch.float32 and prediction.dtype in (torch.bfloat16, torch.float16)
    if prediction.dtype != target.dtype and not autocast:
        raise TypeError(f"{_OP}: prediction must have target's dtype {target.dtype}, got {prediction.dtype}")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != target.shape or mask.device != target.device):
        got = f"{mask.dtype} {tuple(mask.shape)} on {mask.device}"
        raise ValueError(f"{_OP}: mask must be bool of shape {tuple(target.shape)} on {target.device}, got {got}")
    if dims is not None and len(dims) != prediction.dim():
        raise ValueError(
            f"{_OP}: dims {dims!r} must name the dimensions of prediction {tuple(prediction.shape)}, for example 'BTNC', or "
            "'BTHW' for a grid"
        )
