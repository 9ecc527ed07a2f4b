"""draw_nodes, draw_nodes_weighted, draw_nodes_by_score: which nodes of each window are kept."""

from __future__ import annotations

from typing import Any

import torch

from stprune.ops import _check, _unknown
from stprune.ops._registry import by_triton, define
from stprune.reference import draw_nodes as reference

_WINDOWS = 1 << 56
_NODES = 1 << 31
# Places in a row are 32-bit numbers in the kernel.
_MOST_NODES = 1 << 30


def _fake(index: torch.Tensor, num_nodes: int, count: int, seed: int, epoch: int) -> torch.Tensor:
    return index.new_empty((index.shape[0], count))


def _weighted_fake(
    weights: torch.Tensor, index: torch.Tensor, count: int, seed: int, epoch: int
) -> tuple[torch.Tensor, torch.Tensor]:
    return index.new_empty((index.shape[0], count)), weights.new_empty((index.shape[0], count))


def _score_fake(
    values: torch.Tensor, scale: torch.Tensor, index: torch.Tensor, num_nodes: int, count: int, *others: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    return index.new_empty((index.shape[0], count)), index.new_empty((index.shape[0], count), dtype=torch.float32)


def _by_score(
    values: torch.Tensor, scale: torch.Tensor, index: torch.Tensor, *others: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    # What indexing says of a wrong id on a GPU names neither op nor argument.
    _check.ids_on_device("Priority.draw", "index", index, values.shape[0] - 1)
    return reference.draw_nodes_by_score(values, scale, index, *others)


_by_triton = by_triton("draw_nodes", reference.draw_nodes)
_weighted_by_triton = by_triton("draw_nodes_weighted", reference.draw_nodes_weighted, file="draw_nodes")
_score_by_triton = by_triton("draw_nodes_by_score", _by_score, file="draw_nodes")


# Registered for every device, as a compiled library has a uniform draw of its own for CUDA.
def _draw_nodes(index: torch.Tensor, num_nodes: int, count: int, seed: int, epoch: int) -> torch.Tensor:
    run = _by_triton if index.is_cuda and num_nodes <= _MOST_NODES else reference.draw_nodes
    return run(index, num_nodes, count, seed, epoch)


def _draw_nodes_weighted(
    weights: torch.Tensor, index: torch.Tensor, count: int, seed: int, epoch: int
) -> tuple[torch.Tensor, torch.Tensor]:
    # All nodes kept have weights of exactly 1, which the reference gives without any draw.
    fits = count < weights.shape[1] <= _MOST_NODES
    run = _weighted_by_triton if index.is_cuda and fits else reference.draw_nodes_weighted
    return run(weights, index, count, seed, epoch)


def _draw_nodes_by_score(
    values: torch.Tensor, scale: torch.Tensor, index: torch.Tensor, num_nodes: int, count: int, *others: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    run = _score_by_triton if index.is_cuda and count < num_nodes <= _MOST_NODES else _by_score
    return run(values, scale, index, num_nodes, count, *others)


define("draw_nodes(Tensor index, SymInt num_nodes, SymInt count, int seed, int epoch) -> Tensor", _draw_nodes, _fake)
define(
    "draw_nodes_weighted(Tensor weights, Tensor index, SymInt count, int seed, int epoch) -> (Tensor, Tensor)",
    _draw_nodes_weighted,
    _weighted_fake,
)
define(
    "draw_nodes_by_score(Tensor values, Tensor scale, Tensor index, SymInt num_nodes, SymInt count, float floor, int seed, "
    "int epoch) -> (Tensor, Tensor)",
    _draw_nodes_by_score,
    _score_fake,
)


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
        ValueError: `index` is not one-dimensional or holds an id outside [0, 2^56); another argument is out of range. Ids on
            a GPU are not looked at, which would wait for it: of one outside the lowest 56 bits count.

    Example:
        >>> import torch, stprune
        >>> nodes = stprune.draw_nodes(torch.tensor([7, 8]), num_nodes=100, count=30, seed=0, epoch=0)
        >>> nodes.shape
        torch.Size([2, 30])
        >>> torch.equal(nodes[1:], stprune.draw_nodes(torch.tensor([8]), num_nodes=100, count=30, seed=0, epoch=0))
        True

    Source:
        Second stage of the two-stage inclusion of eq. 12, uniform: pi_(n|i) = count / num_nodes. SGP (AAAI 2023) draws a
        node set for each window too, iTransformer (ICLR 2024) one for each batch.
    """
    index = _windows("draw_nodes", index)
    num_nodes = _check.integer("draw_nodes", "num_nodes", num_nodes, 1, _NODES)
    count = _check.integer("draw_nodes", "count", count, 1, num_nodes)
    seed, epoch = _check.seed_and_epoch("draw_nodes", seed, epoch)
    return torch.ops.stprune.draw_nodes(index, num_nodes, count, seed, epoch)  # type: ignore[no-any-return]


def draw_nodes_weighted(
    weights: torch.Tensor, index: torch.Tensor, *, count: int, seed: int, epoch: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` of the nodes of each window by priority sampling, large weights first, and what each then counts for.

    A node's key is u / w, with u from the window's random words (those of `draw_nodes`); the `count` smallest keys are
    kept, ties by the smaller node. With t the smallest key that is not kept, max(1, 1 / (t w)) is an unbiased weight: for
    any values of a window's nodes, the sum over the kept of weight times value has the sum over all as its expectation.

    Nodes of weight +inf, of which nothing is known, come first, as in `draw_weighted`: they count for 1; or, where a window has
    more than `count` of them, for their number / count, and the others of that window have no chance.

    Args:
        weights: [B, N] float32, positive; +inf: unknown; not modified. Ratios within a row matter, not the scale;
            outside [1e-36, 1e28] the float32 keys lose resolution.
        index: [B] int64 window ids in [0, 2^56), one for each row; not modified.
        count: how many nodes are kept, in [1, N].
        seed: in [0, 2^63).
        epoch: in [0, 2^32).

    Returns:
        nodes [B, count] int64, ascending and distinct in each row; weights [B, count] float32, at least 1. Both on the device
        of `weights`, the same bits on every device and for any number of threads.

    Raises:
        TypeError: `weights` is no float32 tensor, `index` no int64 tensor, or an integer argument is none.
        ValueError: a shape does not fit, a weight is not positive (for which a GPU is waited for), or an argument is out of
            range; ids as in `draw_nodes`.

    Example:
        >>> import torch, stprune
        >>> weights = torch.tensor([[1.0, 1.0, 1.0, 100.0]])
        >>> nodes, factor = stprune.draw_nodes_weighted(weights, torch.tensor([7]), count=2, seed=0, epoch=0)
        >>> 3 in nodes[0], nodes.shape
        (True, torch.Size([1, 2]))

    Source:
        Duffield, Lund, Thorup: Priority sampling for estimation of arbitrary subset sums (J. ACM 54, 2007), as the second
        stage of eq. 12.
    """
    op = "draw_nodes_weighted"
    weights = _check.tensor(op, "weights", weights).detach()
    if weights.dtype != torch.float32:
        raise TypeError(f"{op}: weights must be float32, got {weights.dtype}")
    if weights.dim() != 2:
        raise ValueError(f"{op}: weights must have the shape [batch, nodes], got {tuple(weights.shape)}")
    index = _windows(op, index)
    if weights.shape[0] != index.numel():
        raise ValueError(f"{op}: weights must have one row for each of {index.numel()} windows, got {weights.shape[0]}")
    if weights.device != index.device:
        raise ValueError(f"{op}: weights must live on index's device {index.device}, got {weights.device}")
    count = _check.integer(op, "count", count, 1, min(_NODES, weights.shape[1]))
    seed, epoch = _check.seed_and_epoch(op, seed, epoch)
    weights = weights.contiguous()
    flat = weights.view(-1)
    positive, unknown = _unknown.checked(op, "be positive", flat)
    if positive < flat.numel():
        raise ValueError(f"{op}: weights must be positive, got 0 at {int((flat <= 0).nonzero()[0])}")
    known, number = _unknown.finite(weights) if unknown else (weights, None)
    nodes, factors = torch.ops.stprune.draw_nodes_weighted(known, index, count, seed, epoch)
    if number is not None:
        _unknown.weigh(factors, number, count)
    return nodes, factors


def _windows(op: str, index: torch.Tensor) -> torch.Tensor:
    """`index` if it holds window ids, contiguous."""
    index = _check.index(op, "index", index).contiguous()
    _check.ids(op, "index", index, _WINDOWS - 1)
    return index
