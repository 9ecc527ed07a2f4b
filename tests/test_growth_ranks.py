"""Two real processes whose data grows and whose slots are used again; clients beside each other, who exchange nothing."""

import pytest
import torch
from rank_processes import refusal, results
from test_ranks import train

import stprune


def sampler_of(n=64, **settings):
    return stprune.PruningSampler(n, num_epochs=None, keep_ratio=0.5, **settings)


def grown(rank, start):
    start()
    sampler = sampler_of()
    train(sampler, 0)
    sampler.set_epoch(1)
    begun = list(sampler)
    sampler.grow(80)
    assert list(sampler) == begun
    sampler.update(torch.tensor(begun), torch.tensor(begun) + 1.0)
    ids = train(sampler, 2)
    sampler.set_epoch(3)
    sampler.finish()
    return {"ids": ids, "plan": sampler.plan.indices.tolist(), "scores": sampler.table.scores.tolist()}


def pairs_grown(rank, start):
    start()
    sampler = sampler_of(10, num_nodes=4, granularity="pair")
    train(sampler, 0)
    sampler.grow_nodes(5)
    ids = train(sampler, 1)
    sampler.set_epoch(2)
    return {"ids": ids, "plan": sampler.plan.indices.tolist(), "scores": sampler.table.scores.tolist()}


def grown_apart(rank, start):
    start()
    sampler = sampler_of()
    train(sampler, 0)
    sampler.grow(70 + rank)
    return refusal(lambda: sampler.set_epoch(1))


def grown_on_one_rank(rank, start):
    start()
    sampler = sampler_of(8, num_nodes=4, node_ratio=0.5)
    train(sampler, 0)
    if rank == 1:
        sampler.grow_nodes(6)
    return refusal(lambda: sampler.set_epoch(1))


def forgotten(rank, start):
    """Every rank forgets samples that one of them has scored since the last exchange: nobody brings the scores back."""
    start()
    sampler = sampler_of()
    train(sampler, 0)
    gone = torch.arange(0, 64, 3)
    sampler.forget(gone)
    sampler.synchronize()
    between = sampler.table.scores.tolist()
    sampler.set_epoch(1)
    return {"between": between, "after": sampler.table.scores.tolist(), "plan": sampler.plan.indices.tolist()}


def clients(rank, start):
    """Each rank is a host of clients of its own, in another number and size: a single exchange would never end."""
    start()
    lengths = []
    for client in range(3 + rank):
        sampler = stprune.PruningSampler(20 + client + 10 * rank, num_epochs=None, method="infobatch", process_group="none")
        for epoch in range(2 + client):
            lengths.append(len(train(sampler, epoch)))
        sampler.grow(60)
        sampler.forget(torch.arange(5))
        sampler.synchronize()
        sampler.set_epoch(10)
        sampler.finish()
        lengths.append((sampler.num_replicas, len(sampler)))
    return lengths


CASES = {case.__name__: (2, case) for case in (grown, pairs_grown, grown_apart, grown_on_one_rank, forgotten, clients)}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return results("test_growth_ranks", tmp_path_factory.mktemp("ranks"), 2)


@pytest.mark.parametrize(("name", "size", "new"), [("grown", 80, range(64, 80)), ("pairs_grown", 50, range(4, 50, 5))])
def test_ranks_grow_alike(found, name, size, new):
    first, second = found[name]
    assert "ids" in first, first
    assert first["plan"] == second["plan"]
    assert first["scores"] == second["scores"]
    assert len(first["scores"]) == size
    assert len(set(first["ids"]) & set(second["ids"])) == len(first["plan"]) % 2, "padding alone"
    assert set(new) <= {*first["ids"], *second["ids"]}, "new samples come first"
    if name == "grown":  # and everyone knows their scores
        assert [first["scores"][i] for i in new] == [i + 1.0 for i in new]


@pytest.mark.parametrize(("name", "setting"), [("grown_apart", "num_samples"), ("grown_on_one_rank", "num_nodes")])
def test_ranks_of_different_sizes_are_refused_on_every_rank(found, name, setting):
    first, second = found[name]
    assert first == second
    assert first.startswith(f"ValueError: PruningSampler: {setting} must be the same on every rank, got ")


def test_forgotten_scores_do_not_come_back(found):
    first, second = found["forgotten"]
    assert first == second
    gone = set(range(0, 64, 3))
    assert [i for i, score in enumerate(first["after"]) if score == float("inf")] == sorted(gone)
    assert first["between"] == first["after"]
    assert gone <= set(first["plan"])


def test_clients_exchange_nothing(found):
    first, second = found["clients"]
    assert isinstance(first, list), first
    assert isinstance(second, list), second
    assert first[:2] == [20, *first[1:2]]
    assert [entry[0] for entry in first + second if isinstance(entry, tuple)] == [1] * 7
