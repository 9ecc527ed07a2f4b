"""Priority: the nodes of a window by their scores, with the weights that undo the preference."""

from __future__ import annotations

from typing import Any

import torch

from stprune.exchange import exchanged
from stprune.nodes.base import Draw, NodeSampler
from stprune.nodes.pair_table import ROWS, STORAGES, PairTable
from stprune.ops import _check, keep_pairs  # noqa: F401  the op is registered

_OP = "Priority"


class Priority(NodeSampler):
    """Draws the nodes whose last error was large more often, by priority sampling, with unbiased weights.

    A pair's score is the mean over time of its absolute error, kept in a table of one entry per (window, node); the op that
    computes the loss gives it as a by-product. A node is drawn with weight floor + (1 - floor) * score / (mean known score
    of its window); a pair never scored counts as an average one. The floor bounds what a rarely drawn node can count for.

    Scores of an epoch wait until it ends, as only those of earlier epochs may decide what is drawn: 8 bytes for each drawn
    pair of a window. Every window's row of the table is read to draw its nodes: O(num_nodes) a window. On a GPU that takes
    one launch, and one more keeps a batch's scores; neither waits. The same table gives the same draw on every device.

    Args:
        storage: of the table: "float32", "bfloat16" or "int8", which take 4, 2 and 1.06 bytes a pair (see `PairTable`).
            Rounded scores change which nodes are drawn, never the unbiasedness.
        floor: in [1e-36, 1], below which float32 keys of the draw overflow; 1 draws uniformly.
        beta: weight of a pair's old score in its new one, in [0, 1).

    Raises:
        TypeError, ValueError: an argument breaks its rule.

    Example:
        >>> import torch, stprune
        >>> by_error = stprune.Priority(storage="int8")
        >>> sampler = stprune.PruningSampler(8, num_epochs=2, num_nodes=100, node_ratio=0.1, node_sampler=by_error)
        >>> index = torch.tensor([3])
        >>> node = sampler.nodes(index)
        >>> sampler.node_weights(index, node).shape
        torch.Size([1, 10])

    Source:
        Eq. 12 with priority sampling (Duffield, Lund, Thorup 2007) inside the window; our definition of the weights' floor.
    """

    name = "priority"
    unbiased = True
    weighted = True
    wants_scores = True

    def __init__(self, *, storage: str = "bfloat16", floor: float = 0.25, beta: float = 0.0) -> None:
        self.storage = _check.choice(_OP, "storage", storage, STORAGES)
        self.floor = _check.real(_OP, "floor", floor, 1e-36, 1.0)
        self.beta = _check.real(_OP, "beta", beta, 0.0, 1.0)
        if self.beta == 1.0:
            raise ValueError(f"{_OP}: beta must lie in [0, 1), got 1")

    def prepare(self) -> None:
        self.table = PairTable(self.num_windows, self.num_nodes, storage=self.storage, beta=self.beta)
        self._wait()

    def _wait(self) -> None:
        # What this epoch's batches gave: the drawn nodes, counted from 1 (0: the window was not trained on), and their scores.
        device = self.table.device
        self._node = torch.zeros(self.num_windows, self.count, dtype=torch.int32, device=device)
        self._score = torch.zeros(self.num_windows, self.count, dtype=torch.float32, device=device)
        # Windows whose scores no other rank has yet.
        self._fresh = torch.zeros(self.num_windows, dtype=torch.bool, device=device)

    def recount(self, count: int) -> None:
        """As `NodeSampler.recount`: the table is kept."""
        self.count = count
        self._wait()

    def grow(self, num_windows: int, num_nodes: int, count: int) -> None:
        """As `NodeSampler.grow`: the table and the scores that wait are kept; new pairs are unknown."""
        self._check_sizes(num_windows, num_nodes, count)
        self.table.grow(num_windows, num_nodes)
        more_windows, more_nodes = num_windows - self.num_windows, count - self.count
        # The first node of a row fills the new places, which so store its score once more.
        node, score = (torch.cat([x, x[:, :1].expand(-1, more_nodes)], 1) for x in (self._node, self._score))
        self._node, self._score = (torch.nn.functional.pad(x, (0, 0, 0, more_windows)) for x in (node, score))
        self._fresh = torch.nn.functional.pad(self._fresh, (0, more_windows))
        self.num_windows, self.num_nodes, self.count = num_windows, num_nodes, count

    def draw(self, index: torch.Tensor, epoch: int) -> Draw:
        window = index.to(self.table.device).contiguous()
        node, weights = torch.ops.stprune.draw_nodes_by_score(
            *self.table.columns, window, self.num_nodes, self.count, self.floor, self.seed, epoch
        )
        return node.to(index.device), weights.to(index.device)

    def update(self, index: torch.Tensor, node: torch.Tensor, scores: torch.Tensor) -> None:
        # A second pass over a window in one epoch changes nothing, as for the scores of samples.
        device = self.table.device
        batch = index.to(device), node.to(device), scores.detach().to(device, torch.float32)
        torch.ops.stprune.keep_pairs(*(x.contiguous() for x in batch), self._node, self._score, self._fresh)

    def advance(self) -> None:
        trained = self._trained()
        for first in range(0, trained.numel(), ROWS):
            index = trained[first : first + ROWS]
            self.table.update(index, self._node[index].long() - 1, self._score[index])
        self._node.zero_()
        self._fresh.zero_()

    def forget(self, index: torch.Tensor) -> None:
        index = index.to(self.table.device)
        self.table.forget(index)
        self._node[index] = 0
        self._fresh[index] = False

    def _trained(self) -> torch.Tensor:
        """[K] int64: the windows trained on in this epoch."""
        return (self._node[:, 0] > 0).nonzero().squeeze(1)

    def to(self, device: torch.device) -> None:
        self.table.to(device)
        self._node, self._score, self._fresh = (one.to(device) for one in (self._node, self._score, self._fresh))

    def synchronize(self, group: Any) -> None:
        # Ranks that train on one window (padding) have drawn the same nodes of it; their scores are averaged.
        fresh, columns = self._fresh, [self._node, self._score]
        for index, (node, score) in exchanged(lambda part: fresh[part], columns, group, piece=ROWS):
            self._node[index], self._score[index] = node, score
        fresh.zero_()

    def settings(self) -> dict[str, Any]:
        return {"name": self.name, "storage": self.storage, "floor": self.floor, "beta": self.beta}

    def state_dict(self) -> dict[str, Any]:
        index = self._trained()
        return {"table": self.table.state_dict(), "index": index, "node": self._node[index], "score": self._score[index]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        _check.same_keys(f"{_OP}.load_state_dict", state, ("table", "index", "node", "score"))
        self.table.load_state_dict(state["table"])
        index = state["index"].to(self.table.device)
        self._node.zero_()
        self._fresh.zero_()
        self._node[index] = state["node"].to(index.device)
        self._score[index] = state["score"].to(index.device)
        self._fresh[index] = True  # to the other ranks, where each loads a state of its own
