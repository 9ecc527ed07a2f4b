"""Checks of a forecaster's sizes and input, shared by the models of this folder."""

from __future__ import annotations

import torch
from torch import Tensor


def check_sizes(name: str, sizes: dict[str, int]) -> None:
    """Refuse sizes below 1.

    Args:
        name: the model's name, for the message.
        sizes: argument names and their values.

    Raises:
        ValueError: a size is below 1.
    """
    for argument, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: {argument} must be at least 1, got {size}")


def check_input(name: str, x: Tensor, node: Tensor | None, *, history: int, num_nodes: int | None) -> None:
    """Refuse an input that the model would broadcast into a wrong result, or read out of bounds.

    Args:
        name: the model's name, for the message.
        x: [B, T, N, C] or, with `node`, [B, T, m, C].
        node: [B, m] int64 node ids, or None.
        history: T the model was built for.
        num_nodes: N the model was built for; None for a model that takes any nodes.

    Raises:
        TypeError: x is not floating point, or node is not int64.
        ValueError: a shape differs from what the model was built for, or a node id lies outside [0, num_nodes).
    """
    if not x.is_floating_point():
        raise TypeError(f"{name}: x must be floating point, got {x.dtype}")
    if x.dim() != 4 or x.shape[1] != history or x.shape[3] < 3:
        raise ValueError(
            f"{name}: x must be [B, {history}, N, C] with C >= 3 (value, time of day, day of week), got {list(x.shape)}"
        )
    if node is None:
        if num_nodes is not None and x.shape[2] != num_nodes:
            raise ValueError(
                f"{name}: x must hold all {num_nodes} nodes when node is None, got {x.shape[2]} in {list(x.shape)}"
            )
        return
    if node.dtype != torch.int64:
        raise TypeError(f"{name}: node must be int64, got {node.dtype}")
    if node.shape != (x.shape[0], x.shape[2]):
        raise ValueError(
            f"{name}: node must be [B, m] = {[x.shape[0], x.shape[2]]} to match x {list(x.shape)}, got {list(node.shape)}"
        )
    # On a GPU this check would wait for the device in every step; there the embedding lookup's own assert catches it.
    if num_nodes is not None and node.device.type == "cpu" and node.numel():
        low, high = (int(v) for v in torch.aminmax(node))
        if low < 0 or high >= num_nodes:
            raise ValueError(f"{name}: node ids must lie in [0, {num_nodes}), got {low if low < 0 else high}")


def time_index(feature: Tensor, size: int) -> Tensor:
    """Turn a time feature in [0, 1) into a row of an embedding table.

    Args:
        feature: any shape, float; time of day or day of week as a fraction of its period.
        size: rows of the table.

    Returns:
        int64 of the same shape in [0, size). A feature outside [0, 1) is taken modulo its period.
    """
    # 0.5 / size before the floor would shift every step by half a row; the tiny term only undoes float32 rounding of
    # k / size, which would otherwise send some steps to row k - 1.
    return torch.floor(feature * size + 1e-3).to(torch.int64).remainder(size)
