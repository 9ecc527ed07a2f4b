"""SeTa: a window that slides over groups of similar score."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stprune.methods.base import Method, asked_count
from stprune.ops import _check, permute


@dataclass(frozen=True, kw_only=True)
class SeTa(Method):
    """Random first stage, then a window that slides over groups of similar score, easy to hard. Biased: weights are 1.

    A random share of the samples is grouped by one-dimensional k-means on the score; the groups are ordered by mean score,
    and epoch e keeps the window of round(window * groups) groups that starts at e mod (groups - window + 1). The random
    share is min(1, keep_ratio / window), so that on average the asked ratio is kept.

    Args:
        groups: number of k-means groups, >= 1.
        window: share of the groups in the window, in (0, 1].

    Source:
        Zhou et al., "Scale Efficient Training for Large Datasets" (SeTa), CVPR 2025.
    """

    groups: int = 10
    window: float = 0.5

    name = "seta"
    weighs = False
    exact_count = False

    def __post_init__(self) -> None:
        _check.integer("SeTa", "groups", self.groups, 1)
        _check.real("SeTa", "window", self.window, 0.0, 1.0, low_open=True)

    def inclusion(self, scores: torch.Tensor, *, keep_ratio: float, seed: int, epoch: int) -> torch.Tensor:
        n = scores.numel()
        share = min(1.0, keep_ratio / self.window)
        candidates = permute(n, 0, asked_count(share, n), seed=seed, epoch=epoch).to(scores.device)
        known = candidates[torch.isfinite(scores[candidates])]
        probability = (~torch.isfinite(scores)).to(torch.float32)
        if known.numel() == 0:
            return probability
        label = kmeans_1d(scores[known], self.groups)
        num_groups = int(label.max()) + 1
        width = max(1, round(num_groups * self.window))
        start = epoch % (num_groups - width + 1)
        probability[known[(label >= start) & (label < start + width)]] = 1.0
        return probability


def kmeans_1d(values: torch.Tensor, groups: int, *, max_steps: int = 100) -> torch.Tensor:
    """Group labels of one-dimensional k-means, 0 for the group of smallest mean.

    Lloyd's algorithm on the sorted values: a group is an interval, so one step moves the cuts to the midpoints between
    group means, found with prefix sums. Starts from quantiles; empty groups vanish.

    Args:
        values: [n] floating, finite; not modified.
        groups: how many groups at most, >= 1.
        max_steps: bound on the number of Lloyd steps.

    Returns:
        [n] int64 labels, ascending with the group's mean.
    """
    ordered, position = torch.sort(values.double(), stable=True)
    n = ordered.numel()
    prefix = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    cuts = torch.linspace(0, n, groups + 1, device=values.device).long()[1:-1]
    for _ in range(max_steps):
        edges = torch.cat([cuts.new_zeros(1), cuts, cuts.new_full((1,), n)]).unique()
        means = (prefix[edges[1:]] - prefix[edges[:-1]]) / (edges[1:] - edges[:-1])
        moved = torch.searchsorted(ordered, (means[1:] + means[:-1]) / 2, right=True)
        if torch.equal(moved, cuts):
            break
        cuts = moved
    label = torch.searchsorted(cuts.unique(), torch.arange(n, device=values.device), right=True)
    # A cut at 0 or n leaves an empty group behind: number the groups that have members.
    label = label.unique(return_inverse=True)[1]
    return torch.empty_like(label).scatter_(0, position, label)
