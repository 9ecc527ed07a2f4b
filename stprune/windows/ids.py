"""Whose window ids WindowLoader delivers: those of a PruningSampler, or of a plain sampler behind the same functions."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stprune.windows.starts import WindowStarts


def ids_of(op: str, sampler: Any, starts: WindowStarts, num_nodes: int) -> Any:
    """The sampler itself where it is a PruningSampler, else a `PlainIds`; decided once, here.

    Raises:
        TypeError: `sampler` is neither, nor None.
        ValueError: a PruningSampler was made for another number of windows or nodes.
    """
    ids = sampler if hasattr(sampler, "node_draw") else PlainIds(op, sampler, len(starts))
    if ids.num_windows != len(starts):
        dropped = f" ({starts.num_dropped} more lie over gaps and are left out)" if starts.num_dropped else ""
        raise ValueError(f"{op}: sampler must have {len(starts)} samples, one a window{dropped}, got {ids.num_windows}")
    if ids.draws_nodes and ids.num_nodes != num_nodes:
        raise ValueError(f"{op}: sampler must have num_nodes = {num_nodes} as the series has, got {ids.num_nodes}")
    return ids


class PlainIds:
    """Window ids of any sized iterable, or of None: all windows in order. It draws no nodes and has no state.

    Args:
        op: name for error messages.
        sampler: sized iterable of ints, or None.
        num_windows: ids must lie in [0, num_windows).

    Raises:
        TypeError: `sampler` is something else.
    """

    granularity, num_nodes, node_ratio, draws_nodes = None, None, 1.0, False

    def __init__(self, op: str, sampler: Any, num_windows: int) -> None:
        if sampler is not None and not (isinstance(sampler, Iterable) and isinstance(sampler, Sized)):
            raise TypeError(
                f"{op}: sampler must be a PruningSampler, a sized iterable of ids or None, got {type(sampler).__name__}"
            )
        self._op = op
        self._ids: Any = range(num_windows) if sampler is None else sampler
        self.num_windows = num_windows

    def __len__(self) -> int:
        return len(self._ids)

    def batches(
        self, batch_size: int, *, drop_last: bool, order: None = None, device: torch.device | None = None
    ) -> Iterator[Any]:
        """[batch_size] int64 arrays, with `device` tensors there; the last one shorter unless `drop_last`."""
        source = iter(self._ids)
        while ids := list(itertools.islice(source, batch_size)):
            if len(ids) == batch_size or not drop_last:
                # operator.index refuses floats, which an array would cut off.
                found = self._checked(np.fromiter(map(operator.index, ids), np.int64, len(ids)))
                yield found if device is None else torch.from_numpy(found).to(device, non_blocking=True)

    def _checked(self, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.num_windows:
            bad = low if low < 0 else high
            raise ValueError(f"{self._op}: sampler must yield ids in [0, {self.num_windows - 1}], got {bad}")
        return ids

    def windows(self, index: Tensor) -> Tensor:
        """The ids are windows."""
        return index

    def set_epoch(self, epoch: int) -> None:
        """Hand the epoch to a sampler that takes it."""
        if hasattr(self._ids, "set_epoch"):
            self._ids.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Empty: what a plain sampler has delivered is not what has been trained on."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the empty state only."""
        if state:
            raise ValueError(f"{self._op}.load_state_dict: state must be empty without a PruningSampler, got {sorted(state)}")
