"""Priority: the nodes of a window by their scores, with the weights that undo the preference."""

from __future__ import annotations

from typing import Any

import torch

from stprune.laws.base import NodeLaw
from stprune.laws.pair_table import STORAGES, PairTable
from stprune.laws.remembered import Remembered
from stprune.ops import _check

_OP = "Priority"


class Priority(NodeLaw):
    """Draws the nodes whose last error was large more often, by priority sampling, with unbiased weights.

    A pair's score is the mean over time of its absolute error, kept in a table of one entry per (window, node); the op that
    computes the loss gives it as a by-product. A node is drawn with weight floor + (1 - floor) * score / (mean known score
    of its window); a pair never scored counts as an average one. The floor bounds what a rarely drawn node can count for.

    Every window's row of the table must be read to draw its nodes, and is: O(num_nodes) a window. Weights come with the draw
    and are remembered as long as the drawn tensor is; asked for other tensors (a copy, a part), they are computed again.

    Args:
        storage: of the table: "float32", "bfloat16" or "int8", which take 4, 2 and 1.06 bytes a pair (see `PairTable`).
            Rounded scores change which nodes are drawn, never the unbiasedness.
        floor: in (0, 1]; 1 draws uniformly.
        beta: weight of a pair's old score in its new one, in [0, 1).

    Raises:
        TypeError, ValueError: an argument breaks its rule.

    Example:
        >>> import torch, stprune
        >>> law = stprune.Priority(storage="int8")
        >>> sampler = stprune.PruningSampler(8, num_epochs=2, num_nodes=100, node_ratio=0.1, node_law=law)
        >>> index = torch.tensor([3])
        >>> node = sampler.nodes(index)
        >>> sampler.node_weights(index, node).shape
        torch.Size([1, 10])

    Source:
        Eq. 12 with priority sampling (Duffield, Lund, Thorup 2007) inside the window; our definition of the weights' floor.
    """

    name = "priority"
    unbiased = True
    wants_scores = True

    def __init__(self, *, storage: str = "bfloat16", floor: float = 0.25, beta: float = 0.0) -> None:
        self.storage = _check.choice(_OP, "storage", storage, STORAGES)
        self.floor = _check.real(_OP, "floor", floor, 0.0, 1.0, low_open=True)
        self.beta = _check.real(_OP, "beta", beta, 0.0, 1.0)
        if self.beta == 1.0:
            raise ValueError(f"{_OP}: beta must lie in [0, 1), got 1")

    def prepare(self) -> None:
        self.table = PairTable(self.num_windows, self.num_nodes, storage=self.storage, beta=self.beta)
        self._shares = Remembered()

    def draw(self, index: torch.Tensor, epoch: int) -> torch.Tensor:
        drawn, share = self._drawn(index, epoch)
        node = drawn.to(index.device)
        if not torch.compiler.is_compiling():
            self._shares.put(node, index, share)
        return node

    def weights(self, index: torch.Tensor, node: torch.Tensor, epoch: int) -> torch.Tensor | None:
        if not torch.compiler.is_compiling():
            share = self._shares.get(node, index)
            if share is not None:
                return share.to(node.device)
        drawn, share = self._drawn(index, epoch)
        # The caller's nodes may be in another order.
        order = torch.searchsorted(drawn, node.to(drawn.device).contiguous()).clamp_max(self.count - 1)
        return share.gather(1, order).to(node.device)

    def _drawn(self, index: torch.Tensor, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Nodes and weights [B, count] of windows [B], on the table's device."""
        index = index.to(self.table.device)
        chances = self._chances(self.table.rows(index))
        # Past the door of `draw_nodes_weighted`, whose checks would wait for the device and break a compiled graph: these
        # chances are positive and finite.
        node, weights = torch.ops.stprune.draw_nodes_weighted(chances, index, self.count, self.seed, epoch)
        # Nodes of equal chances have a known inclusion probability, which is less noisy than a threshold.
        equal = chances.amin(1, keepdim=True) == chances.amax(1, keepdim=True)
        return node, torch.where(equal, self.num_nodes / self.count, weights) * (self.count / self.num_nodes)

    def _chances(self, scores: torch.Tensor) -> torch.Tensor:
        known = scores < torch.inf
        number = known.sum(1, keepdim=True).clamp_min(1)
        mean = torch.where(known, scores, 0.0).sum(1, keepdim=True) / number
        relative = torch.where(known & (mean > 0), scores / mean.clamp_min(1e-30), 1.0)
        return self.floor + (1.0 - self.floor) * relative

    def update(self, index: torch.Tensor, node: torch.Tensor, scores: torch.Tensor) -> None:
        device = self.table.device
        self.table.update(index.to(device), node.to(device), scores.detach().to(device))

    def to(self, device: torch.device) -> None:
        self.table.to(device)

    def share_scores(self) -> None:
        self.table.track_fresh()

    def synchronize(self) -> None:
        self.table.synchronize()

    def settings(self) -> dict[str, Any]:
        return {"name": self.name, "storage": self.storage, "floor": self.floor, "beta": self.beta}

    def state_dict(self) -> dict[str, Any]:
        return self.table.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.table.load_state_dict(state)
