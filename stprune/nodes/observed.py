"""Observed: only nodes that were observed, for rasters with holes and sensors that come and go."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch

from stprune.nodes.base import Draw, NodeSampler
from stprune.ops import _check, draw_nodes

_OP = "Observed"

Mask = torch.Tensor | Callable[[torch.Tensor], torch.Tensor]

ROWS = 1 << 10
"""Windows whose observed nodes are counted at a time."""

_HOLE = 2.0**-40
"""Chance of an unobserved node beside 1 of an observed one: its key u / chance is above 1 for every random u >= 2^-33, and an
observed one's is not, so that it comes after all of them."""


class Observed(NodeSampler):
    """Draws nodes uniformly among those that were observed in the window, and none of its holes.

    A window with more observed nodes counts for more in a masked loss, and does so here: with N_i observed nodes of window i,
    of which m_i = min(m, N_i) are drawn, a drawn node has the weight c N_i / m_i, where c = (sum of m_i) / (sum of N_i) over
    all windows makes the mean weight 1. So the loss estimates the mean over all observed pairs of the data set, which is the
    masked loss of all windows and nodes in one batch. It is unbiased where every window has at least m observed nodes that
    are observed at every step; else its denominator depends on the batch, as that of every masked loss does.

    A window with fewer than m observed nodes gets all of them, and is filled with unobserved ones, distinct and of weight 0,
    since every window of a batch has m nodes. Their targets must be missing for the loss (by `null_value=` or `mask=`), as
    those of every hole: entries that are not are counted. A window without observed nodes adds nothing.

    A mask of nodes costs what "uniform" does. Other masks cost about what "priority" does, O(num_nodes) a window. A mask of
    windows is kept with one bit for a node: num_windows * num_nodes / 8 bytes.

    Args:
        mask: which nodes are observed, True where. [num_nodes] bool for all windows alike; [num_windows, num_nodes] bool; or,
            for masks too large to hold, a function of window ids [B] int64 on the host that returns [B, num_nodes] bool, always
            the same for a window. It is asked for every window once when a `PruningSampler` is made or grows, and then for
            the windows of each batch, also from a loader's threads.

    Raises:
        TypeError, ValueError: `mask` breaks its rule, or has other sizes than the sampler.

    Example:
        >>> import torch, stprune
        >>> observed = torch.tensor([True, False, True, True, False, True])
        >>> sampler = stprune.PruningSampler(
        ...     8, num_epochs=2, num_nodes=6, node_ratio=0.5, node_sampler=stprune.Observed(observed)
        ... )
        >>> bool(observed[sampler.nodes(torch.arange(8))].all())
        True

    Source:
        Eq. 12 with pi_(n|i) = m_i / N_i for the observed nodes; methods/README.md states what is estimated.
    """

    name = "observed"
    unbiased = True

    _function: Callable[[torch.Tensor], torch.Tensor] | None
    _rows: torch.Tensor | None
    _shape: tuple[int, ...]

    def __init__(self, mask: Mask) -> None:
        self._function = self._rows = None
        if not isinstance(mask, torch.Tensor):
            if not callable(mask):
                raise TypeError(f"{_OP}: mask must be a tensor or a function of window ids, got {type(mask).__name__}")
            self._function, self._shape, self._digest = mask, (), "function"
            return
        if mask.dtype != torch.bool:
            raise TypeError(f"{_OP}: mask must be bool, got {mask.dtype}")
        if mask.dim() not in (1, 2):
            raise ValueError(f"{_OP}: mask must be [num_nodes] or [num_windows, num_nodes], got shape {tuple(mask.shape)}")
        self._shape = tuple(mask.shape)
        rows = mask.detach() if mask.dim() == 2 else mask.detach().unsqueeze(0)
        self._rows = torch.cat([_packed(part) for part in rows.split(ROWS)])
        self._digest = hashlib.sha256(self._rows.cpu().numpy().tobytes()).hexdigest()[:16]

    def prepare(self) -> None:
        nodes, windows = self.num_nodes, self.num_windows
        if self._shape not in ((), (nodes,), (windows, nodes)):
            raise ValueError(f"{_OP}: mask must have the shape ({nodes},) or ({windows}, {nodes}), got {self._shape}")
        # With a mask for all windows alike, one window says it all.
        different = 1 if len(self._shape) == 1 else windows
        parts = [self._mask(torch.arange(at, min(at + ROWS, different))).sum(1) for at in range(0, different, ROWS)]
        observed = torch.cat([part.cpu() for part in parts]) if parts else torch.zeros(1, dtype=torch.int64)
        drawn = observed.clamp_max(self.count)
        self._size = int(drawn.sum()) / max(1, int(observed.sum()))
        # All weights are 1 where all windows have the same number, and enough.
        self.weighted = bool((observed != observed[0]).any()) or int(observed[0]) < self.count
        everywhere = self._rows is not None and len(self._shape) == 1 and not self.weighted
        self._nodes = self._mask(torch.zeros(1, dtype=torch.int64))[0].nonzero().squeeze(1) if everywhere else None

    def grow(self, num_windows: int, num_nodes: int, count: int, *, mask: Mask | None = None) -> None:
        """As `NodeSampler.grow`; `mask` is that of all windows and nodes, needed unless the present one fits the new sizes."""
        self._grow(num_windows, num_nodes, count, **({} if mask is None else vars(Observed(mask))))

    def _mask(self, index: torch.Tensor) -> torch.Tensor:
        """[B, num_nodes] bool, which nodes of windows [B] were observed, on their device."""
        if self._rows is None:
            assert self._function is not None
            mask = self._function(index.cpu())
            if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or mask.shape != (len(index), self.num_nodes):
                got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, torch.Tensor) else type(mask).__name__
                raise ValueError(f"{_OP}: mask(index) must be bool of shape ({len(index)}, {self.num_nodes}), got {got}")
            return mask.to(index.device)
        if index.is_cuda and len(self._shape) == 2:
            _check.ids_on_device(f"{_OP}.draw", "index", index, self.num_windows - 1)
        at = index if len(self._shape) == 2 else torch.zeros_like(index)
        return _unpacked(self._rows.to(index.device)[at])[:, : self.num_nodes]

    def draw(self, index: torch.Tensor, epoch: int) -> Draw:
        if self._nodes is not None:
            drawn = draw_nodes(index, num_nodes=len(self._nodes), count=self.count, seed=self.seed, epoch=epoch)
            return self._nodes.to(index.device)[drawn], None
        mask = self._mask(index)
        chances = mask.float().clamp_min(_HOLE).contiguous()
        # The op directly, without checks that would wait for the device.
        node = torch.ops.stprune.draw_nodes_weighted(chances, index.contiguous(), self.count, self.seed, epoch)[0]
        return node, self._weights(mask, node)

    def weights(self, index: torch.Tensor, node: torch.Tensor, epoch: int) -> torch.Tensor | None:
        return self._weights(self._mask(index.to(node.device)), node) if self.weighted else None

    def _weights(self, mask: torch.Tensor, node: torch.Tensor) -> torch.Tensor | None:
        if not self.weighted:
            return None
        observed = mask.sum(1, keepdim=True)
        weight = observed / observed.clamp(1, self.count) * self._size
        return torch.where(mask.gather(1, node), weight, 0.0).float()

    def to(self, device: torch.device) -> None:
        self._rows, self._nodes = (None if held is None else held.to(device) for held in (self._rows, self._nodes))

    def settings(self) -> dict[str, Any]:
        return {"name": self.name, "mask": self._digest}


def _packed(mask: torch.Tensor) -> torch.Tensor:
    """[R, N] bool as [R, ceil(N / 8)] uint8."""
    bits = torch.nn.functional.pad(mask.to(torch.uint8), (0, -mask.shape[1] % 8)).unflatten(1, (-1, 8))
    return (bits << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(2, dtype=torch.uint8)


def _unpacked(rows: torch.Tensor) -> torch.Tensor:
    """The [R, 8 * bytes] bool of `_packed`."""
    places = torch.arange(8, dtype=torch.uint8, device=rows.device)
    return ((rows.unsqueeze(2) >> places) & 1).bool().flatten(1)
