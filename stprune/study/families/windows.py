"""Families that decide about windows and train on all their nodes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stprune.study.families.base import ORDER, Draw, Family
from stprune.study.families.pruned import Pruned
from stprune.study.problem import HISTORY, Problem
from stprune.study.spec import Spec


class Full(Family):
    """Every window with all nodes, in a fresh random order each epoch: training without pruning."""

    label = "Full training"
    kind = "all"

    def draws(self) -> Iterator[Draw]:
        for _, index in self.shuffled():
            yield Draw(index)


class RS2(Pruned):
    """A fresh part of one random permutation each epoch, so that no window returns before all had their turn."""

    label = "RS2"
    kind = "windows"
    source = "Okanovic et al., Repeated Random Sampling for Minimizing the Time-to-Accuracy, ICLR 2024"
    drops_windows = True
    method = "rs2"


class SoftRandom(Pruned):
    """A fresh uniformly random subset of the windows each epoch."""

    label = "Soft random"
    kind = "windows"
    drops_windows = True
    method = "soft-random"


class InfoBatch(Pruned):
    """Of the windows whose loss lies below the mean a random share is kept, with weights; all others are."""

    label = "InfoBatch"
    kind = "windows"
    source = "Qin et al., InfoBatch, ICLR 2024"
    drops_windows = True
    method = "infobatch"


class SeTa(Pruned):
    """A window that slides over groups of similar loss, easy to hard, of a random share of the windows."""

    label = "SeTa"
    kind = "windows"
    source = "Zhou et al., Scale Efficient Training for Large Datasets, CVPR 2025"
    drops_windows = True
    method = "seta"


class STPrune(Pruned):
    """Windows with a probability that grows with their score, weights undo it; strata by drift keep their shares."""

    label = "ST-Prune"
    kind = "windows"
    source = "ST-Prune, arXiv 2602.19113; the sampler is our definition"
    drops_windows = True
    method = "st-prune"
    spatial = temporal = 0.5
    stratified = True


class STPruneLoss(STPrune):
    """ST-Prune with the plain loss as score."""

    label = "ST-Prune, score: loss"
    spatial = temporal = 0.0


class STPruneSpatial(STPrune):
    """ST-Prune with the loss and its spread over nodes as score."""

    label = "ST-Prune, score: loss and nodes"
    temporal = 0.0


class STPruneUnstratified(STPrune):
    """ST-Prune with weights 1 / probability, without strata."""

    label = "ST-Prune, no strata"
    stratified = False


class STPruneUnweighted(STPrune):
    """ST-Prune's windows without its weights: a biased gradient."""

    label = "ST-Prune, no weights"
    stratified = False

    def loss(self, prediction: Tensor, target: Tensor, draw: Draw) -> Tensor:
        weight = self.sampler.weights_of(draw.index)
        loss: Tensor = self.criterion(prediction, target, draw.index, weight=1 / weight)
        return loss


class STPruneCosine(STPrune):
    """ST-Prune whose keep ratio rises along a cosine instead of a step."""

    label = "ST-Prune, cosine"
    schedule = "cosine"


class STPruneConstant(STPrune):
    """ST-Prune with one keep ratio to the end."""

    label = "ST-Prune, no annealing"
    schedule = "none"


class EvenWindows(Family):
    """Every window once an epoch, in batches that are spread evenly over time and over the hours of the day.

    The training part is cut into batch_size equal stretches of neighbouring windows, each of which gives one window to every
    batch. Inside a stretch windows are ordered by the hour of their first target. A batch takes the window at a share of
    that order that differs from stretch to stretch: the shares of a batch are evenly spaced, assigned to the stretches at
    random, with a random phase, all anew each epoch. Stretches shorter than a day have their hours by their places in time.
    Where the stretches are not equally long, those with one window more make the short last batch of the epoch.
    """

    label = "Evenly spread batches"
    kind = "windows"
    source = "Latin hypercube sampling, McKay, Beckman, Conover 1979, over time and hour"

    def __init__(self, spec: Spec, problem: Problem) -> None:
        super().__init__(spec, problem)
        part = problem.split.train
        hour = problem.calendar[torch.from_numpy(part.first_rows + HISTORY).to(problem.device), 0].cpu().numpy()
        count = min(spec.batch_size, self.num_windows)
        borders = self.num_windows * np.arange(count + 1) // count
        stretches = (np.arange(a, b) for a, b in itertools.pairwise(borders.tolist()))
        self.stretches: list[NDArray[np.int64]] = [ids[np.argsort(hour[ids], kind="stable")] for ids in stretches]

    def draws(self) -> Iterator[Draw]:
        for epoch in itertools.count():
            for ids in self._batches(self.random(ORDER, epoch)):
                yield Draw(torch.from_numpy(ids).to(self.problem.device))

    def _batches(self, random: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        count = len(self.stretches)
        shares = (random.permutation(count) + random.random()) / count
        shortest, longest = (extreme(map(len, self.stretches)) for extreme in (min, max))
        turns = [*random.permutation(shortest).tolist(), *range(shortest, longest)]
        for turn in turns:
            found = [
                ids[(turn + int(share * len(ids))) % len(ids)]
                for ids, share in zip(self.stretches, shares.tolist(), strict=True)
                if turn < len(ids)
            ]
            yield random.permutation(np.array(found, dtype=np.int64))
