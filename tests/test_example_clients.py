"""examples/clients.py: runs as it says; tables and ids stay with their clients, and what leaves them is unbiased."""

import pytest
import torch

pytest.importorskip("sklearn", reason="examples/clients.py trains on scikit-learn's digits: pip install scikit-learn")

from example_checks import (
    check_nothing_pruned,
    check_resume,
    check_scores,
    check_table,
    check_unbiased,
    example,
    printed,
    sampler_of,
)
from torch.nn.functional import cross_entropy

import stprune

MODULE = example("clients")
SIZES = 90, 40, 5
CLIENTS, TEST = MODULE.partition(SIZES)
DATA = CLIENTS[0][0]
ROWS = ["FedAvg", "FedAvg, equal steps", "full", "full, equal steps", "soft random", "ST-Prune"]


def network(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 10))


AHEAD = [parameter.detach() for parameter in network(seed=1).parameters()]


def sampler(method="st-prune", num_epochs=3, **settings):
    return sampler_of(len(DATA), method, num_epochs, process_group="none", **settings)


def trained(sampler, criterion=None, rate=0.1, pull=0.1, **options):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), rate)
    epochs = range(sampler.epoch, sampler.num_epochs)
    MODULE.train(DATA, model, optimizer, sampler, criterion or stprune.PrunedMean(sampler), epochs, AHEAD, pull, **options)
    return model


def test_the_short_form_prints_its_table():
    check_table(printed(MODULE), ROWS, ("samples", "seconds"))


def test_clients_have_different_samples_of_three_classes():
    assert [len(data) for data, _ in CLIENTS] == list(SIZES)
    rows = torch.cat([*(data.tensors[0] for data, _ in CLIENTS), TEST[0]])
    assert len(torch.unique(rows, dim=0)) == len(rows)
    for data, (_, y) in CLIENTS:
        assert set(data.tensors[1].tolist()) <= set(y.tolist())
        assert len(set(y.tolist())) == 3


@pytest.fixture
def federation(monkeypatch):
    """The clients after 6 rounds of which each has some, and the ids of every loss by sampler."""
    made, seen = [], {}

    class Watched(MODULE.Client):
        def __init__(self, data, **settings):
            super().__init__(data, **settings)
            made.append(self)

    class Mean(stprune.PrunedMean):
        def forward(self, values, index):
            seen.setdefault(self.sampler, []).extend(index.tolist())
            return super().forward(values, index)

    monkeypatch.setattr(MODULE, "Client", Watched)
    monkeypatch.setattr(MODULE.stprune, "PrunedMean", Mean)
    _, samples = MODULE.federate(CLIENTS, 6, 0, 0.1, 2, method="st-prune")
    return made, seen, samples


def test_every_table_holds_its_own_ids_alone(federation):
    clients, seen, samples = federation
    assert [client.sampler.table.num_samples for client in clients] == list(SIZES)
    assert samples == sum(len(ids) for ids in seen.values())
    for client in clients:
        ids = seen.get(client.sampler, [])
        assert set(ids) == (set(range(len(client.data))) if client.epochs else set())  # their first epochs are whole
        assert torch.isfinite(client.sampler.table.scores).all() == (client.epochs > 0)


def test_rounds_go_on_where_the_client_stopped_and_its_weights_sum_to_its_size_in_the_mean(federation):
    clients, _, _ = federation
    assert sum(client.epochs for client in clients) == 6 * 2 * 2  # two of three clients in each round
    assert len({client.epochs for client in clients}) > 1  # some had more rounds than others
    for client in clients:
        assert client.sampler.epoch == max(0, client.epochs - 1)
        sums = []
        for epoch in range(client.epochs, client.epochs + 300):
            client.sampler.set_epoch(epoch)
            sums.append(client.sampler.weights_of(client.sampler.plan.indices, per_step=False).sum())
        sums = torch.stack(sums)
        assert abs(sums.mean() - len(client.data)) <= 4 * sums.std() / len(sums) ** 0.5


def test_the_average_counts_models_by_size():
    models = [network(seed) for seed in range(3)]
    average = MODULE.average(models, SIZES)
    for mean, *parts in zip(average.parameters(), *(model.parameters() for model in models), strict=True):
        expected = sum(size * part for size, part in zip(SIZES, parts, strict=True)) / sum(SIZES)
        assert torch.allclose(mean, expected)


def test_the_pull_shortens_the_way_to_the_goal_and_has_no_weight():
    def way(pull):
        model = trained(sampler(), pull=pull)
        return sum((ours - goal).square().sum().item() for ours, goal in zip(model.parameters(), AHEAD, strict=True))

    assert way(1.0) < way(0.1) < way(0.0)


def test_nothing_pruned_is_plain_training():
    check_nothing_pruned(
        lambda: sampler(keep_ratio=1.0),
        lambda sampler, criterion: trained(sampler, criterion),
        lambda values, index: values.mean(),
    )


def test_kept_samples_are_unbiased_and_the_largest_are_not():
    model = trained(sampler("full", 4))

    def loss_of(sampler, index):
        x, y = DATA[index]
        return stprune.PrunedMean(sampler, rescale="epoch_sum")(cross_entropy(model(x), y, reduction="none"), index)

    check_unbiased(sampler, model, loss_of, good=["st-prune", "soft-random"], bad=["top-k"])


def test_stored_scores_are_those_of_their_samples():
    x, y = DATA.tensors
    check_scores(
        sampler(num_epochs=2),
        lambda sampler, workers: trained(sampler, rate=0.0, num_workers=workers),
        cross_entropy(network()(x), y, reduction="none").detach(),
    )


def test_a_killed_client_ends_as_if_it_had_not_been():
    def start():
        model = network()
        return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), 0.1), "sampler": sampler(num_epochs=None)}

    def train(parts):
        own = parts["sampler"]
        MODULE.train(DATA, criterion=stprune.PrunedMean(own), epochs=range(own.epoch, 3), ahead=AHEAD, pull=0.1, **parts)

    check_resume(start, train, [1, 6, 8])
