"""Families that draw nodes along the edges of a graph."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import stprune
from stprune.study.families.base import NODES, Draw, Family, require
from stprune.study.families.pruned import Pruned
from stprune.study.problem import Problem
from stprune.study.spec import Spec

MOST_NEIGHBOURS = 32
_ROWS_AT_ONCE = 512


class NodesCluster(Pruned):
    """Of every window a stretch of nodes that are neighbours on the graph, from a random start."""

    label = "Nodes, clusters of the graph"
    kind = "nodes"
    source = "systematic sampling of clusters, Cochran, Sampling Techniques; stprune.Cluster"
    weighs = False

    @classmethod
    def check(cls, spec: Spec, problem: Problem) -> None:
        super().check(spec, problem)
        _require_graph(spec, problem)

    def node_sampler(self) -> str | stprune.NodeSampler:
        assert self.problem.adjacency is not None
        return stprune.Cluster(self.problem.adjacency)


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
        assert problem.adjacency is not None
        self.neighbours = strongest(problem.adjacency, min(MOST_NEIGHBOURS, self.num_nodes - 1))

    @classmethod
    def check(cls, spec: Spec, problem: Problem) -> None:
        super().check(spec, problem)
        _require_graph(spec, problem)

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
        named = self.neighbours.to(roots.device)[roots].transpose(1, 2).flatten(1)
        turns = torch.arange(named.shape[1], dtype=torch.int32, device=roots.device).expand(named.shape)
        turn = torch.nn.functional.pad(named.shape[1] + others.int(), (0, 1)).repeat(len(roots), 1)
        turn.scatter_reduce_(1, named, turns, "amin")
        turn.scatter_(1, roots, named.shape[1] + self.num_nodes)  # they are in already
        wanted = self.num_drawn - self.num_roots
        chosen = turn[:, : self.num_nodes].topk(wanted, dim=1, largest=False).indices
        return torch.cat([roots, chosen], 1)


def strongest(adjacency: Tensor, count: int) -> Tensor:
    """The neighbours of every node with the largest weights in either direction, strongest first.

    Args:
        adjacency: [node, node] float, not negative; the diagonal does not count. Not modified.
        count: neighbours of each node, below the number of nodes.

    Returns:
        [node, count] int64; the number of nodes, which is no node, behind the last neighbour.
    """
    num_nodes, found = len(adjacency), []
    for first in range(0, num_nodes, _ROWS_AT_ONCE):
        rows = slice(first, min(first + _ROWS_AT_ONCE, num_nodes))
        weight = torch.maximum(adjacency[rows], adjacency[:, rows].t())
        weight[torch.arange(len(weight)), torch.arange(rows.start, rows.stop)] = 0.0
        value, node = weight.topk(count, dim=1)
        found.append(torch.where(value > 0, node, num_nodes))
    return torch.cat(found)


def _require_graph(spec: Spec, problem: Problem) -> None:
    if problem.adjacency is None:
        raise ValueError(f"{spec.family}: adjacency of {problem.name} must be given, got None")
