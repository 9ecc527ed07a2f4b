"""The adjacency that graph models read: what is refused, and the part of drawn nodes."""

from __future__ import annotations

import torch
from torch import Tensor


def with_loops(name: str, adjacency: Tensor) -> Tensor:
    """A checked float32 copy of an adjacency, where nodes whose diagonal entry is 0 have a loop of weight 1.

    Args:
        name: the model's name, for the message.
        adjacency: [N, N] floating, not modified.

    Raises:
        TypeError: adjacency is no floating tensor.
        ValueError: adjacency is not square, or has entries that are negative or not finite.
    """
    if not isinstance(adjacency, Tensor) or not adjacency.is_floating_point():
        kind = adjacency.dtype if isinstance(adjacency, Tensor) else type(adjacency).__name__
        raise TypeError(f"{name}: adjacency must be a floating tensor, got {kind}")
    if adjacency.dim() != 2 or adjacency.shape[0] != adjacency.shape[1] or not len(adjacency):
        raise ValueError(f"{name}: adjacency must be [N, N] with N at least 1, got {list(adjacency.shape)}")
    if not bool((torch.isfinite(adjacency) & (adjacency >= 0)).all()):
        raise ValueError(f"{name}: adjacency must be finite and not negative, got an entry that is not")
    loops = torch.diag((adjacency.diagonal() == 0).to(torch.float32))
    return adjacency.detach().to(torch.float32) + loops


def part_of(adjacency: Tensor, node: Tensor | None) -> Tensor:
    """The adjacency between drawn nodes.

    Args:
        adjacency: [N, N], not modified.
        node: [B, m] int64, or None for all nodes in order.

    Returns:
        [B, m, m], or the adjacency itself for None.
    """
    return adjacency if node is None else adjacency[node[:, :, None], node[:, None, :]]


def rows_of_one(weights: Tensor) -> Tensor:
    """[..., m, m] with every row divided by its sum."""
    return weights / weights.sum(dim=-1, keepdim=True)
