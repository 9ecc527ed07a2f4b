"""NodeLaw: how the nodes of a window are drawn."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch

from stprune.ops import draw_nodes

Law = TypeVar("Law", bound="NodeLaw")


class NodeLaw:
    """Base of every law: which nodes of a window are drawn, and what each counts for.

    A sampler works on its own copy (`bind`), so that one object may serve several samplers.

    Attributes:
        name: what saved states call it.
        unbiased: with `weights`, the mean over the drawn nodes has the mean over all nodes as its expectation.
        wants_scores: the law draws by the pairs' scores, which `PrunedLoss` hands in through `update`.
        num_windows, num_nodes, count, seed: set by `bind`: windows of the data set, nodes of a window, nodes drawn of each.
    """

    name = "custom"
    unbiased = False
    wants_scores = False
    num_windows = 0
    num_nodes = 0
    count = 0
    seed = 0

    def bind(self: Law, *, num_windows: int, num_nodes: int, count: int, seed: int) -> Law:
        """A copy of the law, ready for windows of these sizes.

        Raises:
            ValueError: the law's own settings do not fit the sizes.
        """
        bound = copy.copy(self)
        bound.num_windows, bound.num_nodes, bound.count, bound.seed = num_windows, num_nodes, count, seed
        bound.prepare()
        return bound

    def prepare(self) -> None:
        """Check the settings against the sizes and build what `draw` needs; called once by `bind`."""

    def draw(self, index: torch.Tensor, epoch: int) -> torch.Tensor:
        """The nodes of windows [B] int64: [B, count] int64, ascending and distinct in each row, on the device of `index`."""
        raise NotImplementedError

    def weights(self, index: torch.Tensor, node: torch.Tensor, epoch: int) -> torch.Tensor | None:
        """What each drawn node counts for, relative to an equal share: [B, count] float32, or None where all are 1.

        count / num_nodes divided by the node's inclusion probability: 1 on average, so that the mean loss over the drawn
        nodes keeps its size (eq. 12-13).
        """
        return None

    def update(self, index: torch.Tensor, node: torch.Tensor, scores: torch.Tensor) -> None:
        """Take in the scores [B, count] of pairs; only called where `wants_scores`."""

    def to(self, device: torch.device) -> None:
        """Move what the law stores."""

    def share_scores(self) -> None:
        """Called once where several ranks train: remember what is scored here, for `synchronize`."""

    def synchronize(self) -> None:
        """Exchange scores between ranks; a collective."""

    def settings(self) -> dict[str, Any]:
        """What must be the same in a saved state."""
        return {"name": self.name}

    def state_dict(self) -> dict[str, Any]:
        """What the law has learned, loadable under torch.load(weights_only=True)."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`."""


class Uniform(NodeLaw):
    """Every node with the same probability, without replacement: nothing is stored, and all weights are 1.

    Source:
        Eq. 12 with pi_(n|i) = count / num_nodes.
    """

    name = "uniform"
    unbiased = True

    def draw(self, index: torch.Tensor, epoch: int) -> torch.Tensor:
        return draw_nodes(index, num_nodes=self.num_nodes, count=self.count, seed=self.seed, epoch=epoch)
