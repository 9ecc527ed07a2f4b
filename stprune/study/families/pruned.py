"""Families that train as a user of the package does: `PruningSampler` decides, `PrunedLoss` weighs and scores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

import stprune
from stprune.study.families.base import Draw, Family
from stprune.study.problem import HISTORY, HORIZON, Problem
from stprune.study.spec import Spec

NUM_STRATA = 8
ANNEAL = 0.875  # share of the run before all windows are trained on; InfoBatch's, and the default of `PruningSampler`


class Pruned(Family):
    """Windows, their nodes or both through the package's sampler and loss; by default every window, nodes uniformly.

    The run's epochs are as many as its budget is expected to pay (`num_epochs`); the last eighth of them trains on all windows.
    Where scores leave more windows out than expected, that goes on until the budget is used up.

    Attributes:
        method: name of the pruning method.
        weighs: the loss is `PrunedLoss`; the plain one otherwise.
        spatial, temporal: weights of the error's spread over nodes and over steps in the score.
        stratified: windows have strata by drift, whose shares of the weight are kept.
        schedule: of the keep ratio, as in `PruningSampler`.
        sampler, criterion: of the run.
    """

    method: ClassVar[str] = "full"
    weighs: ClassVar[bool] = True
    spatial: ClassVar[float] = 0.0
    temporal: ClassVar[float] = 0.0
    stratified: ClassVar[bool] = False
    schedule: ClassVar[str] = "step"

    def __init__(self, spec: Spec, problem: Problem) -> None:
        super().__init__(spec, problem)
        self.sampler = stprune.PruningSampler(
            self.num_windows,
            # Without an end, as it is the budget that ends the run; the schedule knows the expected one.
            num_epochs=None,
            keep_ratio=spec.keep_ratio,
            method=self.method,
            schedule=stprune.Schedule(self.schedule, num_epochs(spec, problem, self.method), spec.keep_ratio, ANNEAL),
            seed=spec.seed,
            strata=self.strata(),
            num_nodes=self.num_nodes,
            node_ratio=self.num_drawn / self.num_nodes,
            node_sampler=self.node_sampler(),
        )
        self.criterion = stprune.PrunedLoss(
            self.sampler,
            null_value=None if problem.complete else math.nan,
            spatial=self.spatial,
            temporal=self.temporal,
            rescale="epoch_sum" if self.method == "infobatch" else "per_step",
        )
        self._drawn: tuple[Tensor | None, Tensor | None] = None, None

    def strata(self) -> Tensor | None:
        """Labels of the windows by drift, where they count."""
        if not self.stratified:
            return None
        part = self.problem.split.train
        drift = stprune.stationarity(
            self.problem.values.cpu(),
            history=HISTORY,
            horizon=HORIZON,
            stride=part.stride,
            start=part.start,
            stop=part.stop,
        )
        return stprune.stratify(drift, num_strata=NUM_STRATA)

    def node_sampler(self) -> str | stprune.NodeSampler:
        """How the nodes of a window are drawn."""
        return "uniform"

    def draws(self) -> Iterator[Draw]:
        for epoch in itertools.count():
            self.sampler.set_epoch(epoch)
            for ids in self.sampler.batches(self.spec.batch_size):
                index = torch.from_numpy(ids).to(self.problem.device)
                self._drawn = self.sampler.draw_nodes(index) if self.spec.num_drawn else (None, None)
                yield Draw(index, self._drawn[0])

    def loss(self, prediction: Tensor, target: Tensor, draw: Draw) -> Tensor:
        if not self.weighs:
            return super().loss(prediction, target, draw)
        node, weight = self._drawn
        if draw.node is not node:
            weight = None  # of an earlier draw: the sampler gives the weights once more
        loss: Tensor = self.criterion(prediction, target, draw.index, draw.node, node_weight=weight)
        return loss


def num_epochs(spec: Spec, problem: Problem, method: str) -> int:
    """The smallest number of epochs whose expected pairs reach the budget.

    The first epoch of a method with scores is full. InfoBatch is expected to drop its share of the 60% of the windows whose
    score lies below the mean, SeTa to keep half of the windows at most: what both do to log-normal scores.

    Args:
        spec: of the run; its keep_ratio, num_drawn and cost are read.
        problem: the series.
        method: name of the pruning method.

    Returns:
        At least 1.
    """
    ratio = spec.keep_ratio
    kept = {"infobatch": 1 - 0.6 * (1 - ratio), "seta": min(ratio, 0.5), "full": 1.0}.get(method, ratio)
    first = 1.0 if stprune.METHODS[method]().needs_scores else kept
    full_epochs = spec.cost * problem.num_nodes / (spec.num_drawn or problem.num_nodes)
    for epochs in itertools.count(1):
        pruned = math.floor(ANNEAL * epochs)
        if (first + kept * (pruned - 1) if pruned else 0.0) + epochs - pruned >= full_epochs:
            return epochs
    raise AssertionError
