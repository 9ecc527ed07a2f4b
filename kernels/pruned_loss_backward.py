"""pruned_loss_backward on the GPU: one launch, which reads prediction and target once more and writes the gradients."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import affine_strides, entries, settings, split


@triton.jit
def _backward_kernel(
    prediction, target, mask, affine,
    horizon,  # [T], or unused
    grad_value,  # [], or unused
    grad_loss,  # [B], or unused
    weight,  # [B], or unused
    column_weight,  # [B, F], or unused
    count,  # [B + 1] int64: entries of each sample and of all
    grad_prediction,  # [B, T, columns] out
    grad_target,  # likewise, or unused
    num_samples, num_steps, num_columns, inner,
    p_sample, p_step, p_outer, p_inner,
    t_sample, t_step, t_outer, t_inner,
    m_sample, m_step, m_outer, m_inner,
    gp_sample, gp_step, gp_outer, gp_inner,
    gt_sample, gt_step, gt_outer, gt_inner,
    affine_step: tl.int64, affine_sample,
    parameter: tl.float64,
    null_low: tl.float64,
    null_high: tl.float64,
    LOSS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_NULL: tl.constexpr,
    HAS_AFFINE: tl.constexpr,
    HAS_BOUNDS: tl.constexpr,
    HAS_HORIZON: tl.constexpr,
    HAS_VALUE: tl.constexpr,
    HAS_LOSS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_COLUMN: tl.constexpr,
    TARGET_TOO: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_COLUMN: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = tl.float64 if WIDE else tl.float32
    bend, rest = tl.full([], parameter, ACC), tl.full([], 1.0 - parameter, ACC)
    low, high = tl.full([], null_low, ACC), tl.full([], null_high, ACC)
    line = tl.program_id(0).to(tl.int64)
    sample = line // num_steps
    step = line % num_steps
    column = tl.program_id(1).to(tl.int64) * BLOCK_COLUMN + tl.arange(0, BLOCK_COLUMN)
    inside = column < num_columns
    outer_index = column // inner
    inner_index = column % inner
    at = sample * affine_sample + column
    e, y, kept = entries(
        prediction + sample * p_sample + step * p_step + outer_index * p_outer + inner_index * p_inner,
        target + sample * t_sample + step * t_step + outer_index * t_outer + inner_index * t_inner,
        mask + sample * m_sample + step * m_step + outer_index * m_outer + inner_index * m_inner,
        affine, affine_step, inside, at, bend, low, high,
        LOSS, HAS_MASK, HAS_NULL, HAS_AFFINE, HAS_BOUNDS, ACC,
    )  # fmt: skip
    scale = tl.zeros([], tl.float64)
    if HAS_VALUE:
        scale = tl.load(grad_value).to(tl.float64) / tl.maximum(tl.load(count + num_samples), 1).to(tl.float64)
        if HAS_WEIGHT:
            scale = scale * tl.load(weight + sample).to(tl.float64)
    if HAS_COLUMN and HAS_VALUE:
        scale = scale * tl.load(column_weight + sample * num_columns + column, mask=inside, other=0.0).to(tl.float64)
    if HAS_LOSS:
        scale += tl.load(grad_loss + sample).to(tl.float64) / tl.maximum(tl.load(count + sample), 1).to(tl.float64)
    if HAS_HORIZON:
        scale = scale * tl.load(horizon + step).to(tl.float64)
    c = scale.to(ACC)
    sign = tl.where(e > 0.0, 1.0, 0.0) - tl.where(e < 0.0, 1.0, 0.0)
    slope = c * sign.to(ACC)
    size = tl.where(kept, tl.abs(y), 1.0)
    if LOSS == 1:
        slope = c * (2.0 * e)
    if LOSS == 2:
        bent = tl.where(e < -bend, -bend, e)
        slope = c * tl.where(bent > bend, bend, bent)
    if LOSS == 3:
        slope = slope / size
    if LOSS == 4:
        slope = tl.where(e > 0.0, c * rest, 0.0) - tl.where(e < 0.0, c * bend, 0.0)
    if HAS_AFFINE:
        slope = slope * tl.load(affine + 4 * affine_step + at, mask=inside, other=1.0)
    grad = slope
    if HAS_AFFINE:
        grad = grad * tl.load(affine + at, mask=inside, other=1.0)
    grad = tl.where(kept, grad, 0.0)
    to = grad_prediction + sample * gp_sample + step * gp_step + outer_index * gp_outer + inner_index * gp_inner
    tl.store(to, grad.to(grad_prediction.dtype.element_ty), mask=inside)
    if TARGET_TOO:
        grad = -slope
        if LOSS == 3:
            share = c * tl.abs(e) / (size * size)
            grad = grad - tl.where(y < 0.0, -share, share)
        if HAS_AFFINE:
            grad = grad * tl.load(affine + 2 * affine_step + at, mask=inside, other=1.0)
        grad = tl.where(kept, grad, 0.0)
        to = grad_target + sample * gt_sample + step * gt_step + outer_index * gt_outer + inner_index * gt_inner
        tl.store(to, grad.to(grad_target.dtype.element_ty), mask=inside)


def pruned_loss_backward(
    grad_value: Tensor | None,
    grad_loss: Tensor | None,
    prediction: Tensor,
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    affine: Tensor | None,
    horizon: Tensor | None,
    column_weight: Tensor | None,
    null_value: float | None,
    null_tolerance: float,
    loss: int,
    parameter: float,
    count: Tensor,
    target_too: bool,
) -> tuple[Tensor, Tensor]:
    """Launch the kernel; arguments and results as in stprune.ops.pruned_loss."""
    out = torch.empty_like(prediction)
    out_target = torch.empty_like(target) if target_too else target.new_empty((0,))
    if prediction.numel() == 0:
        return out, out_target
    samples, steps = prediction.shape[:2]
    given = [prediction, target, *([] if mask is None else [mask])]
    results = [out, *([out_target] if target_too else [])]
    inner, views = split([*given, *results])
    if any(view.data_ptr() != x.data_ptr() for view, x in zip(views[len(given) :], results, strict=True)):
        # No split fits every layout: the gradients are written contiguous.
        results = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in results]
        inner, views = split([*(x.contiguous() for x in given), *results])
    p, t, *others = views
    m = others.pop(0) if mask is not None else t
    gp = others[0]
    gt = others[1] if target_too else gp
    columns = p.shape[2] * inner
    told = settings(mask, affine, null_value, null_tolerance, loss, parameter, target.dtype, columns)
    _backward_kernel[(samples * steps, triton.cdiv(columns, told["BLOCK_COLUMN"]))](
        p, t, m, p if affine is None else affine, p if horizon is None else horizon,
        count if grad_value is None else grad_value, count if grad_loss is None else grad_loss,
        count if weight is None else weight, p if column_weight is None else column_weight, count, gp, gt,
        samples, steps, columns, inner,
        *p.stride(), *t.stride(), *m.stride(), *gp.stride(), *gt.stride(), *affine_strides(affine, columns),
        **told, HAS_HORIZON=horizon is not None, HAS_VALUE=grad_value is not None, HAS_LOSS=grad_loss is not None,
        HAS_WEIGHT=weight is not None, HAS_COLUMN=column_weight is not None,
        TARGET_TOO=target_too, WIDE=prediction.dtype == torch.float64,
    )  # fmt: skip
    return results[0], results[1] if target_too else out_target
