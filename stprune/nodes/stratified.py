"""Stratified: a fixed share of the nodes of every group."""

from __future__ import annotations

from typing import Any

import torch

from stprune.nodes.base import Draw, NodeSampler
from stprune.ops import _check, draw_nodes

_OP = "Stratified"


class Stratified(NodeSampler):
    """Draws from every group of nodes its share, uniformly inside the group, so that no group is missed by chance.

    The counts are proportional to the groups' sizes, by largest remainders, at least one each. Rounding makes some groups'
    nodes more likely than others'; the weights undo it.

    Args:
        groups: [num_nodes] int64 labels >= 0, such as districts, sensor kinds or the clusters of a profile; not modified.

    Raises:
        TypeError, ValueError: `groups` breaks its rule, has another length than the sampler's num_nodes, or has more
            groups than nodes are drawn.

    Example:
        >>> import torch, stprune
        >>> chosen = stprune.Stratified(torch.tensor([0, 0, 0, 0, 1, 1]))
        >>> sampler = stprune.PruningSampler(8, num_epochs=2, num_nodes=6, node_ratio=0.5, node_sampler=chosen)
        >>> (sampler.nodes(torch.tensor([0, 5])) >= 4).sum(1)
        tensor([1, 1])

    Source:
        Eq. 12 with pi_(n|i) = m_g / N_g for a node of group g; Cochran, Sampling Techniques, stratified sampling.
    """

    name = "stratified"
    unbiased = True

    def __init__(self, groups: torch.Tensor) -> None:
        self.groups = _labels(groups)

    def grow(self, num_windows: int, num_nodes: int, count: int, *, groups: torch.Tensor | None = None) -> None:
        """As `NodeSampler.grow`; `groups` [num_nodes] int64 are the labels of all nodes, needed where there are more nodes."""
        self._grow(num_windows, num_nodes, count, groups=self.groups if groups is None else _labels(groups))

    def prepare(self) -> None:
        if self.groups.numel() != self.num_nodes:
            raise ValueError(f"{_OP}: groups must have one label for each of {self.num_nodes} nodes, got {self.groups.numel()}")
        labels, label_of, sizes = torch.unique(self.groups, return_inverse=True, return_counts=True)
        if len(labels) > self.count:
            raise ValueError(
                f"{_OP}: node_ratio must draw at least one node of each of {len(labels)} groups, got {self.count} nodes"
            )
        self.fewest = len(labels)
        counts = _shares(sizes.tolist(), self.count)
        # The nodes group by group; a group's draw counts from the place of its first one.
        self._groups = list(zip(sizes.tolist(), counts, strict=True))
        self._members = label_of.sort(stable=True).indices
        self._first = (sizes.cumsum(0) - sizes).repeat_interleave(torch.tensor(counts))
        share = torch.tensor(counts, dtype=torch.float64) / sizes
        self._weight = (self.count / self.num_nodes / share[label_of]).float()
        self.weighted = not bool((self._weight == 1.0).all())

    def draw(self, index: torch.Tensor, epoch: int) -> Draw:
        parts = []
        for number, (size, count) in enumerate(self._groups):
            # A key of its own for each group: the draws of two groups are independent.
            seed = (self.seed + (number + 1) * 0x9E3779B97F4A7C15) % 2**63
            parts.append(draw_nodes(index, num_nodes=size, count=count, seed=seed, epoch=epoch))
        place = torch.cat(parts, 1) + self._first.to(index.device)
        node = self._members.to(index.device)[place].sort(dim=1).values
        return node, self.weights(index, node, epoch)

    def weights(self, index: torch.Tensor, node: torch.Tensor, epoch: int) -> torch.Tensor | None:
        return self._weight.to(node.device)[node] if self.weighted else None

    def to(self, device: torch.device) -> None:
        self._weight, self._members, self._first = (x.to(device) for x in (self._weight, self._members, self._first))

    def settings(self) -> dict[str, Any]:
        return {"name": self.name, "groups": self.groups.tolist()}


def _labels(groups: torch.Tensor) -> torch.Tensor:
    groups = _check.index(_OP, "groups", groups).detach().cpu()
    if groups.numel() and int(groups.min()) < 0:
        raise ValueError(f"{_OP}: groups must be labels >= 0, got {int(groups.min())}")
    return groups.clone()


def _shares(sizes: list[int], count: int) -> list[int]:
    """How many of each group: proportional, by largest remainders, at least 1 and at most all of it."""
    total = sum(sizes)
    exact = [size * count / total for size in sizes]
    shares = [max(1, int(share)) for share in exact]
    # Where the rule of at least one took too many, the groups furthest above their share lose one node each.
    while sum(shares) > count:
        most = max((at for at in range(len(shares)) if shares[at] > 1), key=lambda at: shares[at] - exact[at])
        shares[most] -= 1
    while sum(shares) < count:
        open_groups = (at for at in range(len(shares)) if shares[at] < sizes[at])
        least = max(open_groups, key=lambda at: exact[at] - shares[at])
        shares[least] += 1
    return shares
