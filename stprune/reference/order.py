"""Reference of the key order every selection follows, and of select and topk.

NaN first, then +inf down to -inf with -0 equal to +0, then the smaller index.
"""

from __future__ import annotations

import math

import torch


def descending_order(keys: torch.Tensor) -> torch.Tensor:
    """All indices of every row of `keys` [..., n], largest key first, ties by the smaller index."""
    # A stable descending sort keeps the input order of equal keys. Radix sorts (CUDA) order by bits: one NaN, one zero.
    keys = keys.double() + 0.0
    keys = keys.masked_fill(keys.isnan(), math.nan)
    return torch.sort(keys, dim=-1, stable=True, descending=True).indices


def select(keys: torch.Tensor, k: int) -> torch.Tensor:
    """The indices of the k largest keys of every row, ascending."""
    return descending_order(keys)[..., :k].sort(dim=-1).values


def topk(keys: torch.Tensor, k: int, sorted: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and indices of the k largest keys of every row: largest first, or by ascending index when not sorted."""
    indices = descending_order(keys)[..., :k]
    if not sorted:
        indices = indices.sort(dim=-1).values
    return keys.gather(-1, indices), indices
