"""Families that decide about windows and nodes together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

import stprune
from stprune.study.families.base import Draw, Family, require
from stprune.study.families.pruned import Pruned
from stprune.study.problem import Problem
from stprune.study.spec import Spec


class Pairs(Family):
    """Single (window, node) pairs, each once an epoch, in a uniformly random order.

    A step has batch_size x num_drawn pairs, or batch_size x num_nodes where num_drawn is 0. For models that treat nodes
    independently.
    """

    label = "Single pairs"
    kind = "both"
    source = "SGP, Cini et al., AAAI 2023 (its random pairs of time and node, without replacement here)"

    def __init__(self, spec: Spec, problem: Problem) -> None:
        super().__init__(spec, problem)
        self.sampler = stprune.PruningSampler(
            self.num_windows, num_epochs=None, method="full", seed=spec.seed, num_nodes=self.num_nodes, granularity="pair"
        )

    @classmethod
    def check_drawn(cls, spec: Spec, num_nodes: int) -> None:
        require(spec, "num_drawn", 0 <= spec.num_drawn <= num_nodes, f"in [0, {num_nodes}]")

    def draws(self) -> Iterator[Draw]:
        for epoch in itertools.count():
            self.sampler.set_epoch(epoch)
            for ids in self.sampler.batches(self.spec.batch_size * self.num_drawn):
                pair = torch.from_numpy(ids).to(self.problem.device)
                yield Draw(self.sampler.windows(pair), self.sampler.nodes(pair))


class WindowsAndNodes(Pruned):
    """ST-Prune's windows, and of each its own num_drawn nodes, uniformly."""

    label = "Windows by ST-Prune, nodes uniform"
    kind = "both"
    source = "ST-Prune, arXiv 2602.19113, with the nodes of SGP"
    drops_windows = True
    method = "st-prune"
    spatial = temporal = 0.5
    stratified = True
