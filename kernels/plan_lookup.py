"""plan_lookup on the GPU: one launch, a program for each sample, which compares its id with many of the plan's at a time."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Ids of the plan that a program reads at a time: of 10^7 it finds one in four rounds, where halving would take 24, each as long
# as one read of the memory. Chosen by that arithmetic, not yet timed on a GPU.
WIDTH = 128


@triton.jit
def weight_of(
    sample,  # int64
    plan_ids,  # [K] int64, ascending, or unused
    plan_weights,  # [K] or [1] float32
    mean_weight,  # [] float32, or unused
    plan_size,
    weight_step,  # entries from one weight to the next
    HAS_IDS: tl.constexpr,
    HAS_MEAN: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The weight of one sample in the plan, NaN where it is not in it."""
    place = sample
    if HAS_IDS:
        # Of the ids before `place` all are smaller than the sample's, of those from `place + rest` on none is.
        place = sample * 0
        rest = place + plan_size
        while rest > 0:
            stride = (rest + WIDTH - 1) // WIDTH
            last = (tl.arange(0, WIDTH) + 1) * stride - 1
            theirs = tl.load(plan_ids + place + last, mask=last < rest, other=0)
            smaller = tl.sum(((last < rest) & (theirs < sample)).to(tl.int32), 0) * stride
            place += smaller
            rest = tl.minimum(stride - 1, rest - smaller)
        found = place < plan_size
        found = found & (tl.load(plan_ids + place, mask=found, other=0) == sample)
    else:
        found = (sample >= 0) & (sample < plan_size)
    weight = tl.load(plan_weights + place * weight_step, mask=found, other=float("nan"))
    if HAS_MEAN:
        weight = tl.div_rn(weight, tl.load(mean_weight))
    return weight


@triton.jit
def _plan_lookup_kernel(
    index,  # [B] int64
    weight,  # [B] float32 out
    plan_ids, plan_weights, mean_weight, plan_size, weight_step,
    HAS_IDS: tl.constexpr, HAS_MEAN: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0)
    sample = tl.load(index + place)
    found = weight_of(sample, plan_ids, plan_weights, mean_weight, plan_size, weight_step, HAS_IDS, HAS_MEAN, WIDTH)
    tl.store(weight + place, found)


def plan_arguments(
    op: str, plan_ids: Tensor | None, plan_weights: Tensor, mean_weight: Tensor | None, num_samples: int
) -> dict[str, Any]:
    """A plan as `weight_of` takes it."""
    size = num_samples if plan_ids is None else plan_ids.numel()
    if plan_weights.numel() not in (1, size):
        raise RuntimeError(f"{op}: plan_weights must have one element or one for each of {size} ids")
    return {
        "plan_ids": plan_weights if plan_ids is None else plan_ids,
        "plan_weights": plan_weights,
        "mean_weight": plan_weights if mean_weight is None else mean_weight,
        "plan_size": size,
        "weight_step": 0 if plan_weights.numel() == 1 else plan_weights.stride(0),
        "HAS_IDS": plan_ids is not None,
        "HAS_MEAN": mean_weight is not None,
        "WIDTH": WIDTH,
    }


def plan_lookup(
    index: Tensor, plan_ids: Tensor | None, plan_weights: Tensor, mean_weight: Tensor | None, num_samples: int
) -> Tensor:
    """Launch the kernel; arguments and result as in stprune.ops.plan_lookup."""
    plan = plan_arguments("plan_lookup", plan_ids, plan_weights, mean_weight, num_samples)
    weight = torch.empty_like(index, dtype=torch.float32)
    if index.numel():
        _plan_lookup_kernel[(index.numel(),)](index.contiguous(), weight, **plan, num_warps=1)
    return weight
