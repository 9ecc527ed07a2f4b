"""pruned_loss and pruned_step on the GPU: the tiles of a sample become its loss and score, the samples the batch's.

Three launches each. In a step the second one also looks the samples' weights up in the plan, and the third one takes their
scores into the table.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .plan_lookup import plan_arguments, weight_of
from .table_update import BLOCK_ID, OPTIONS, SLOTS, claim, new_claims, table_arguments, take
from .tiles import ROWS, affine_strides, settings, split, tile_kernel

# Steps a merge takes at a time.
BLOCK_STEP = 16
# Samples the last sum takes at a time.
BLOCK_SAMPLE = 1024

Five = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
Four = tuple[Tensor, Tensor, Tensor, Tensor]


@triton.jit
def _joined(number, middle, squares, more, its_middle, its_squares):
    """Of two groups of values, each with its number, mean and squared deviations from it: those of both together."""
    both = tl.maximum(number + more, 1.0)
    # A group without values moves nothing.
    gap = tl.where((more > 0.0) & (number > 0.0), its_middle - middle, 0.0)
    squares += its_squares + gap * gap * number * more / both
    middle = tl.where(number > 0.0, middle + gap * more / both, its_middle)
    return number + more, middle, squares


@triton.jit
def _sample_kernel(
    rows,  # [B, tiles, T, ROW] float64
    spreads,  # [B, tiles, 3] float64
    horizon,  # [T], or unused
    loss,  # [B] out
    statistics,  # [3, B] out
    count,  # [B + 1] int64 out; the last one is left
    sums,  # [B] float64 out: the loss's terms, weighted by columns if there are weights
    weight,  # [B] out: weights in the plan, if there is one
    index,  # [B] int64, or unused
    claims, slot_of,  # as `claim` takes them, or unused
    num_samples, num_steps, num_tiles,
    plan_ids, plan_weights, mean_weight, plan_size, weight_step,
    spatial: tl.float64,
    temporal: tl.float64,
    HAS_SPATIAL: tl.constexpr,
    HAS_TEMPORAL: tl.constexpr,
    HAS_HORIZON: tl.constexpr,
    HAS_PLAN: tl.constexpr,
    HAS_IDS: tl.constexpr,
    HAS_MEAN: tl.constexpr,
    CLAIMED: tl.constexpr,
    WIDTH: tl.constexpr,
    SLOTS: tl.constexpr,
    ROW: tl.constexpr,
    BLOCK_STEP: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)
    if CLAIMED:
        claim(claims, slot_of, index, sample, num_samples * SLOTS)
    if HAS_PLAN:
        of_plan = weight_of(
            tl.load(index + sample), plan_ids, plan_weights, mean_weight, plan_size, weight_step, HAS_IDS, HAS_MEAN, WIDTH
        )
        tl.store(weight + sample, of_plan.to(weight.dtype.element_ty))
    base = rows + sample * num_tiles * num_steps * ROW
    total = tl.zeros([BLOCK_STEP], tl.float64)
    weighted = tl.zeros([BLOCK_STEP], tl.float64)
    entries = tl.zeros([BLOCK_STEP], tl.float64)
    # Of the steps' means: how many there are, their mean, and their squared deviations from it.
    groups, level, squares = tl.zeros([], tl.float64), tl.zeros([], tl.float64), tl.zeros([], tl.float64)
    first = tl.zeros([], tl.int32)
    while first < num_steps:
        step = first + tl.arange(0, BLOCK_STEP)
        valid = step < num_steps
        u = tl.zeros([BLOCK_STEP], tl.float64)
        term = tl.zeros([BLOCK_STEP], tl.float64)
        share = tl.zeros([BLOCK_STEP], tl.float64)
        seen = tl.zeros([BLOCK_STEP], tl.float64)
        tile = tl.zeros([], tl.int64)
        while tile < num_tiles:
            at = base + (tile * num_steps + step) * ROW
            u += tl.load(at, mask=valid, other=0.0)
            term += tl.load(at + 1, mask=valid, other=0.0)
            seen += tl.load(at + 2, mask=valid, other=0.0)
            if ROW == 4:
                share += tl.load(at + 3, mask=valid, other=0.0)
            tile += 1
        if HAS_HORIZON:
            factor = tl.load(horizon + step, mask=valid, other=0.0).to(tl.float64)
            term = term * factor
            share = share * factor
        total += term
        weighted += share
        entries += seen
        there = seen > 0.0
        mean = tl.where(there, u / tl.maximum(seen, 1.0), 0.0)
        more = tl.sum(there.to(tl.float64), 0)
        middle = tl.sum(mean, 0) / tl.maximum(more, 1.0)
        deviation = tl.where(there, mean - middle, 0.0)
        groups, level, squares = _joined(groups, level, squares, more, middle, tl.sum(deviation * deviation, 0))
        first += BLOCK_STEP
    over_time = tl.sqrt(squares / tl.maximum(groups, 1.0))
    # The same of the columns' means, tile by tile.
    at = spreads + sample * num_tiles * 3
    groups, level, squares = tl.zeros([], tl.float64), tl.zeros([], tl.float64), tl.zeros([], tl.float64)
    tile = tl.zeros([], tl.int64)
    while tile < num_tiles:
        groups, level, squares = _joined(groups, level, squares, tl.load(at), tl.load(at + 1), tl.load(at + 2))
        at += 3
        tile += 1
    over_space = tl.sqrt(squares / tl.maximum(groups, 1.0))
    number = tl.sum(entries, 0)
    sum_ = tl.where(number > 0.0, tl.sum(total, 0), 0.0)
    score = sum_ / tl.maximum(number, 1.0)
    tl.store(loss + sample, score)
    # A weight of 0 leaves its term out: 0 * inf would turn an infinite loss into NaN.
    if HAS_SPATIAL:
        score += spatial * over_space
    if HAS_TEMPORAL:
        score += temporal * over_time
    tl.store(statistics + sample, over_space)
    tl.store(statistics + num_samples + sample, over_time)
    tl.store(statistics + (2 * num_samples + sample), score)
    tl.store(count + sample, number.to(tl.int64))
    if ROW == 4:
        sum_ = tl.where(number > 0.0, tl.sum(weighted, 0), 0.0)
    tl.store(sums + sample, sum_)


@triton.jit
def _batch_kernel(
    sums,  # [B] float64
    of_samples,  # [B + 1] int64: entries of each sample; out: of all
    of_batch,  # [B], what the samples count for, or unused
    value,  # [] out
    scores, marks, variance, count, index, values, entries, weight, claims, slot_of,  # as `take` takes them, or unused
    num_samples, size, beta, one_minus_beta,
    WEIGHTED: tl.constexpr, HAS_TABLE: tl.constexpr,
    STORED: tl.constexpr, HAS_VARIANCE: tl.constexpr, HAS_ENTRIES: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    IS_TRAINED: tl.constexpr, CLAIMED: tl.constexpr, BLOCK_ID: tl.constexpr, BLOCK_OTHER: tl.constexpr,
    BLOCK_SAMPLE: tl.constexpr,
):  # fmt: skip
    if tl.program_id(0) == 0:
        total = tl.zeros([BLOCK_SAMPLE], tl.float64)
        number = tl.zeros([BLOCK_SAMPLE], tl.int64)
        first = tl.zeros([], tl.int32)
        while first < size:
            sample = first + tl.arange(0, BLOCK_SAMPLE)
            valid = sample < size
            some = tl.load(sums + sample, mask=valid, other=0.0)
            if WEIGHTED:
                some = some * tl.load(of_batch + sample, mask=valid, other=1.0).to(tl.float64)
            total += some
            number += tl.load(of_samples + sample, mask=valid, other=0)
            first += BLOCK_SAMPLE
        of_all = tl.sum(number, 0)
        tl.store(of_samples + size, of_all)
        tl.store(value, tl.sum(total, 0) / tl.maximum(of_all, 1).to(tl.float64))
    if HAS_TABLE:
        take(
            scores, marks, variance, count, index, values, entries, weight, claims, slot_of,
            num_samples, size, beta, one_minus_beta,
            STORED, HAS_VARIANCE, HAS_ENTRIES, HAS_WEIGHT, IS_TRAINED, CLAIMED, BLOCK_ID, BLOCK_OTHER,
        )  # fmt: skip


def _forward(
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
    spatial: float,
    temporal: float,
    column_means: bool,
    index: Tensor | None = None,
    plan: tuple[Tensor | None, Tensor, Tensor | None, int] | None = None,
    table: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor] | None = None,
    beta: float = 0.0,
) -> Five:
    """The three launches; with a plan its weights are written into `weight`, and the table is updated."""
    samples, steps = prediction.shape[:2]
    wide = prediction.dtype == torch.float64
    of_results = {"dtype": torch.float64 if wide else torch.float32, "device": prediction.device}
    value, mean = torch.empty((), **of_results), torch.empty(samples, **of_results)
    statistics = torch.empty((3, samples), **of_results)
    count = prediction.new_empty(samples + 1, dtype=torch.int64)
    num_columns = prediction.shape[2:].numel()
    column_mean = torch.empty((samples, num_columns) if column_means else (0,), **of_results)
    inner, views = split([x for x in (prediction, target, mask) if x is not None])
    told = settings(mask, affine, null_value, null_tolerance, loss, parameter, target.dtype, num_columns)
    tiles, row = triton.cdiv(num_columns, told["BLOCK_COLUMN"]), 3 if column_weight is None else 4
    rows = prediction.new_empty((samples, tiles, steps, row), dtype=torch.float64)
    spreads = prediction.new_empty((samples, tiles, 3), dtype=torch.float64)
    sums = prediction.new_empty(samples, dtype=torch.float64)
    claims, slot_of = (None, None) if table is None else new_claims(table[0], index)
    p, t = views[:2]
    m = views[2] if mask is not None else t
    tile_kernel[(samples, tiles)](
        p, t, m, p if affine is None else affine, p if column_weight is None else column_weight,
        rows, column_mean if column_means else spreads, spreads, count if claims is None else claims,
        steps, num_columns, inner,
        *p.stride(), *t.stride(), *m.stride(), *affine_strides(affine, num_columns),
        **told, HAS_COLUMN=column_weight is not None, COLUMNS=column_means, ROW=row, WIDE=wide, TALL=steps > ROWS,
        CLAIMED=claims is not None, SLOTS=SLOTS,
    )  # fmt: skip
    no_plan = None, mean, None, samples
    _sample_kernel[(samples,)](
        rows, spreads, sums if horizon is None else horizon, mean, statistics, count, sums,
        sums if weight is None else weight, count if index is None else index,
        count if claims is None else claims, count if claims is None else slot_of,
        samples, steps, tiles, **plan_arguments("pruned_step", *(no_plan if plan is None else plan)),
        spatial=spatial, temporal=temporal, HAS_SPATIAL=spatial > 0.0, HAS_TEMPORAL=temporal > 0.0,
        HAS_HORIZON=horizon is not None, HAS_PLAN=plan is not None,
        CLAIMED=claims is not None, SLOTS=SLOTS, ROW=row, BLOCK_STEP=BLOCK_STEP, num_warps=1,
    )  # fmt: skip
    ids = count[:samples] if index is None else index
    columns = (None, None, None, count) if table is None else table
    taken = table_arguments(*columns, ids, statistics[2], count, weight, beta, True, claims, slot_of)
    _batch_kernel[(1 if table is None else triton.cdiv(samples, BLOCK_ID),)](
        sums, count, sums if weight is None else weight, value, **taken,
        WEIGHTED=weight is not None, HAS_TABLE=table is not None, BLOCK_SAMPLE=BLOCK_SAMPLE, **OPTIONS,
    )  # fmt: skip
    return value, mean, statistics, count, column_mean


def pruned_loss(prediction: Tensor, *others: object) -> Five:
    """Arguments and results as in stprune.ops.pruned_loss; of no entries nothing is launched for the sums."""
    if prediction.numel():
        return _forward(prediction, *others)
    samples, dtype = prediction.shape[0], torch.float64 if prediction.dtype == torch.float64 else torch.float32
    columns = (samples, prediction.shape[2:].numel()) if others[-1] else (0,)
    zeros = [prediction.new_zeros(shape, dtype=dtype) for shape in ((), (samples,), (3, samples))]
    count = prediction.new_zeros(samples + 1, dtype=torch.int64)
    return *zeros, count, prediction.new_full(columns, float("nan"), dtype=dtype)


def pruned_step(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor | None,
    affine: Tensor | None,
    horizon: Tensor | None,
    column_weight: Tensor | None,
    index: Tensor,
    plan_ids: Tensor | None,
    plan_weights: Tensor,
    mean_weight: Tensor | None,
    num_samples: int,
    scores: Tensor | None,
    marks: Tensor | None,
    variance: Tensor | None,
    count: Tensor,
    beta: float,
    *options: object,
) -> Four:
    """Arguments and results as in stprune.ops.pruned_step; prediction has entries."""
    weight = prediction.new_empty(index.shape, dtype=torch.float64 if prediction.dtype == torch.float64 else torch.float32)
    value, _, _, entries, column_mean = _forward(
        prediction, target, mask, weight, affine, horizon, column_weight, *options,
        index=index.contiguous(), plan=(plan_ids, plan_weights, mean_weight, num_samples),
        table=(scores, marks, variance, count), beta=beta,
    )  # fmt: skip
    return value, weight, entries, column_mean
