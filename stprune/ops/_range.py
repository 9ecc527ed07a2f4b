"""check_range: are all values in [0, high], how many are positive, and what is their sum? One pass."""

from __future__ import annotations

import torch

from stprune.ops._registry import define
from stprune.reference.check_range import check_range as reference


def _fake(values: torch.Tensor, high: float, total: bool) -> torch.Tensor:
    return values.new_empty((3,), dtype=torch.int64)


define("check_range(Tensor values, float high, bool total) -> Tensor", reference, _fake)


def in_range(op: str, name: str, rule: str, values: torch.Tensor, high: float, *, total: bool = False) -> tuple[int, int]:
    """How many values are positive, and their sum in units of 2^-32 if `total`.

    Raises ValueError with the first value that does not lie in [0, high]. Reads one small tensor back from the device.
    """
    first, positive, units = torch.ops.stprune.check_range(values, high, total).tolist()
    if first >= 0:
        raise ValueError(f"{op}: {name} must {rule}, got {values[first].item():g} at index {first}")
    return int(positive), int(units)
