"""A data set that hands out its sample ids, so that a loss can be credited to the sample it belongs to."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset


class IndexedDataset(Dataset[tuple[int, Any]]):
    """Yields ``(index, sample)`` in place of ``sample``; the index travels in the batch.

    The index is a Python int, which PyTorch's collate function makes an int64 tensor: no id is ever rounded. Prefetching,
    workers and reordering cannot separate a sample from its id. The id is the position in the wrapped data set:
    ``Subset(IndexedDataset(data), ids)`` yields ids of ``data``; ``IndexedDataset(Subset(data, ids))`` yields positions
    0 .. len(ids) - 1 in the subset, which is what a sampler of ``len(ids)`` samples expects. Join data sets first, then
    number them: ``IndexedDataset(ConcatDataset([a, b]))``. In ``ConcatDataset([IndexedDataset(a), IndexedDataset(b)])`` two
    samples have the id 0, and a loss is credited to the wrong one. Attributes of the wrapped data set are reached through
    ``.dataset`` only.

    Args:
        dataset: Map-style data set with ``__getitem__`` and ``__len__``, or a NumPy array of samples. Kept by reference,
            never modified.

    Raises:
        TypeError: ``dataset`` is iterable-style or lacks ``__getitem__`` or ``__len__``.
        ValueError: ``dataset`` is an array whose samples have a negative stride, which torch cannot stack.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from stprune.data import IndexedDataset
        >>> for index, sample in DataLoader(IndexedDataset([0.5, 1.5, 2.5]), batch_size=2):
        ...     print(index.tolist(), sample.tolist())
        [0, 1] [0.5, 1.5]
        [2] [2.5]

    Source:
        Our definition; the ids are the samples of eq. 5.
    """

    yields_index = True
    """What joins data sets must not stand around one of these: their ids collide."""

    def __init__(self, dataset: Any) -> None:
        kind = type(dataset).__name__
        if isinstance(dataset, IterableDataset):
            raise TypeError(f"IndexedDataset: dataset must be map-style, got the iterable-style {kind}")
        for method in ("__getitem__", "__len__"):
            if not hasattr(dataset, method):
                raise TypeError(f"IndexedDataset: dataset must be map-style with {method}, got {kind}")
        if isinstance(dataset, np.ndarray) and any(stride < 0 for stride in dataset.strides[1:]):
            raise ValueError(
                f"IndexedDataset: dataset must have samples with strides >= 0, got strides {dataset.strides}; "
                "pass numpy.ascontiguousarray(dataset)"
            )
        self.dataset = dataset

    def __len__(self) -> int:
        """Number of samples of the wrapped data set."""
        return len(self.dataset)

    def __repr__(self) -> str:
        """Name of the wrapped data set."""
        return f"IndexedDataset({self.dataset!r})"

    def __getitem__(self, index: int) -> tuple[int, Any]:
        """The sample and its id; a negative index counts from the end and comes back as the id it stands for."""
        position = self._position(index)
        return position, self.dataset[position]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[int, Any]]:
        """``[(index, sample), ...]`` in the order of ``indices``, by one call where the wrapped data set has one."""
        positions = [self._position(index) for index in indices]
        if not callable(getattr(self.dataset, "__getitems__", None)):
            return [(position, self.dataset[position]) for position in positions]
        samples = self.dataset.__getitems__(positions)
        if len(samples) != len(positions):
            raise ValueError(
                f"IndexedDataset: __getitems__ of {type(self.dataset).__name__} must return {len(positions)} samples, "
                f"got {len(samples)}"
            )
        return list(zip(positions, samples, strict=True))

    def _position(self, index: int) -> int:
        # operator.index refuses floats and turns NumPy integers and tensors into the int that collates as int64.
        position = operator.index(index)
        size = len(self.dataset)
        if not -size <= position < size:
            raise IndexError(f"IndexedDataset: index must lie in [{-size}, {size}), got {position}")
        return position if position >= 0 else position + size
