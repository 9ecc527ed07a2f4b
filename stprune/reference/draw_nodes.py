"""Reference of the nodes drawn for a window: a function of (seed, epoch, window), nothing stored."""

from __future__ import annotations

import torch

from stprune.reference.draw_weighted import SMALLEST, priority_of
from stprune.reference.random import MASK_32, NODES, philox4x32, split_seed

# Words evaluated at a time: bounds the int64 temporaries to some 10 MB.
_WORDS_AT_ONCE = 1 << 18


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
