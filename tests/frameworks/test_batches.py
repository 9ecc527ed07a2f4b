"""Ids inside of the batches that PyTorch Geometric, transformers and Accelerate know."""

import pytest
import torch
from torch.utils.data import DataLoader

import stprune

NUM = 30


def test_graphs_keep_their_ids():
    """As an entry that is no index of nodes: it is not moved by the number of nodes, and travels with `to`."""
    geometric = pytest.importorskip("torch_geometric", reason="torch_geometric is not installed")
    edges = torch.zeros(2, 1, dtype=torch.int64)
    graphs = [geometric.data.Data(x=torch.full((i % 3 + 1, 2), float(i)), edge_index=edges) for i in range(NUM)]
    collate = stprune.indexed(geometric.data.Batch.from_data_list, key="sample")
    sampler = stprune.PruningSampler(NUM, num_epochs=1)
    for batch in DataLoader(stprune.IndexedDataset(graphs), collate_fn=collate, sampler=sampler, batch_size=7, num_workers=1):
        assert torch.equal(batch.to("cpu").sample[batch.batch].float(), batch.x[:, 0])
    # The library's own loader takes the pair.
    for index, batch in geometric.loader.DataLoader(stprune.IndexedDataset(graphs), sampler=sampler, batch_size=7):
        assert torch.equal(index[batch.batch].float(), batch.x[:, 0])


def test_collate_functions_of_transformers():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    samples = [{"input_ids": [i, 2 * i, 3], "labels": i} for i in range(NUM)]
    data = stprune.IndexedDataset(samples, key="sample")
    for batch in DataLoader(data, collate_fn=transformers.default_data_collator, batch_size=7):
        assert torch.equal(batch["sample"], batch["labels"])

    def encoded(samples):
        return transformers.BatchEncoding({"input_ids": torch.tensor([sample["input_ids"] for sample in samples])})

    collate = stprune.indexed(encoded, key="sample")
    for batch in DataLoader(stprune.IndexedDataset(samples), collate_fn=collate, batch_size=7):
        assert isinstance(batch, transformers.BatchEncoding)
        assert torch.equal(batch.to("cpu")["sample"], batch.input_ids[:, 0])


@pytest.mark.parametrize("carried", ["in the batch", "by a queue"])
def test_batches_that_accelerate_moves(carried):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    accelerator = accelerate.Accelerator(cpu=True)
    samples = [{"x": torch.tensor(float(i))} for i in range(NUM)]
    sampler = stprune.PruningSampler(NUM, num_epochs=2, keep_ratio=0.5, schedule="none")
    sampler.table.decay = 1.0
    data = stprune.IndexedDataset(samples, key="index") if carried == "in the batch" else samples
    loader = accelerator.prepare(DataLoader(data, sampler=sampler, batch_size=8))
    queue = loader if carried == "in the batch" else stprune.BatchQueue(sampler, loader)
    criterion, scale = stprune.PrunedMean(sampler), torch.ones(1, requires_grad=True)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for batch in queue:
            values = scale * batch["x"]
            criterion(values, batch["index"] if carried == "in the batch" else queue.take(len(values))).backward()
        assert sampler.table.num_losses == len(sampler)
    assert torch.equal(sampler.table.scores, torch.arange(float(NUM)))
