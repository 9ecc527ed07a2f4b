"""headroom on loaders whose first windows are no random choice of all: a warning says so."""

import re
import warnings

import pytest
import torch

import stprune
from stprune.headroom.batches import warn_of_order

NODES = 6


def batch(windows):
    x = torch.rand(windows, 12, NODES, 3, generator=torch.Generator().manual_seed(0))
    return x, x[..., :1]


def loader(windows, **settings):
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*batch(windows)), batch_size=8, **settings)


def told(batches):
    """What is said about the order of 16 windows wanted."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warn_of_order(batches, 16)
    return [str(each.message) for each in found]


def test_a_loader_that_does_not_shuffle_is_told_of():
    in_order = torch.utils.data.SequentialSampler(range(24))
    for_ranks = {"num_replicas": 1, "rank": 0}
    for batches in (
        loader(24),
        loader(24, sampler=torch.utils.data.DistributedSampler(range(24), shuffle=False, **for_ranks)),
        torch.utils.data.DataLoader(range(24), batch_sampler=torch.utils.data.BatchSampler(in_order, 8, False)),
        stprune.WindowLoader(torch.rand(60, NODES), batch_size=8),
    ):
        (text,) = told(batches)
        assert "headroom: batches should come in random order, got a " in text
    for batches in (
        loader(24, shuffle=True),
        loader(16),  # all of them are taken
        loader(24, sampler=torch.utils.data.DistributedSampler(range(24), **for_ranks)),
        stprune.WindowLoader(torch.rand(60, NODES), torch.utils.data.RandomSampler(range(37)), batch_size=8),
        [batch(24)],
        (batch for batch in loader(24)),
    ):
        assert told(batches) == []
    with pytest.warns(RuntimeWarning, match="random order"):
        stprune.headroom(stprune.models.STID(NODES, steps_per_day=24, dim=2), loader(24), seconds=0.1, num_windows=8)


def test_a_loader_that_prunes_is_told_of():
    def pruning(method, epoch):
        sampler = stprune.PruningSampler(24, num_epochs=4, keep_ratio=0.5, method=method)
        sampler.table.update(torch.arange(24), torch.arange(24.0))
        sampler.set_epoch(epoch)
        return sampler

    for batches in (
        loader(24, sampler=pruning("st-prune", 1)),
        torch.utils.data.DataLoader(range(24), batch_sampler=pruning("infobatch", 1).batches(4)),
        stprune.WindowLoader(torch.rand(47, NODES), pruning("top-k", 1), batch_size=8),
    ):
        (text,) = told(batches)
        assert re.search("headroom: batches should be of all windows, got the [0-9]+ of 24 that PruningSampler keeps", text)
    for method, epoch in (("full", 1), ("soft-random", 1), ("st-prune", 3)):
        assert told(loader(24, sampler=pruning(method, epoch))) == []
