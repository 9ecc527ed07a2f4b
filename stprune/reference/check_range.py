"""Reference of the check that draws make on their input."""

from __future__ import annotations

import torch

from stprune.reference.draw import fixed_point


def check_range(values: torch.Tensor, high: float, total: bool) -> torch.Tensor:
    """What a draw must know of its input.

    Args:
        values: [n] float32 or float64.
        high: the largest value allowed; the least is 0.
        total: whether the sum is wanted; `high` is at most 1 then.

    Returns:
        [3] int64: the first index whose value is not in [0, high] (NaN is not) or -1, how many values are positive, and the
        sum of round(value * 2^32) over the values (0 unless wanted; of no meaning if a value is not in the range).
    """
    zero = torch.zeros((), dtype=torch.int64, device=values.device)
    if values.numel() == 0:
        return torch.stack([zero - 1, zero, zero])
    bad = ~((values >= 0) & (values <= high))
    first = torch.where(bad.any(), bad.to(torch.int8).argmax(), -1)
    units = fixed_point(values).sum() if total else zero
    return torch.stack([first, (values > 0).sum(), units])
