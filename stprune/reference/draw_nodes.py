"""Reference of the nodes drawn for a window: a function of (seed, epoch, window), nothing stored."""

from __future__ import annotations

import torch

from stprune.reference.draw_weighted import SMALLEST, priority_of
from stprune.reference.random import MASK_32, NODES, philox4x32, split_seed

# Words evaluated at a time: bounds the int64 temporaries to some 10 MB.
_WORDS_AT_ONCE = 1 << 18

# Scores in 8 bits: nodes that share a scale, the largest level, and the level that means unknown.
SCALED_NODES = 64
LARGEST_LEVEL = 254
UNKNOWN_LEVEL = 255


def node_words(window: torch.Tensor, num_nodes: int, seed: int, epoch: int) -> torch.Tensor:
    """The word of every node in every window: [B] int64 -> [B, num_nodes] int64 in [0, 2^32)."""
    c = torch.arange(16 * -(-num_nodes // 64), dtype=torch.int64, device=window.device)
    window = window.unsqueeze(1)
    fourth = NODES | ((window >> 32) << 8) & MASK_32
    four = philox4x32((c, window & MASK_32, epoch, fourth), split_seed(seed), window.device)
    return torch.stack(four, 1).view(len(window), 4, len(c) // 16, 16).transpose(1, 2).flatten(1)[:, :num_nodes]


def draw_nodes(index: torch.Tensor, num_nodes: int, count: int, seed: int, epoch: int) -> torch.Tensor:
    """The `count` nodes of each window with the smallest words, ties to the smaller node, ascending."""
    rows = max(1, _WORDS_AT_ONCE // num_nodes)
    parts = [
        torch.sort(node_words(part, num_nodes, seed, epoch), dim=1, stable=True).indices[:, :count].sort(dim=1).values
        for part in index.split(rows)
    ]
    return torch.cat(parts) if index.numel() else index.new_empty((0, count))


def draw_nodes_weighted(
    weights: torch.Tensor, index: torch.Tensor, count: int, seed: int, epoch: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` nodes of each window with the smallest keys u / w, ties to the smaller node, ascending; their weights."""
    num_nodes = weights.shape[1]
    nodes, out = index.new_empty((len(index), count)), weights.new_ones((len(index), count))
    rows = max(1, _WORDS_AT_ONCE // num_nodes)
    for first in range(0, len(index), rows):
        part = slice(first, first + rows)
        keys = priority_of(node_words(index[part], num_nodes, seed, epoch), weights[part])
        ordered, order = torch.sort(keys, dim=1, stable=True)
        nodes[part] = order[:, :count].sort(dim=1).values
        if count < num_nodes:
            # A threshold that underflowed to zero would make the weights infinite.
            tau = 1.0 / ordered[:, count : count + 1].double().clamp(min=SMALLEST)
            out[part] = (tau / weights[part].gather(1, nodes[part]).double()).clamp(min=1.0).float()
    return nodes, out


def stored_scores(values: torch.Tensor, scale: torch.Tensor, index: torch.Tensor, num_nodes: int) -> torch.Tensor:
    """The scores of windows [B] in a table of pairs, [B, num_nodes] float32; +inf where unknown.

    Levels [W, P] uint8 are the square roots of the scores relative to scale [W, P / 64]; other values are scores.
    """
    rows = values[index]
    if values.dtype != torch.uint8:
        return rows[:, :num_nodes].float()
    share = rows.unflatten(1, (-1, SCALED_NODES)).float() / LARGEST_LEVEL
    scores = (share.square() * scale[index].unsqueeze(2)).flatten(1)
    return torch.where(rows != UNKNOWN_LEVEL, scores, torch.inf)[:, :num_nodes]


def mean_known(scores: torch.Tensor) -> torch.Tensor:
    """The mean of each row's scores below infinity, [B, 1] float32; 0 where there is none.

    Their sum is one of integers, in units of 2^-31 of the power of two above the largest, so that it has no order.
    """
    bits = torch.where(scores < torch.inf, scores, 0.0).view(torch.int32)
    exponent = (bits >> 23).clamp_min(1)
    top = exponent.amax(1, keepdim=True)
    mantissa = (bits & 0x7FFFFF) | (bits >= 1 << 23).int() << 23
    total = ((mantissa << 7) >> (top - exponent).clamp_max(31)).sum(1, keepdim=True)
    number = (scores < torch.inf).sum(1, keepdim=True).clamp_min(1)
    unit = ((top + (1023 - 157)).long() << 52).view(torch.float64)  # 2^(top - 157), from its bits
    return (total.double() * unit / number).float()


def chances_of(scores: torch.Tensor, floor: float) -> torch.Tensor:
    """floor + (1 - floor) * score / (mean known score) in each row [B, num_nodes] float32; unknown scores are average ones."""
    mean = mean_known(scores)
    relative = torch.where((scores < torch.inf) & (mean > 0), scores / mean.clamp_min(1e-30), 1.0)
    return floor + (1.0 - floor) * relative


def draw_nodes_by_score(
    values: torch.Tensor,
    scale: torch.Tensor,
    index: torch.Tensor,
    num_nodes: int,
    count: int,
    floor: float,
    seed: int,
    epoch: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`draw_nodes_weighted` with the chances of windows in a table of pairs; weights times count / num_nodes.

    Nodes of equal chances have a known inclusion probability, which is less noisy than a threshold: they weigh 1.
    """
    chances = chances_of(stored_scores(values, scale, index, num_nodes), floor)
    nodes, weights = draw_nodes_weighted(chances, index, count, seed, epoch)
    equal = (chances == chances[:, :1]).all(1, keepdim=True)
    return nodes, torch.where(equal, 1.0, weights * (count / num_nodes))
