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
        num_neighbours: k, most neighbours that a node chooses; an edge stands in both directions if either end chose it.
        rows: nodes whose correlations with all others are held at a time.

    Returns:
        Edges weighted by the correlation, which is positive; ties go to any of the equal. A constant node has none.

    Source: k nearest neighbours by correlation of the series, a usual graph where none is known (for instance in
        Wu et al., MTGNN, KDD 2020, which learns the like).
    """
    seen = torch.isfinite(values)
    count = seen.sum(0).clamp_min(1)
    centred = torch.where(seen, values, 0.0).double()
    centred = torch.where(seen, centred - centred.sum(0) / count, 0.0)
    length = centred.square().sum(0).sqrt()
    # Rounding leaves a constant node a spread of about 1e-7 of its level.
    level = torch.where(seen, values, 0.0).double().square().sum(0).sqrt()
    unit = torch.where(length > 1e-6 * level, centred / length, 0.0).float()
    num_nodes = values.shape[1]
    source, target, weight = [], [], []
    for first in range(0, num_nodes, rows):
        correlation = unit[:, first : first + rows].T @ unit
        here = torch.arange(len(correlation), device=values.device)
        correlation[here, first + here] = -torch.inf
        best = correlation.topk(min(num_neighbours, num_nodes - 1), dim=1)
        chosen = best.values > 0
        source.append((first + here)[:, None].expand_as(chosen)[chosen])
        target.append(best.indices[chosen])
        weight.append(best.values[chosen])
    one, other, size = (torch.cat(part).cpu().numpy() for part in (source, target, weight))
    pair, place = np.unique(np.concatenate([one * num_nodes + other, other * num_nodes + one]), return_index=True)
    return Edges(num_nodes, pair // num_nodes, pair % num_nodes, np.concatenate([size, size])[place])
