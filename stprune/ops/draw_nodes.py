"""draw_nodes: which nodes of each window are kept."""

from __future__ import annotations

import torch

from stprune.ops import _check
from stprune.ops._registry import define
from stprune.reference import draw_nodes as reference

_WINDOWS = 1 << 56
_NODES = 1 << 31


def _fake(index: torch.Tensor, num_nodes: int, count: int, seed: int, epoch: int) -> torch.Tensor:
    return index.new_empty((index.shape[0], count))


define("draw_nodes(Tensor index, SymInt num_nodes, SymInt count, int seed, int epoch) -> Tensor", reference.draw_nodes, _fake)


def draw_nodes(index: torch.Tensor, *, num_nodes: int, count: int, seed: int, epoch: int) -> torch.Tensor:
    """`count` of the nodes of each window, uniformly without replacement.

    The nodes of a window are a function of (seed, epoch, window): the same on every device, rank and thread count and in
    every batch, with nothing stored. They are those with the smallest of the window's random words, ties by the smaller
    node. Costs O(num_nodes) a window.

    Args:
        index: [B] int64 window ids in [0, 2^56); not modified.
        num_nodes: how many nodes a window has, in [1, 2^31].
        count: how many of them are kept, in [1, num_nodes].
        seed: in [0, 2^63).
        epoch: in [0, 2^32).

    Returns:
        [B, count] int64, ascending and distinct in each row, on the device of `index`.

    Raises:
        TypeError: `index` is no int64 tensor, or an integer argument is none.
        ValueError: `index` is not one-dimensional or holds an id outside [0, 2^56); another argument is out of range.

    Example:
        >>> import torch, stprune
        >>> nodes = stprune.draw_nodes(torch.tensor([7, 8]), num_nodes=100, count=30, seed=0, epoch=0)
        >>> nodes.shape
        torch.Size([2, 30])
        >>> torch.equal(nodes[1:], stprune.draw_nodes(torch.tensor([8]), num_nodes=100, count=30, seed=0, epoch=0))
        True

    Source:
        Second stage of the two-stage inclusion of eq. 12, uniform: pi_(n|i) = count / num_nodes (our definition).
    """
    index = _check.index("draw_nodes", "index", index)
    num_nodes = _check.integer("draw_nodes", "num_nodes", num_nodes, 1, _NODES)
    count = _check.integer("draw_nodes", "count", count, 1, num_nodes)
    seed, epoch = _check.seed_and_epoch("draw_nodes", seed, epoch)
    index = index.contiguous()
    if index.numel():
        low, high = (int(end) for end in torch.stack(torch.aminmax(index)).tolist())
        if low < 0 or high >= _WINDOWS:
            raise ValueError(f"draw_nodes: index must lie in [0, 2^56), got {low if low < 0 else high}")
    return torch.ops.stprune.draw_nodes(index, num_nodes, count, seed, epoch)  # type: ignore[no-any-return]
