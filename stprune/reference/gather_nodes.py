"""Reference of gather_nodes and of its backward."""

from __future__ import annotations

import torch


def _expanded(node: torch.Tensor, outer: int, inner: int) -> torch.Tensor:
    return node[:, None, :, None].expand(node.shape[0], outer, node.shape[1], inner)


def gather_nodes(x: torch.Tensor, node: torch.Tensor) -> torch.Tensor:
    """x [B, outer, N, inner] and node [B, m] -> contiguous [B, outer, m, inner]."""
    return torch.gather(x, 2, _expanded(node, x.shape[1], x.shape[3])).contiguous()


def gather_nodes_backward(grad: torch.Tensor, node: torch.Tensor, num_nodes: int) -> torch.Tensor:
    """grad [B, outer, m, inner] added up at its nodes -> [B, outer, num_nodes, inner]."""
    # Sums of narrow floats are taken in float32 and rounded once.
    wide = torch.float32 if grad.dtype in (torch.bfloat16, torch.float16) else grad.dtype
    total = grad.new_zeros((grad.shape[0], grad.shape[1], num_nodes, grad.shape[3]), dtype=wide)
    return total.scatter_add_(2, _expanded(node, grad.shape[1], grad.shape[3]), grad.to(wide)).to(grad.dtype)
