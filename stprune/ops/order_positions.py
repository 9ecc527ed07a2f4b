"""order_positions: where ids stand in a counter-based order."""

from __future__ import annotations

import torch

from stprune.ops import _check
from stprune.ops._registry import define
from stprune.reference import random
from stprune.reference import shuffle as reference

define(
    "order_positions(Tensor index, SymInt n, int seed, int epoch, int stream) -> Tensor",
    reference.order_positions,
    lambda index, n, seed, epoch, stream: index.new_empty(index.shape),
)


def order_positions(index: torch.Tensor, n: int, *, seed: int, epoch: int) -> torch.Tensor:
    """Positions of ids in the order that `permute` gives: the inverse permutation, with nothing stored.

    Args:
        index: [B] int64 ids in [0, n); not modified.
        n: length of the order, at most 2^40.
        seed: in [0, 2^63).
        epoch: in [0, 2^32).

    Returns:
        [B] int64: permute(n, ...) at these positions is `index`.

    Raises:
        TypeError: `index` is not int64, or a number is none.
        ValueError: `index` is not one-dimensional, an id lies outside its range (looked at on the CPU), or a number does.

    Example:
        >>> import torch, stprune
        >>> from stprune.ops.order_positions import order_positions
        >>> order = stprune.permute(2000, 0, 2000, seed=1, epoch=2)
        >>> order_positions(order[[5, 700]], 2000, seed=1, epoch=2)
        tensor([  5, 700])

    Source:
        `stprune.shuffle`'s network run backwards; O(1) an id from 1,024 ids on.
    """
    op = "order_positions"
    index = _check.index(op, "index", index)
    n = _check.integer(op, "n", n, 0, reference.LONGEST)
    seed, epoch = _check.seed_and_epoch(op, seed, epoch)
    _check.ids(op, "index", index, n - 1)
    return torch.ops.stprune.order_positions(index.contiguous(), n, seed, epoch, random.SHUFFLE)  # type: ignore[no-any-return]
