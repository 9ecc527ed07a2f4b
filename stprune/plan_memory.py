"""PlanMemory: memory that one epoch's plan leaves to the next."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from stprune.ops.plan_budget import Buffers

LEAST = 1 << 14
"""Samples from which on memory is kept: 128 KiB of ids, where glibc begins to fetch fresh pages from the system for each
request and to give them back. Thousands of small samplers hold no more than their plans."""


class PlanMemory:
    """Memory on the host that one epoch's plan leaves to the next: fresh memory costs more than the plan itself.

    A plan that somebody reads (`reading`) or may look at for longer (`keep`) never changes: the next one gets other memory.

    Args:
        num_samples: elements of every buffer. What no plan touches takes no memory.

    Example:
        >>> from stprune.plan_memory import PlanMemory
        >>> memory = PlanMemory(100_000)
        >>> first = memory.take(50_000).indices
        >>> memory.take(50_000).indices is first
        True
        >>> with memory.reading():
        ...     memory.take(50_000).indices is first
        False
    """

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self._set: _Set | None = None

    def __reduce__(self) -> tuple[type[PlanMemory], tuple[int]]:
        # A copy, also one in another process, begins with no memory.
        return PlanMemory, (self.num_samples,)

    def keep(self) -> None:
        """Whoever looks at the last plan keeps its memory."""
        self._set = None

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """The last plan is read inside: its memory is not used again before the end."""
        held = self._set
        if held is None:
            yield
            return
        held.readers += 1
        try:
            yield
        finally:
            held.readers -= 1

    def take(self, expected: int) -> Buffers | None:
        """Buffers of `num_samples` elements, those of the last plan if nobody needs them; None under LEAST samples.

        Args:
            expected: how many samples the plan will probably keep. Memory in which a plan more than twice as large was made
                goes back to the system instead of being held for the rest of the run.
        """
        if self.num_samples < LEAST:
            return None
        last = self._set
        if last is None or last.readers > 0 or last.used > 2 * max(1, expected):
            dtypes = torch.int64, torch.float32, torch.int32
            buffers = Buffers(*(torch.empty(self.num_samples, dtype=dtype, device="cpu") for dtype in dtypes))
            last = self._set = _Set(buffers)
        return last.buffers

    def made(self, count: int) -> None:
        """Say how many samples the plan has for which buffers were taken last."""
        if self._set is not None:
            self._set.used = max(self._set.used, count)


@dataclass
class _Set:
    """Buffers, the elements that a plan has touched in them, and how many passes read them."""

    buffers: Buffers
    used: int = 0
    readers: int = 0
