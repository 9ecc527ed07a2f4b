"""NodeSampler: how the nodes of a window are drawn."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch

from stprune.ops import _check, draw_nodes

Sampler = TypeVar("Sampler", bound="NodeSampler")

Draw = tuple[torch.Tensor, torch.Tensor | None]
"""Nodes [B, m] int64, and what each counts for, [B, m] float32; None where all count 1."""


class NodeSampler:
    """Base of every node sampler: which nodes of a window are drawn, and what each counts for.

    A draw is a pure function of (seed, epoch, window) and of what was learned in earlier epochs: it may be made again at any
    time of the epoch. A `PruningSampler` works on its own copy (`bind`), so that one object may serve several of them.

    Attributes:
        name: what saved states call it.
        unbiased: with its weights, the mean over the drawn nodes has the mean over all nodes as its expectation, or that over
            all observed ones (`Observed`).
        weighted: some draw has weights.
        wants_scores: it draws by the pairs' scores, which `PrunedLoss` hands in through `update`.
        fewest: nodes that must be drawn of a window at least.
        num_windows, num_nodes, count, seed: set by `bind`: windows of the data set, nodes of a window, nodes drawn of each.
    """

    name = "custom"
    unbiased = False
    weighted = False
    wants_scores = False
    fewest = 1
    num_windows = 0
    num_nodes = 0
    count = 0
    seed = 0

    def bind(self: Sampler, *, num_windows: int, num_nodes: int, count: int, seed: int) -> Sampler:
        """A copy of the sampler, ready for windows of these sizes.

        Raises:
            ValueError: the sampler's own settings do not fit the sizes.
        """
        bound = copy.copy(self)
        bound.num_windows, bound.num_nodes, bound.count, bound.seed = num_windows, num_nodes, count, seed
        bound.prepare()
        return bound

    def prepare(self) -> None:
        """Check the settings against the sizes and build what `draw` needs; called by `bind`, and anew by `grow`."""

    def grow(self, num_windows: int, num_nodes: int, count: int) -> None:
        """Serve more windows or more nodes of each from now on, in place; not in the middle of an epoch.

        Here the sampler is prepared anew for the new sizes. One that has learned something in `prepare`'s tensors keeps it by a
        method of its own, as `Priority` does; one that must be told about the new nodes takes that as a keyword, as
        `Stratified` takes `groups`. `to` may have to be called again.

        Args:
            num_windows, num_nodes, count: as in `bind`; none is less than before.

        Raises:
            TypeError, ValueError: a size is less than before, or the sampler's settings do not fit; nothing is changed.
        """
        self._grow(num_windows, num_nodes, count)

    def _grow(self, num_windows: int, num_nodes: int, count: int, **settings: Any) -> None:
        """`grow`, with attributes that are replaced before the sampler is prepared anew."""
        self._check_sizes(num_windows, num_nodes, count)
        grown = copy.copy(self)
        grown.__dict__.update(settings)
        bound = grown.bind(num_windows=num_windows, num_nodes=num_nodes, count=count, seed=self.seed)
        self.__dict__.update(bound.__dict__)

    def _check_sizes(self, num_windows: int, num_nodes: int, count: int) -> None:
        op = f"{type(self).__name__}.grow"
        _check.integer(op, "num_windows", num_windows, self.num_windows)
        _check.integer(op, "num_nodes", num_nodes, self.num_nodes)
        _check.integer(op, "count", count, self.count, num_nodes)

    def recount(self, count: int) -> None:
        """Draw so many nodes from now on, in place, between epochs; what was learned stays.

        Raises:
            ValueError: the sampler's settings do not fit the number; nothing is changed.
        """
        again = self.bind(num_windows=self.num_windows, num_nodes=self.num_nodes, count=count, seed=self.seed)
        self.__dict__.update(again.__dict__)

    def draw(self, index: torch.Tensor, epoch: int) -> Draw:
        """The nodes of windows [B] int64, and their weights.

        Returns:
            node [B, count] int64, ascending and distinct in each row, on the device of `index`; weight [B, count] float32,
            count / num_nodes divided by the node's inclusion probability, so that the mean loss over the drawn nodes keeps
            its size (eq. 12-13), or None where all are 1.
        """
        raise NotImplementedError

    def weights(self, index: torch.Tensor, node: torch.Tensor, epoch: int) -> torch.Tensor | None:
        """The weights [B, count] float32 of nodes [B, count] that `draw` gave for windows [B], in any order; None: all 1.

        Raises:
            ValueError: other nodes than those that were drawn (looked at on the CPU, outside of torch.compile).
        """
        if not self.weighted:
            return None
        drawn, weight = self.draw(index, epoch)
        if weight is None:
            return None
        own = node.to(drawn.device).contiguous()
        if own.shape != drawn.shape:
            raise ValueError(
                f"{self.name}: node must be the {tuple(drawn.shape)} nodes that were drawn, got {tuple(node.shape)}"
            )
        order = torch.searchsorted(drawn, own).clamp_max(self.count - 1)
        if node.is_cpu and not torch.compiler.is_compiling():
            foreign = drawn.gather(1, order) != own
            if bool(foreign.any()):
                raise ValueError(f"{self.name}: node must hold nodes that were drawn of its window, got {int(own[foreign][0])}")
        return weight.gather(1, order).to(node.device)

    def update(self, index: torch.Tensor, node: torch.Tensor, scores: torch.Tensor) -> None:
        """Take in the scores [B, count] of pairs, for later epochs; only called where `wants_scores`."""

    def advance(self) -> None:
        """End an epoch: what `update` took in counts from now on."""

    def forget(self, index: torch.Tensor) -> None:
        """Make what was learned of windows [B] int64 unknown: their slots hold other data from now on."""

    def to(self, device: torch.device) -> None:
        """Move what the sampler stores."""

    def synchronize(self, group: Any) -> None:
        """Give every rank of `group` what the others took in during this epoch; a collective."""

    def settings(self) -> dict[str, Any]:
        """What must be the same in a saved state: numbers, words, lists of them."""
        return {"name": self.name}

    def state_dict(self) -> dict[str, Any]:
        """What the sampler has learned, loadable under torch.load(weights_only=True)."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()` of a sampler with the same settings and sizes."""


class Uniform(NodeSampler):
    """Every node with the same probability, without replacement: nothing is stored, and all weights are 1.

    Source:
        Eq. 12 with pi_(n|i) = count / num_nodes. SGP (Cini et al., AAAI 2023) draws a node set for each window, too.
    """

    name = "uniform"
    unbiased = True

    def draw(self, index: torch.Tensor, epoch: int) -> Draw:
        return draw_nodes(index, num_nodes=self.num_nodes, count=self.count, seed=self.seed, epoch=epoch), None
