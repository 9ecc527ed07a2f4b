"""Ids inside of samples and batches of any kind: `IndexedDataset(key=)` and `indexed`."""

import collections
import pickle
import types

import pytest
import torch
from torch.utils.data import DataLoader, default_collate

import stprune

MAPPINGS = [{"x": torch.tensor(float(i)), "y": i % 3} for i in range(10)]
NUMBERS = [float(i) for i in range(10)]


class Held(collections.UserDict):
    """A batch as tokenizers make them: a mapping with a type and functions of its own."""

    def to(self, device):
        return Held({name: value.to(device) for name, value in self.items()})


class Graphs:
    """A batch as graph libraries make them: no mapping, but with keys that can be set."""

    def __init__(self, samples):
        self._store = {"x": torch.tensor(samples)}

    def keys(self):
        return list(self._store)

    def __setitem__(self, key, value):
        self._store = {**self._store, key: value}

    def __getitem__(self, key):
        return self._store[key]


def stacked(samples):
    """A collate function of one's own, which cannot take (index, sample)."""
    return {"x": torch.stack([sample["x"] for sample in samples])}


def held(samples):
    return Held(stacked(samples))


def check(loader, parts, count=10):
    """Every batch has the ids of its samples, whose value is their id."""
    seen = []
    for batch in loader:
        index, x = parts(batch)
        assert index.dtype == torch.int64
        assert torch.equal(index.float(), x.float())
        seen += index.tolist()
    assert sorted(seen) == list(range(count))


BATCHES = {
    "mapping samples": (stprune.IndexedDataset(MAPPINGS, key="index"), None, lambda b: (b["index"], b["x"])),
    "own collate": (stprune.IndexedDataset(MAPPINGS), stprune.indexed(stacked), lambda b: (b[0], b[1]["x"])),
    "key in a mapping": (
        stprune.IndexedDataset(MAPPINGS),
        stprune.indexed(stacked, key="index"),
        lambda b: (b["index"], b["x"]),
    ),
    "key in a batch with a type": (
        stprune.IndexedDataset(MAPPINGS),
        stprune.indexed(held, key="ids"),
        lambda b: (b.to("cpu")["ids"], b["x"]),
    ),
    "key in an object": (stprune.IndexedDataset(NUMBERS), stprune.indexed(Graphs, key="ids"), lambda b: (b["ids"], b["x"])),
    "default collate": (stprune.IndexedDataset(NUMBERS), stprune.indexed(), lambda b: b),
    "default collate of mappings": (
        stprune.IndexedDataset(MAPPINGS),
        stprune.indexed(default_collate, key="index"),
        lambda b: (b["index"], b["x"]),
    ),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("workers", [0, 2])
def test_every_batch_holds_the_ids_of_its_samples(name, workers):
    data, collate, parts = BATCHES[name]
    sampler = stprune.PruningSampler(10, num_epochs=1)
    check(DataLoader(data, collate_fn=collate, sampler=sampler, batch_size=4, num_workers=workers), parts)


def test_spawned_workers_take_it():
    data, collate, parts = BATCHES["key in a mapping"]
    check(DataLoader(data, collate_fn=collate, batch_size=4, num_workers=1, multiprocessing_context="spawn"), parts)


def test_the_samples_themselves_are_left_alone():
    data = stprune.IndexedDataset(MAPPINGS, key="index")
    sample = data[3]
    assert sample == {"x": torch.tensor(3.0), "y": 0, "index": 3}
    assert data[-1]["index"] == 9
    assert [each["index"] for each in data.__getitems__([4, -2])] == [4, 8]
    assert "index" not in MAPPINGS[3]
    kept = Held(MAPPINGS[1])
    assert isinstance(stprune.IndexedDataset([kept], key="index")[0], Held)
    assert "index" not in kept
    fixed = types.MappingProxyType({"x": 1})
    assert stprune.IndexedDataset([fixed], key="index")[0] == {"x": 1, "index": 0}
    batch = stacked(MAPPINGS[:2])
    assert set(stprune.indexed(lambda samples: batch, key="index")([(5, None), (7, None)])) == {"x", "index"}
    assert set(batch) == {"x"}


def test_it_trains_what_a_dict_batch_holds():
    """A loop that moves a whole batch by one function, as Accelerate and transformers do."""
    sampler = stprune.PruningSampler(10, num_epochs=1)
    criterion = stprune.PrunedMean(sampler)
    scale = torch.ones(1, requires_grad=True)
    for batch in DataLoader(stprune.IndexedDataset(MAPPINGS), collate_fn=stprune.indexed(held, key="index"), sampler=sampler):
        moved = batch.to("cpu")
        criterion(scale * moved["x"], moved["index"]).backward()
    assert torch.equal(sampler.table.scores, torch.arange(10.0))


def test_copies_and_names():
    made = stprune.indexed(stacked, key="index")
    assert pickle.loads(pickle.dumps(made))([(2, MAPPINGS[2])])["index"].tolist() == [2]
    assert repr(made).startswith("indexed(<function stacked")
    assert repr(stprune.IndexedDataset([1], key="i")) == "IndexedDataset([1], key='i')"
    assert repr(stprune.IndexedDataset([1])) == "IndexedDataset([1])"


def test_refusals():
    with pytest.raises(TypeError, match="^IndexedDataset: key must be a string, got 3"):
        stprune.IndexedDataset(MAPPINGS, key=3)
    with pytest.raises(ValueError, match="^IndexedDataset: key must be new in the sample, got 'x', which it has"):
        stprune.IndexedDataset(MAPPINGS, key="x")[0]
    with pytest.raises(
        TypeError, match="^IndexedDataset: samples must be mappings to hold the key 'index', got float; stprune.i"
    ):
        stprune.IndexedDataset(NUMBERS, key="index")[0]
    with pytest.raises(TypeError, match="^indexed: collate_fn must be a function, got str"):
        stprune.indexed("index")
    with pytest.raises(TypeError, match="^indexed: key must be a string, got 1"):
        stprune.indexed(stacked, key=1)
    with pytest.raises(ValueError, match="^indexed: key must be new in the batch, got 'x', which it has"):
        stprune.indexed(stacked, key="x")([(0, MAPPINGS[0])])
    with pytest.raises(TypeError, match="^indexed: collate_fn must return a mapping to hold the key 'index', got list"):
        stprune.indexed(list, key="index")([(0, MAPPINGS[0])])
    for item in (MAPPINGS[0], (1.5, None), (1, 2, 3), stprune.IndexedDataset(MAPPINGS, key="index")[0]):
        with pytest.raises(TypeError, match=r"^indexed: items must be the \(index, sample\) of an IndexedDataset without key"):
            stprune.indexed(stacked)([item])
