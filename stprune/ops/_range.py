"""check_range: are all values in [0, high], and how many are positive? One pass."""

from __future__ import annotations

import torch

from stprune.ops._registry import define
from stprune.reference.check_range import check_range as reference


def _fake(values: torch.Tensor, high: float) -> torch.Tensor:
    return values.new_empty((2,), dtype=torch.int64)


define("check_range(Tensor values, float high) -> Tensor", reference, _fake)


def in_range(op: str, name: str, rule: str, values: torch.Tensor, high: float) -> int:
    """How many values are positive, if all lie in [0, high]; ValueError with the first that does not."""
    first, positive = torch.ops.stprune.check_range(values, high).tolist()
    if first >= 0:
        raise ValueError(f"{op}: {name} must {rule}, got {values[first].item():g} at index {first}")
    return int(positive)
