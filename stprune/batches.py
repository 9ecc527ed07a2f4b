"""Batches: an epoch's ids as arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from stprune.sampler import PruningSampler

CHUNK = 1 << 16
"""Ids taken from the plan at a time: 0.5 MB of int64, enough to hide the call."""


class Batches:
    """The current epoch's ids in batches; see `PruningSampler.batches`."""

    def __init__(self, sampler: PruningSampler, batch_size: int, drop_last: bool, order: Tensor | None = None) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.order = order

    def __len__(self) -> int:
        full, rest = divmod(len(self.sampler), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[np.ndarray[Any, Any]]:
        # Chunks are whole batches, so that no batch straddles two of them.
        step = max(1, CHUNK // self.batch_size) * self.batch_size
        for ids in self.sampler.chunks(step, self.order):
            for first in range(0, len(ids), self.batch_size):
                batch = ids[first : first + self.batch_size]
                if len(batch) == self.batch_size or not self.drop_last:
                    yield batch
