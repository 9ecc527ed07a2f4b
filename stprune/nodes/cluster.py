"""Cluster: stretches of neighbouring nodes, so that the drawn sub-graph keeps its edges."""

from __future__ import annotations

from typing import Any

import torch

from stprune.nodes.base import Draw, NodeSampler
from stprune.ops import _check, draw_nodes

_OP = "Cluster"

RECENT = 32
"""Nodes that pull the next one beside them on the ring; 8 and all hold about as many edges in a stretch."""


class Cluster(NodeSampler):
    """Draws nodes in clusters of neighbours on a graph: for models that pass messages along its edges.

    The nodes are laid out on a ring, neighbours on the graph close together. A window's nodes are ceil(count /
    cluster_size) equal stretches of that ring, evenly spaced from a start that is uniform over the ring. So every node is
    drawn with probability count / num_nodes exactly, all weights are 1, and most edges inside a stretch survive, where a
    uniform draw of a share s of the nodes keeps about s of a drawn node's edges. Neighbours say similar things, so that
    estimates from clusters have a larger variance than those from as many uniform nodes.

    Args:
        adjacency: [num_nodes, num_nodes], dense or sparse, of any dtype: an entry that is not zero is an edge, whatever its
            direction. Not modified.
        cluster_size: nodes of a stretch, at least 1; None draws one single stretch.

    Raises:
        TypeError, ValueError: an argument breaks its rule, or the sampler has another number of nodes.

    Example:
        >>> import torch, stprune
        >>> chain = torch.diag(torch.ones(9), 1)
        >>> sampler = stprune.PruningSampler(4, num_epochs=2, num_nodes=10, node_ratio=0.4, node_sampler=stprune.Cluster(chain))
        >>> sampler.nodes(torch.arange(4)).shape
        torch.Size([4, 4])

    Source:
        Eq. 12 with pi_(n|i) = count / num_nodes; systematic sampling of clusters (Cochran, Sampling Techniques).
    """

    name = "cluster"
    unbiased = True

    def __init__(self, adjacency: torch.Tensor, *, cluster_size: int | None = None) -> None:
        self.cluster_size = None if cluster_size is None else _check.integer(_OP, "cluster_size", cluster_size, 1)
        self.ring = _ring_of(adjacency)

    def grow(self, num_windows: int, num_nodes: int, count: int, *, adjacency: torch.Tensor | None = None) -> None:
        """As `NodeSampler.grow`; `adjacency` [num_nodes, num_nodes] is that of all nodes, needed where there are more nodes."""
        self._grow(num_windows, num_nodes, count, ring=self.ring if adjacency is None else _ring_of(adjacency))

    def prepare(self) -> None:
        if self.ring.numel() != self.num_nodes:
            raise ValueError(f"{_OP}: adjacency must have one row for each of {self.num_nodes} nodes, got {self.ring.numel()}")
        size = self.count if self.cluster_size is None else min(self.cluster_size, self.count)
        clusters = -(-self.count // size)
        # Stretch j holds the counts (j * count) // clusters up to the next, and the gaps between stretches share what is left.
        at = torch.arange(self.count)
        stretch = ((at + 1) * clusters - 1) // self.count
        gaps = (self.num_nodes - self.count) * stretch // clusters
        self._offsets, self._ring = at + gaps, self.ring

    def draw(self, index: torch.Tensor, epoch: int) -> Draw:
        start = draw_nodes(index, num_nodes=self.num_nodes, count=1, seed=self.seed, epoch=epoch)
        place = (start + self._offsets.to(index.device)) % self.num_nodes
        return self._ring.to(index.device)[place].sort(dim=1).values, None

    def to(self, device: torch.device) -> None:
        self._ring, self._offsets = self._ring.to(device), self._offsets.to(device)

    def settings(self) -> dict[str, Any]:
        return {"name": self.name, "ring": self.ring.tolist(), "cluster_size": self.cluster_size}


def _ring_of(adjacency: torch.Tensor) -> torch.Tensor:
    adjacency = _check.tensor(_OP, "adjacency", adjacency).detach()
    if adjacency.dim() != 2 or adjacency.shape[0] != adjacency.shape[1]:
        raise ValueError(f"{_OP}: adjacency must be square, got shape {tuple(adjacency.shape)}")
    sparse = adjacency.cpu().to_sparse_coo().coalesce()
    return _ring(sparse.indices()[:, sparse.values() != 0], adjacency.shape[0])


def _ring(edges: torch.Tensor, num_nodes: int) -> torch.Tensor:
    """[num_nodes] int64: an order in which short and long stretches alike hold many edges.

    Greedy: next comes the node with most edges to the last RECENT ones; where none of them has an unplaced neighbour, the
    first unplaced node.
    """
    neighbours: list[set[int]] = [set() for _ in range(num_nodes)]
    for a, b in edges.t().tolist():
        if a != b:
            neighbours[a].add(b)
            neighbours[b].add(a)
    placed = [False] * num_nodes
    order: list[int] = []
    near: dict[int, int] = {}  # unplaced node -> its edges to the recent ones
    first = 0
    for _ in range(num_nodes):
        while placed[first]:
            first += 1
        node = min(near, key=lambda other: (-near[other], other)) if near else first
        near.pop(node, None)
        placed[node] = True
        order.append(node)
        for other in neighbours[node]:
            if not placed[other]:
                near[other] = near.get(other, 0) + 1
        if len(order) > RECENT:
            for other in neighbours[order[-1 - RECENT]]:
                if other in near:
                    near[other] -= 1
                    if near[other] == 0:
                        del near[other]
    return torch.tensor(order, dtype=torch.int64)
