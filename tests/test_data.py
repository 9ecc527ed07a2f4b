"""The data set that carries its sample ids: collation, subsets, copies, workers, and the defects of its predecessors."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset

from stprune.data import IndexedDataset, Series


class Squares(Dataset[tuple[torch.Tensor, int]]):
    """A map-style data set without batched access."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if not 0 <= index < self.size:
            raise IndexError(index)
        return torch.tensor([float(index), float(index) ** 2]), index % 3


class Batched(Squares):
    """The same with batched access, which it counts."""

    calls = 0

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[torch.Tensor, int]]:
        self.calls += 1
        return [super(Batched, self).__getitem__(i) for i in indices]


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


@pytest.mark.parametrize("kind", [Squares, Batched])
@pytest.mark.parametrize("context", [None, "fork", "spawn"])
def test_collated_ids_are_int64(kind: type[Squares], context: str | None) -> None:
    workers = {"num_workers": 2, "multiprocessing_context": context} if context else {}
    loader = DataLoader(IndexedDataset(kind(10)), batch_size=4, sampler=[9, 0, 3, 3, 7], **workers)
    seen = []
    for index, (x, label) in loader:
        assert index.dtype == torch.int64
        assert torch.equal(x[:, 0], index.float())
        assert torch.equal(label, index % 3)
        seen += index.tolist()
    assert seen == [9, 0, 3, 3, 7]


def test_batched_access_is_passed_on() -> None:
    data = Batched(10)
    items = IndexedDataset(data).__getitems__([3, np.int64(1), torch.tensor(-1)])  # type: ignore[list-item]
    assert [index for index, _ in items] == [3, 1, 9]
    assert [float(x[0]) for _, (x, _) in items] == [3.0, 1.0, 9.0]
    assert data.calls == 1
    list(DataLoader(IndexedDataset(data), batch_size=5))
    assert data.calls == 3


def test_short_batches_are_refused() -> None:
    class Lossy(Squares):
        def __getitems__(self, indices: Sequence[int]) -> list[Any]:
            return [self[i] for i in indices][:-1]

    with pytest.raises(ValueError, match="__getitems__ of Lossy must return 3 samples, got 2"):
        IndexedDataset(Lossy(5)).__getitems__([0, 1, 2])


def test_index_rules() -> None:
    data = Squares(10)
    indexed = IndexedDataset(data)
    assert indexed.dataset is data
    assert len(indexed) == 10
    assert indexed[-1][0] == 9
    assert type(indexed[3][0]) is int
    assert torch.equal(indexed[3][1][0], data[3][0])
    assert indexed[np.int32(4)][0] == 4
    assert type(indexed[torch.tensor(4)][0]) is int
    for bad in (10, -11):
        with pytest.raises(IndexError, match=r"index must lie in \[-10, 10\)"):
            indexed[bad]
        with pytest.raises(IndexError, match=f"got {bad}"):
            indexed.__getitems__([0, bad])
    with pytest.raises(TypeError):
        indexed[1.0]  # type: ignore[index]
    assert [index for index, _ in indexed] == list(range(10))  # type: ignore[attr-defined]


def test_large_ids_stay_exact() -> None:
    class Huge(Squares):
        def __getitem__(self, index: int) -> Any:
            return index

    # Beyond 2^24 a float32 and beyond 2^53 a float64 would round the id; beyond 2^31 an int32 would wrap.
    ids = [2**24 + 1, 2**31 + 1, 2**53 + 1]
    loader = DataLoader(IndexedDataset(Huge(2**60)), batch_size=3, sampler=ids)
    index, sample = next(iter(loader))
    assert index.tolist() == sample.tolist() == ids


@pytest.mark.parametrize("kind", [Squares, Batched])
def test_defect_16_subsets_either_way(kind: type[Squares]) -> None:
    ids = [8, 2, 5]
    outer = list(DataLoader(Subset(IndexedDataset(kind(10)), ids), batch_size=3))
    assert len(outer) == 1
    index, (x, _) = outer[0]
    assert index.tolist() == ids
    assert x[:, 0].tolist() == ids
    inner = IndexedDataset(Subset(kind(10), ids))
    assert len(inner) == 3
    index, (x, _) = next(iter(DataLoader(inner, batch_size=3)))
    assert index.tolist() == [0, 1, 2]
    assert x[:, 0].tolist() == ids
    # One sample alone is a pair of the id and the sample, never a longer tuple.
    assert [len(item) for item in (outer[0], Subset(IndexedDataset(kind(10)), ids)[0], inner[0])] == [2, 2, 2]


@pytest.mark.parametrize("kind", [Squares, Batched])
def test_defect_11_copies_pickles_and_spawn(kind: type[Squares]) -> None:
    indexed = IndexedDataset(kind(6))
    for twin in (copy.copy(indexed), copy.deepcopy(indexed), pickle.loads(pickle.dumps(indexed))):
        assert len(twin) == 6
        assert twin[4][0] == 4
    assert copy.copy(indexed).dataset is indexed.dataset
    assert copy.deepcopy(indexed).dataset is not indexed.dataset
    # An object that exists before its attributes do, as unpickling makes it, must fail plainly instead of recursing.
    with pytest.raises(AttributeError):
        _ = IndexedDataset.__new__(IndexedDataset).dataset
    with pytest.raises(AttributeError):
        _ = indexed.size  # type: ignore[attr-defined]


def test_iterable_data_sets_are_refused() -> None:
    with pytest.raises(TypeError, match="dataset must be map-style, got the iterable-style Stream"):
        IndexedDataset(Stream())
    with pytest.raises(TypeError, match="map-style with __getitem__, got generator"):
        IndexedDataset(i for i in range(3))
    with pytest.raises(TypeError, match="map-style with __len__, got Endless"):
        IndexedDataset(type("Endless", (), {"__getitem__": lambda self, i: i})())


def test_series_is_frozen_and_small_to_print() -> None:
    series = Series(values=np.zeros((4, 2, 1), np.float32), name="zeros")
    assert repr(series) == "Series('zeros', 4 times x 2 nodes x 1 channels)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        series.name = "ones"  # type: ignore[misc]
    assert series == series  # identity: comparing arrays inside == would raise
    assert series != Series(values=series.values, name="zeros")


def test_arrays_whose_samples_torch_cannot_stack_are_refused_at_construction():
    values = np.arange(24.0).reshape(4, 3, 2)
    with pytest.raises(ValueError, match=r"^IndexedDataset: dataset must have samples with strides >= 0, .*ascontiguousarray"):
        IndexedDataset(values[:, ::-1])
    index, sample = next(iter(DataLoader(IndexedDataset(values[::-1]), batch_size=4, num_workers=1)))
    assert sample[index.tolist().index(0)].tolist() == values[3].tolist()


def test_ids_of_joined_data_sets_are_those_of_the_whole():
    joined = IndexedDataset(ConcatDataset([[10, 11, 12], [20, 21]]))
    assert [joined[i] for i in range(5)] == [(0, 10), (1, 11), (2, 12), (3, 20), (4, 21)]
