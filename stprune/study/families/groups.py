"""Families that draw from groups of alike nodes, so that no group is missed by chance."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import stprune
from stprune.study.families.base import GROUPS
from stprune.study.families.pruned import Pruned
from stprune.study.problem import HISTORY, HORIZON, Problem

NUM_CLUSTERS = 8
NUM_FREQUENCIES = 3
MOST_GROUPS = 64
_HOURS = 24
_LLOYD_STEPS = 50


class NodesStratified(Pruned):
    """Of every window nodes of each cluster of daily profiles, in proportion to its size, with the weights of rounding.

    At most 8 clusters, by k-means on the mean day of every node in the training part, less its mean and by its deviation.
    """

    label = "Nodes, by cluster of daily profile"
    kind = "nodes"
    source = "stratified sampling, Cochran, Sampling Techniques; stprune.Stratified"

    def node_sampler(self) -> str | stprune.NodeSampler:
        groups = kmeans(daily_profiles(self.problem), min(NUM_CLUSTERS, self.num_drawn), self.random(GROUPS, 0))
        return stprune.Stratified(torch.from_numpy(groups))


class NodesFrequency(Pruned):
    """Of every window nodes of each group with the same 3 dominant frequencies, in proportion to its size; the plain loss.

    The idea of VarDrop, which groups by the ranked frequencies of the batch's histories and draws up to a given number a
    group. Here a history of 12 steps holds no day, so that frequencies are those of the training part's days, once for the
    run; groups give their shares of num_drawn nodes; and the rarest groups make one, so that at most 64, and at most
    num_drawn, are left.
    """

    label = "Nodes, by dominant frequencies"
    kind = "nodes"
    source = "VarDrop, Kang et al., AAAI 2025"
    weighs = False

    def node_sampler(self) -> str | stprune.NodeSampler:
        return stprune.Stratified(merge_rare(frequency_groups(self.problem), min(MOST_GROUPS, self.num_drawn)))


def daily_profiles(problem: Problem) -> NDArray[np.float64]:
    """Mean value of every node in each hour of the training part's days, normalised by node.

    Args:
        problem: the series; missing values do not count.

    Returns:
        [node, hour], mean 0 and deviation 1 for each node; 0 where nothing is known or the node is constant. As many hours
        as the day has steps where it has fewer than 24.
    """
    part, hours = problem.split.train, min(_HOURS, problem.steps_per_day)
    rows = slice(part.start, part.stop)
    hour = (problem.calendar[rows, 0].double() * hours + 1e-4).long().clamp_max(hours - 1)
    values = problem.values[rows]
    profile = torch.stack([values[hour == number].double().nanmean(0) for number in range(hours)], 1).cpu().numpy()
    known = np.isfinite(profile)
    count = np.maximum(known.sum(1, keepdims=True), 1)
    centred = np.where(known, profile - np.where(known, profile, 0).sum(1, keepdims=True) / count, 0.0)
    deviation = np.sqrt(np.square(centred).sum(1, keepdims=True) / count)
    return np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 0)


def kmeans(points: NDArray[np.float64], clusters: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Labels [n] of at most so many clusters of points [n, d]: Lloyd's steps from centres that lie far apart (k-means++)."""
    centres = points[random.integers(len(points), size=1)]
    while len(centres) < clusters:
        chance = _squared_distances(points, centres).min(1)
        if not chance.sum() > 0:
            break  # fewer distinct points than clusters
        centres = np.concatenate([centres, points[random.choice(len(points), size=1, p=chance / chance.sum())]])
    label = np.full(len(points), -1)
    for _ in range(_LLOYD_STEPS):
        nearest = _squared_distances(points, centres).argmin(1)
        if np.array_equal(nearest, label):
            break
        label = np.unique(nearest, return_inverse=True)[1]  # an empty cluster vanishes
        sums = np.zeros((label.max() + 1, points.shape[1]))
        np.add.at(sums, label, points)
        centres = sums / np.bincount(label)[:, None]
    return label


def _squared_distances(points: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n, k], from differences: products would lose what makes equal points equal."""
    found: NDArray[np.float64] = np.stack([np.square(points - centre).sum(1) for centre in centres], 1)
    return found


def frequency_groups(problem: Problem) -> Tensor:
    """[node] int64 labels: nodes with the same dominant frequencies, in the same order, have the same one.

    The amplitude of a frequency is its mean over the days of the training part (stretches of 24 steps where the day is
    shorter), each less its mean; missing values are taken for that mean.
    """
    part = problem.split.train
    length = min(max(problem.steps_per_day, HISTORY + HORIZON), part.stop - part.start)
    amplitude: Tensor | None = None
    for first in range(part.start, part.stop - length + 1, length):
        day = problem.values[first : first + length]
        size = torch.fft.rfft((day - day.nanmean(0)).nan_to_num(0.0), dim=0).abs()[1:]
        amplitude = size if amplitude is None else amplitude + size
    assert amplitude is not None
    dominant = amplitude.topk(min(NUM_FREQUENCIES, len(amplitude)), dim=0).indices
    return dominant.unique(dim=1, return_inverse=True)[1].cpu()


def merge_rare(groups: Tensor, most: int) -> Tensor:
    """The same labels, with the rarest groups made one where there are more than `most`; ties by label."""
    label, sizes = groups.unique(return_inverse=True, return_counts=True)[1:]
    rank = sizes.argsort(descending=True, stable=True).argsort()
    return rank[label].clamp_max(most - 1)
