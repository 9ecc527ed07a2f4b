"""What was computed beside a tensor, remembered for as long as the tensor itself is."""

from __future__ import annotations

import weakref
from typing import Any

import torch


class Remembered:
    """Values by the very tensors they were computed with; forgotten with the first of them, or once it was written to.

    Copies and other processes begin with nothing: their tensors are others.
    """

    def __init__(self) -> None:
        # id(first tensor): both tensors, their versions then, the value.
        self._kept: dict[int, tuple[weakref.ref[Any], weakref.ref[Any], tuple[int, int], torch.Tensor]] = {}

    def __reduce__(self) -> tuple[type[Remembered], tuple[()]]:
        return (Remembered, ())

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, first: torch.Tensor, second: torch.Tensor, value: torch.Tensor) -> None:
        """Remember `value` until `first` is gone; tensors of inference mode, which count no changes, are let go at once."""
        if first.is_inference() or second.is_inference():
            return
        key, kept = id(first), self._kept
        # Called while the tensor still occupies its id: no other can have taken the place.
        gone = weakref.ref(first, lambda _: kept.pop(key, None))
        kept[key] = (gone, weakref.ref(second), (first._version, second._version), value)

    def get(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor | None:
        """The value put with these two tensors, both unchanged since; None if there is none."""
        one, other, versions, value = self._kept.get(id(first), (None, None, None, None))
        if one is None or other is None or one() is not first or other() is not second:
            return None
        return value if versions == (first._version, second._version) else None
