"""Reference of the check that draws make on their input."""

from __future__ import annotations

import torch


def check_range(values: torch.Tensor, high: float) -> torch.Tensor:
    """[2] int64: the first index whose value is not in [0, high] (NaN is not), or -1; and how many values are positive."""
    bad = ~((values >= 0) & (values <= high))
    first = torch.where(bad.any(), bad.to(torch.int8).argmax(), -1) if values.numel() else torch.tensor(-1)
    return torch.stack([first.to(values.device), (values > 0).sum()])
