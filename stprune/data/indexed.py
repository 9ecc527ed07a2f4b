"""Sample ids inside of samples and batches, so that a loss can be credited to the sample it belongs to."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, default_collate


class IndexedDataset(Dataset[Any]):
    """Yields ``(index, sample)`` in place of ``sample``; the index travels in the batch.

    Samples that are mappings may hold the index themselves: with ``key`` a sample is a copy of the mapping with the index
    under that key, and batches stay what the loop and its collate function know. Collate functions that cannot take a pair,
    and batches that are objects, are served by ``indexed``.

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
        key: None, or the key under which a sample that is a mapping gets its index.

    Raises:
        TypeError: ``dataset`` is iterable-style or lacks ``__getitem__`` or ``__len__``; ``key`` is no string; at an access:
            ``key`` is given, but the sample is no mapping.
        ValueError: ``dataset`` is an array whose samples have a negative stride, which torch cannot stack; at an
            access: the sample has the key already.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from stprune.data import IndexedDataset
        >>> for index, sample in DataLoader(IndexedDataset([0.5, 1.5, 2.5]), batch_size=2):
        ...     print(index.tolist(), sample.tolist())
        [0, 1] [0.5, 1.5]
        [2] [2.5]
        >>> IndexedDataset([{"x": 0.5}, {"x": 1.5}], key="index")[1]
        {'x': 1.5, 'index': 1}

    Source:
        Our definition; the ids are the samples of eq. 5.
    """

    yields_index = True
    """What joins data sets must not stand around one of these: their ids collide."""

    def __init__(self, dataset: Any, key: str | None = None) -> None:
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
        self.key = _checked_key("IndexedDataset", key)

    def __len__(self) -> int:
        """Number of samples of the wrapped data set."""
        return len(self.dataset)

    def __repr__(self) -> str:
        """Name of the wrapped data set."""
        return f"IndexedDataset({self.dataset!r}{'' if self.key is None else f', key={self.key!r}'})"

    def __getitem__(self, index: int) -> Any:
        """The sample and its id; a negative index counts from the end and comes back as the id it stands for."""
        position = self._position(index)
        return self._named(position, self.dataset[position])

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """``[self[index], ...]`` in the order of ``indices``, by one call where the wrapped data set has one."""
        positions = [self._position(index) for index in indices]
        if not callable(getattr(self.dataset, "__getitems__", None)):
            return [self._named(position, self.dataset[position]) for position in positions]
        samples = self.dataset.__getitems__(positions)
        if len(samples) != len(positions):
            raise ValueError(
                f"IndexedDataset: __getitems__ of {type(self.dataset).__name__} must return {len(positions)} samples, "
                f"got {len(samples)}"
            )
        return list(map(self._named, positions, samples))

    def _named(self, position: int, sample: Any) -> Any:
        if self.key is None:
            return position, sample
        if not isinstance(sample, Mapping):
            raise TypeError(
                f"IndexedDataset: samples must be mappings to hold the key {self.key!r}, got {type(sample).__name__}; "
                "stprune.indexed(collate_fn, key=...) puts the index into the batch instead"
            )
        return _with_key("IndexedDataset", "sample", sample, self.key, position)

    def _position(self, index: int) -> int:
        # operator.index refuses floats and turns NumPy integers and tensors into the int that collates as int64.
        position = operator.index(index)
        size = len(self.dataset)
        if not -size <= position < size:
            raise IndexError(f"IndexedDataset: index must lie in [{-size}, {size}), got {position}")
        return position if position >= 0 else position + size


class _Indexed:
    """What `indexed` returns: an object, so that workers of any start method get it."""

    def __init__(self, collate_fn: Callable[[list[Any]], Any], key: str | None) -> None:
        self.collate_fn = collate_fn
        self.key = key

    def __repr__(self) -> str:
        return f"indexed({self.collate_fn!r}, key={self.key!r})"

    def __call__(self, items: Sequence[Any]) -> Any:
        for item in items:
            if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], int)):
                raise TypeError(
                    f"indexed: items must be the (index, sample) of an IndexedDataset without key, got {type(item).__name__}"
                )
        index = torch.tensor([position for position, _ in items], dtype=torch.int64)
        batch = self.collate_fn([sample for _, sample in items])
        if self.key is None:
            return index, batch
        if not (hasattr(batch, "keys") and hasattr(batch, "__setitem__")):
            raise TypeError(
                f"indexed: collate_fn must return a mapping to hold the key {self.key!r}, got {type(batch).__name__}"
            )
        return _with_key("indexed", "batch", batch, self.key, index)


def indexed(collate_fn: Callable[[list[Any]], Any] = default_collate, *, key: str | None = None) -> Callable[[Any], Any]:
    """A collate function for the samples of an `IndexedDataset`, made of one that knows nothing of ids.

    The ids are inside of what the loader yields, never beside it: they pass through workers, pinned memory, wrappers that
    move batches to a device, and loaders that look ahead, together with their samples.

    Args:
        collate_fn: takes a list of the wrapped data set's samples and returns a batch.
        key: None, or the key under which a batch gets the ids. The batch is a mapping, or an object with `keys` and
            `__setitem__` such as a batch of PyTorch Geometric; a shallow copy of it is changed. In PyTorch Geometric a key
            with "index" or "batch" in it means positions of nodes: take another, such as "sample".

    Returns:
        A function of a list of (index, sample). Without key it returns (index [B] int64, batch); else the batch.

    Raises:
        TypeError: `collate_fn` cannot be called or `key` is no string; in a call: the items are not an IndexedDataset's, or
            the batch cannot hold a key.
        ValueError: in a call: the batch has the key already.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> import stprune
        >>> def total(samples):
        ...     return {"total": sum(samples)}
        >>> data = stprune.IndexedDataset([0.5, 1.5, 2.5])
        >>> next(iter(DataLoader(data, batch_size=3, collate_fn=stprune.indexed(total, key="index"))))
        {'total': 4.5, 'index': tensor([0, 1, 2])}
    """
    if not callable(collate_fn):
        raise TypeError(f"indexed: collate_fn must be a function, got {type(collate_fn).__name__}")
    return _Indexed(collate_fn, _checked_key("indexed", key))


def _checked_key(op: str, key: Any) -> str | None:
    if key is not None and not isinstance(key, str):
        raise TypeError(f"{op}: key must be a string, got {key!r}")
    return key


def _with_key(op: str, what: str, mapping: Any, key: str, value: Any) -> Any:
    """A shallow copy of a mapping with one more entry."""
    if key in mapping.keys():  # noqa: SIM118  not every batch that has keys knows `in`
        raise ValueError(f"{op}: key must be new in the {what}, got {key!r}, which it has; choose another")
    copied = copy.copy(mapping) if hasattr(mapping, "__setitem__") else dict(mapping)
    copied[key] = value
    return copied
