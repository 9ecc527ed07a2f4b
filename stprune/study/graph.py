"""Graphs of series: the edges that a file or a generator knows, or the most correlated nodes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


class Edges(NamedTuple):
    """A sparse adjacency: a dense one of 8,600 nodes takes 300 MB, which most models do not need.

    Attributes:
        num_nodes: N.
        source, target: [edges] int64; an undirected edge stands there in both directions.
        weight: [edges] float32, positive.
    """

    num_nodes: int
    source: IntArray
    target: IntArray
    weight: FloatArray

    @classmethod
    def of(cls, adjacency: FloatArray) -> Edges:
        """The edges of a dense [N, N] adjacency."""
        source, target = np.nonzero(adjacency)
        return cls(len(adjacency), source, target, adjacency[source, target])

    def dense(self) -> FloatArray:
        """[N, N] float32: weight of the edge from row to column, 0 where there is none."""
        adjacency = np.zeros((self.num_nodes, self.num_nodes), np.float32)
        adjacency[self.source, self.target] = self.weight
        return adjacency

    def select(self, node: IntArray) -> Edges:
        """The edges among some different nodes, which are numbered anew in the order given."""
        number = np.full(self.num_nodes, -1)
        number[node] = np.arange(len(node))
        source, target = number[self.source], number[self.target]
        kept = (source >= 0) & (target >= 0)
        return Edges(len(node), source[kept], target[kept], self.weight[kept])


def nearest_nodes(values: Tensor, *, num_neighbours: int = 8, rows: int = 1024) -> Edges:
    """Join every node with the nodes whose values correlate most with its own.

    Args:
        values: [time, node] float32; NaN counts as the node's mean. Pass the training part only.
        num_neighbours: k, most neighbours that a node chooses; an edge is there if either end chose it.
        rows: nodes whose correlations with all others are held at a time.

    Returns:
        Undirected edges whose weight is the correlation; only positive ones are chosen. A constant node has none.

    Source: a graph of the k nearest series is usual where none is known, for instance as the prior graph of Shang et al.,
        Discrete Graph Structure Learning for Forecasting Multiple Time Series, ICLR 2021.
    """
    seen = torch.isfinite(values)
    filled = torch.where(seen, values, 0.0).double()
    centred = torch.where(seen, filled - filled.sum(0) / seen.sum(0).clamp_min(1), 0.0)
    length = centred.norm(dim=0)
    # Rounding leaves a constant node a spread of about 1e-7 of its level.
    unit = torch.where(length > 1e-6 * filled.norm(dim=0), centred / length, 0.0).float()
    num_nodes = unit.shape[1]
    found = []
    for first in range(0, num_nodes, rows):
        correlation = unit[:, first : first + rows].T @ unit
        own = first + torch.arange(len(correlation), device=values.device)
        correlation[own - first, own] = -1.0
        best, other = correlation.topk(min(num_neighbours, num_nodes - 1), dim=1)
        own = own[:, None].expand_as(other)
        pair = torch.minimum(own, other) * num_nodes + torch.maximum(own, other)
        found.append(torch.stack([pair.double(), best.double()])[:, best > 0].cpu().numpy())
    key, weight = np.concatenate(found, 1)
    # Both ends may have chosen the edge.
    key, place = np.unique(key.astype(np.int64), return_index=True)
    low, high = np.divmod(key, num_nodes)
    weight = weight[place].astype(np.float32)
    return Edges(num_nodes, np.concatenate([low, high]), np.concatenate([high, low]), np.concatenate([weight, weight]))
