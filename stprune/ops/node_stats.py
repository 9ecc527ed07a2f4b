"""node_stats: what residual_stats measures, for every node by itself."""

from __future__ import annotations

from typing import Any

import torch

from stprune.ops._registry import define
from stprune.reference import residual_stats as reference
from stprune.reference.precision import accumulator


def _fake(prediction: torch.Tensor, *others: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    shape = (prediction.shape[0], *prediction.shape[2:-1])
    dtype = accumulator(prediction.dtype)
    values = [prediction.new_empty(shape, dtype=dtype) for _ in range(3)]
    return values[0], values[1], values[2], prediction.new_empty(shape, dtype=torch.int64)


define(
    "node_stats(Tensor prediction, Tensor target, Tensor? mask, float? null_value, float null_tolerance, int loss, "
    "float parameter) -> (Tensor, Tensor, Tensor, Tensor)",
    reference.node_stats,
    _fake,
)
