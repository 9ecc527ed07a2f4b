"""PairTable: the latest score of every (window, node) pair, in 4, 2 or about 1 byte."""

from __future__ import annotations

from typing import Any

import torch

from stprune.ops import _check
from stprune.reference.draw_nodes import LARGEST_LEVEL, SCALED_NODES, UNKNOWN_LEVEL, stored_scores

_OP = "PairTable"
STORAGES = ("float32", "bfloat16", "int8")
ROWS = 1 << 14
"""Windows worked on at a time where a whole table is: a few hundred MB of temporaries with 8,600 nodes."""


class PairTable:
    """The latest score of every pair; +inf where none is known.

    Args:
        num_windows, num_nodes: sizes of the table.
        storage: "float32" (4 bytes a pair); "bfloat16" (2 bytes, scores to 3 digits); "int8" (1 byte and 1/16 for the scales:
            the square root of the score relative to the largest of its block of 64 nodes, in 255 steps). In "int8" a score v
            in a block with largest score s is off by at most sqrt(v s) / 254 after it was stored, and again by as much
            each time the block's largest score changes.
        beta: weight of the old score, in [0, 1).

    Scores that are NaN, infinite or negative are kept as unknown.
    """

    def __init__(self, num_windows: int, num_nodes: int, *, storage: str = "bfloat16", beta: float = 0.0) -> None:
        self.num_windows, self.num_nodes = num_windows, num_nodes
        self.storage = _check.choice(_OP, "storage", storage, STORAGES)
        self.beta = beta
        if storage == "int8":
            blocks = -(-num_nodes // SCALED_NODES)
            # Whole blocks: those past the last node stay unknown.
            self._values = torch.full((num_windows, blocks * SCALED_NODES), UNKNOWN_LEVEL, dtype=torch.uint8)
            self._scale = torch.zeros(num_windows, blocks)
        else:
            self._values = torch.full((num_windows, num_nodes), torch.inf, dtype=getattr(torch, storage))
            self._scale = torch.empty(0)

    @property
    def nbytes(self) -> int:
        """Bytes of the table."""
        return self._values.nbytes + self._scale.nbytes

    @property
    def columns(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What is stored: values and scales, as `draw_nodes_by_score` takes them."""
        return self._values, self._scale

    @property
    def device(self) -> torch.device:
        """Where the table lives."""
        return self._values.device

    def to(self, device: torch.device) -> None:
        """Move the table."""
        self._values, self._scale = self._values.to(device), self._scale.to(device)

    def grow(self, num_windows: int, num_nodes: int) -> None:
        """Make room for more windows and nodes; the new pairs are unknown. Both tables are in memory for a moment."""
        grown = PairTable(num_windows, num_nodes, storage=self.storage, beta=self.beta)
        grown.to(self.device)
        for mine, larger in ((self._values, grown._values), (self._scale, grown._scale)):
            if larger.numel():
                larger[: mine.shape[0], : mine.shape[1]] = mine
        self.__dict__.update(grown.__dict__)

    def forget(self, index: torch.Tensor) -> None:
        """Make all pairs of windows [B] int64 unknown."""
        self._store(index, torch.full((index.numel(), self.num_nodes), torch.inf, device=self.device))

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """The scores of windows [B] int64: [B, num_nodes] float32, +inf where unknown."""
        return stored_scores(*self.columns, index, self.num_nodes)

    def update(self, index: torch.Tensor, node: torch.Tensor, scores: torch.Tensor) -> None:
        """Take in the scores [B, m] of the pairs (index [B], node [B, m]), all on the table's device.

        The windows of a batch must be distinct, or the last one's scores win.
        """
        scores = torch.where((scores >= 0) & (scores < torch.inf), scores.float(), torch.inf)
        rows = self.rows(index)
        old = rows.gather(1, node)
        mixed = self.beta * old + (1.0 - self.beta) * scores
        new = torch.where((old < torch.inf) & (scores < torch.inf), mixed, scores)
        if self.storage == "int8":
            self._store(index, rows.scatter(1, node, new))
        else:
            self._values[index.unsqueeze(1), node] = new.to(self._values.dtype)

    def _store(self, index: torch.Tensor, rows: torch.Tensor) -> None:
        if self.storage != "int8":
            self._values[index] = rows.to(self._values.dtype)
            return
        rows = torch.nn.functional.pad(rows, (0, self._values.shape[1] - self.num_nodes), value=torch.inf)
        rows = rows.view(len(index), -1, SCALED_NODES)
        known = rows < torch.inf
        scale = torch.where(known, rows, 0.0).amax(2)
        share = rows / torch.where(scale > 0, scale, 1.0).unsqueeze(2)
        level = (torch.where(known, share, 0.0).sqrt() * LARGEST_LEVEL).round()
        self._values[index] = torch.where(known, level, UNKNOWN_LEVEL).to(torch.uint8).flatten(1)
        self._scale[index] = scale

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything."""
        return {"storage": self.storage, "values": self._values.clone(), "scale": self._scale.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`; the table keeps its device."""
        self._values.copy_(state["values"])
        self._scale.copy_(state["scale"])
