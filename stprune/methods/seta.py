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
        candidates = permute(n, 0, asked_count(share, n), seed=seed, epoch=epoch, device=scores.device)
        # NaN stands for every unknown score: it comes last, and no bound leaves it out.
        clean = scores.nan_to_num(nan=torch.nan, posinf=torch.nan, neginf=torch.nan)
        values = clean.index_select(0, candidates)
        low, high = self._span(values.sort().values.cpu(), epoch)
        left_out = (values < low) | (values > high)
        return clean.isnan().to(torch.float32).scatter_(0, candidates, (~left_out).to(torch.float32))

    def _span(self, ordered: torch.Tensor, epoch: int) -> tuple[float, float]:
        """The least and the largest score in the epoch's window, of scores on the host, ascending, NaN last.

        On the host, as sums have other last bits on a GPU, and every step would wait for it.
        """
        ordered = ordered[: len(ordered) - int(ordered.isnan().sum())]
        if len(ordered) == 0:
            return 0.0, 0.0
        edges = group_edges(ordered, self.groups)
        num_groups = len(edges) - 1
        width = max(1, round(num_groups * self.window))
        start = epoch % (num_groups - width + 1)
        return float(ordered[edges[start]]), float(ordered[edges[start + width] - 1])


def group_edges(ordered: torch.Tensor, groups: int, *, max_steps: int = 100) -> torch.Tensor:
    """Where the groups of one-dimensional k-means begin and end.

    Lloyd's algorithm on the sorted values: a group is an interval, so one step moves the cuts to the midpoints between
    group means, found with prefix sums. Starts from quantiles; empty groups vanish, and equal values stay together.

    Args:
        ordered: [n] floating, finite, ascending; not modified.
        groups: how many groups at most, >= 1.
        max_steps: bound on the number of Lloyd steps, >= 1.

    Returns:
        [number of groups + 1] int64: group g holds the values from edge g up to edge g + 1.
    """
    ordered = ordered.double()
    n = ordered.numel()
    prefix = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    cuts = torch.linspace(0, n, groups + 1).long()[1:-1]
    for _ in range(max_steps):
        edges = torch.cat([cuts.new_zeros(1), cuts, cuts.new_full((1,), n)]).unique()
        means = (prefix[edges[1:]] - prefix[edges[:-1]]) / (edges[1:] - edges[:-1])
        moved = torch.searchsorted(ordered, (means[1:] + means[:-1]) / 2, right=True)
        if torch.equal(moved, cuts):
            break
        cuts = moved
    return torch.cat([cuts.new_zeros(1), cuts, cuts.new_full((1,), n)]).unique()
