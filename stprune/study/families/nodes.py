"""Families that train on every window with some of its nodes, drawn without looking at groups or a graph."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

import stprune
from stprune.study.families.base import NODES, Draw, Family, require
from stprune.study.families.pruned import Pruned
from stprune.study.spec import Spec


class NodesUniform(Pruned):
    """Of every window its own num_drawn nodes, uniformly, new every epoch; the plain loss."""

    label = "Nodes, uniform a window"
    kind = "nodes"
    source = "SGP, Cini et al., AAAI 2023 (its subset loader)"
    weighs = False


class NodesBatch(Family):
    """One random set of num_drawn nodes for all windows of a batch, new every step.

    The idea of iTransformer; its published code takes the first nodes of the series before it draws, and so permutes one
    fixed set. Here the set is drawn from all nodes.
    """

    label = "Nodes, one set a batch"
    kind = "nodes"
    source = "iTransformer, Liu et al., ICLR 2024, repaired"

    def draws(self) -> Iterator[Draw]:
        for step, (_, index) in enumerate(self.shuffled()):
            node = self.random(NODES, step).choice(self.num_nodes, self.num_drawn, replace=False)
            yield Draw(index, _for_each(index, node))


class NodesPartition(Family):
    """A random partition of all nodes for each batch of windows, and one optimizer step for each of its groups.

    There are round(num_nodes / num_drawn) groups, at least two, whose sizes differ by one at most. MTGNN's published code
    makes a new partition every 100 batches; here each batch has its own.
    """

    label = "Nodes, a partition"
    kind = "nodes"
    source = "MTGNN, Wu et al., KDD 2020"

    def draws(self) -> Iterator[Draw]:
        groups = max(2, round(self.num_nodes / self.num_drawn))
        for batch, (_, index) in enumerate(self.shuffled()):
            order = self.random(NODES, batch).permutation(self.num_nodes)
            for node in np.array_split(order, groups):
                yield Draw(index, _for_each(index, node))


class NodesPriority(Pruned):
    """Of every window the nodes whose last error was large more often, with weights that undo the preference."""

    label = "Nodes, by error"
    kind = "nodes"
    source = "priority sampling, Duffield, Lund, Thorup 2007; stprune.Priority"

    def node_sampler(self) -> str | stprune.NodeSampler:
        return "priority"


class NodesGrowing(Family):
    """Few nodes of every window early and more late: num_drawn / 2, num_drawn, 2 num_drawn of them, uniformly.

    The stages take a quarter, a quarter and a half of the budget of pairs. So they take half, a quarter and a quarter of
    the steps, and the run has as many steps as one that draws num_drawn nodes throughout.
    """

    label = "Nodes, few early and more late"
    kind = "nodes"

    # Share of the budget at which a stage begins, and its nodes as a multiple of num_drawn.
    stages = ((0.0, 0.5), (0.25, 1.0), (0.5, 2.0))

    @classmethod
    def check_drawn(cls, spec: Spec, num_nodes: int) -> None:
        fits = spec.num_drawn >= 2 and 2 * spec.num_drawn <= num_nodes
        require(spec, "num_drawn", fits, f"in [2, {num_nodes // 2}], as twice as many are drawn in the end")

    def draws(self) -> Iterator[Draw]:
        budget, pairs = self.spec.cost * self.problem.pairs, 0
        for epoch, index in self.shuffled():
            multiple = max(multiple for begin, multiple in self.stages if pairs >= begin * budget)
            count = int(multiple * self.num_drawn)
            pairs += len(index) * count
            seed = self.spec.seed
            yield Draw(index, stprune.draw_nodes(index, num_nodes=self.num_nodes, count=count, seed=seed, epoch=epoch))


def _for_each(index: Tensor, node: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
    """[B, m] int64: the same nodes, ascending, for each window."""
    return torch.from_numpy(np.sort(node)).to(index.device).expand(len(index), -1).contiguous()
