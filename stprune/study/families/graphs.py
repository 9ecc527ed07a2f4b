"""Families that draw nodes along the edges of a graph."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

import stprune
from stprune.study.families.base import NODES, Draw, Family, require
from stprune.study.families.pruned import Pruned
from stprune.study.graph import Edges
from stprune.study.problem import Problem
from stprune.study.spec import Spec

MOST_NEIGHBOURS = 32


class NodesCluster(Pruned):
    """Of every window a stretch of nodes that are neighbours on the graph, from a random start."""

    label = "Nodes, clusters of the graph"
    kind = "nodes"
    source = "systematic sampling of clusters, Cochran, Sampling Techniques; stprune.Cluster"
    weighs = False

    def node_sampler(self) -> str | stprune.NodeSampler:
        graph = self.problem.graph
        place = torch.from_numpy(np.stack([graph.source, graph.target]))
        shape = graph.num_nodes, graph.num_nodes
        return stprune.Cluster(torch.sparse_coo_tensor(place, torch.from_numpy(graph.weight), shape, check_invariants=True))


class NodesRoots(Family):
    """Of every window num_drawn // 4 roots (at least one), uniformly, and their neighbours; the loss is that of the roots.

    The neighbours fill the num_drawn nodes up: first the strongest neighbour of each root in turn, then the second strongest of
    each, and so on; one that is in already is passed over. An edge counts in either direction, with its larger weight. Where
    the 32 strongest of every root are too few, random nodes fill the rest.
    """

    label = "Nodes, roots and neighbours"
    kind = "nodes"
    source = "SGP, Cini et al., AAAI 2023 (its subgraph loader: roots and k hops)"

    def __init__(self, spec: Spec, problem: Problem) -> None:
        super().__init__(spec, problem)
        self.num_roots = max(1, self.num_drawn // 4)
        self.neighbours = strongest(problem.graph, min(MOST_NEIGHBOURS, self.num_nodes - 1)).to(problem.device)

    @classmethod
    def check_drawn(cls, spec: Spec, num_nodes: int) -> None:
        require(spec, "num_drawn", 2 <= spec.num_drawn < num_nodes, f"in [2, {num_nodes}): a root and a neighbour")

    def draws(self) -> Iterator[Draw]:
        for step, (epoch, index) in enumerate(self.shuffled()):
            roots = stprune.draw_nodes(index, num_nodes=self.num_nodes, count=self.num_roots, seed=self.spec.seed, epoch=epoch)
            random = self.random(NODES, step)
            # Roots come in ascending order; whose turn is first, is left to chance.
            roots = roots[:, torch.from_numpy(random.permutation(self.num_roots)).to(roots.device)]
            others = torch.from_numpy(random.permutation(self.num_nodes)).to(roots.device)
            yield Draw(index, self.fill(roots, others), self.num_roots)

    def fill(self, roots: Tensor, others: Tensor) -> Tensor:
        """Roots [B, R] and behind them their neighbours, [B, num_drawn]; `others` [N] are the ranks of the nodes that fill."""
        # Every node's turn: that of the first root and rank that name it, or behind all of these. Column N is nobody.
        named = self.neighbours[roots].transpose(1, 2).flatten(1)
        turns = torch.arange(named.shape[1], dtype=torch.int32, device=roots.device).expand(named.shape)
        turn = torch.nn.functional.pad(named.shape[1] + others.int(), (0, 1)).repeat(len(roots), 1)
        turn.scatter_reduce_(1, named, turns, "amin")
        turn.scatter_(1, roots, named.shape[1] + self.num_nodes)  # they are in already
        wanted = self.num_drawn - self.num_roots
        chosen = turn[:, : self.num_nodes].topk(wanted, dim=1, largest=False).indices
        return torch.cat([roots, chosen], 1)


def strongest(graph: Edges, count: int) -> Tensor:
    """The neighbours of every node with the largest weights in either direction, strongest first.

    Args:
        graph: edges; one from a node to itself does not count.
        count: neighbours of each node.

    Returns:
        [node, count] int64; the number of nodes, which is no node, behind the last neighbour. Ties by the smaller node.
    """
    table = np.full((graph.num_nodes, count), graph.num_nodes)
    source, target = np.concatenate([graph.source, graph.target]), np.concatenate([graph.target, graph.source])
    weight = np.concatenate([graph.weight, graph.weight])
    order = np.lexsort([-weight, target, source])
    source, target, weight = source[order], target[order], weight[order]
    # Of two edges between the same nodes the heavier one comes first, and stays.
    kept = np.append(True, (source[1:] != source[:-1]) | (target[1:] != target[:-1]))[: len(source)] & (source != target)
    source, target, weight = source[kept], target[kept], weight[kept]
    order = np.lexsort([target, -weight, source])
    source, target = source[order], target[order]
    rank = np.arange(len(source)) - np.searchsorted(source, source)
    kept = rank < count
    table[source[kept], rank[kept]] = target[kept]
    return torch.from_numpy(table)
