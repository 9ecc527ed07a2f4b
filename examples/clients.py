"""Federated clients of unequal sizes: each has a sampler of its own, whose table never leaves it.

Stands for FedPTR (arXiv 2312.14380), in spirit, as no code is published: local training is pulled towards where the common
model would be if half of its last step came once more. The pull is not per sample, so it is added outside of the weighted
mean. Only some clients train in a round, so none knows how many epochs it will have, which is num_epochs=None.
"""

import argparse
import copy
import itertools
import time

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import stprune

SIZES = 300, 200, 150, 100, 60, 40, 25, 15, 10


def partition(sizes):
    """Of each client the training data and the test data, all of three classes; and all test data."""
    x, y = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    x, y, free, clients = x[order].float() / 16, y[order], torch.arange(len(y)) < 1400, []
    test = ~free
    for client, size in enumerate(sizes):
        own = torch.isin(y, (3 * client + torch.arange(3)) % 10)
        taken = (own & free).nonzero()[:size, 0]
        free[taken] = False
        clients.append((TensorDataset(x[taken], y[taken]), (x[own & test], y[own & test])))
    return clients, (x[test], y[test])


class Client:
    """Its data, and a sampler that goes on from round to round. Only models leave it."""

    def __init__(self, data, **settings):
        self.data, self.epochs = data, 0
        self.sampler = stprune.PruningSampler(len(data), num_epochs=None, process_group="none", **settings)

    def round(self, model, ahead, pull, epochs):
        """A copy of the common model after some epochs here, and how many samples it was trained on."""
        model, begin = copy.deepcopy(model), self.epochs
        self.epochs += epochs
        optimizer, criterion = torch.optim.SGD(model.parameters(), 0.3), stprune.PrunedMean(self.sampler)
        return model, train(self.data, model, optimizer, self.sampler, criterion, range(begin, self.epochs), ahead, pull)


def train(data, model, optimizer, sampler, criterion, epochs, ahead, pull, num_workers=0):
    """A loop as yours: new are the sampler, the criterion and `index`."""
    data, trained = stprune.IndexedDataset(data), 0
    for epoch in epochs:
        sampler.set_epoch(epoch)
        for index, (x, y) in DataLoader(data, batch_size=20, sampler=sampler, num_workers=num_workers):
            away = sum((ours - goal).square().sum() for ours, goal in zip(model.parameters(), ahead, strict=True))
            loss = criterion(cross_entropy(model(x), y, reduction="none"), index) + pull / 2 * away
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            trained += len(index)
    return trained


@torch.no_grad()
def average(models, sizes):
    """The mean of the models' parameters, each counted by the size of its client."""
    common = copy.deepcopy(models[0])
    for parameter, *parts in zip(common.parameters(), *(model.parameters() for model in models), strict=True):
        parameter.copy_(sum(part * size for part, size in zip(parts, sizes, strict=True)) / sum(sizes))
    return common


def federate(clients, rounds, seed, pull, epochs, **settings):
    """The common model after some rounds, and how many samples all clients trained on."""
    torch.manual_seed(seed)
    model, trained = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), 0
    clients, last = [Client(data, seed=seed, **settings) for data, _ in clients], model
    for _ in range(rounds):
        chosen = [clients[at] for at in torch.randperm(len(clients))[: len(clients) * 2 // 3]]
        ahead = [(p + 0.5 * (p - q)).detach() for p, q in zip(model.parameters(), last.parameters(), strict=True)]
        models, samples = zip(*(client.round(model, ahead, pull, epochs) for client in chosen), strict=True)
        last, model, trained = model, average(models, [len(client.data) for client in chosen]), trained + sum(samples)
    return model, trained


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=3, choices=range(3, 10))
    args = parser.parse_args(arguments)
    (clients, test), rounds = partition(SIZES[3:] if args.quick else SIZES), 6 if args.quick else 20
    runs = {"FedAvg": (0, 2, "full"), "FedAvg, equal steps": (0, 1, "full")}
    runs |= {"full": (0.1, 2, "full"), "full, equal steps": (0.1, 1, "full")}
    runs |= {"soft random": (0.1, 2, "soft-random"), "ST-Prune": (0.1, 2, "st-prune")}
    rows, measures = torch.zeros(len(runs), args.seeds, 4), ("accuracy %", "worst client's %")
    for seed, (at, (pull, epochs, method)) in itertools.product(range(args.seeds), enumerate(runs.values())):
        begin = time.perf_counter()
        model, trained = federate(clients, rounds, seed, pull, epochs, method=method)
        seconds = time.perf_counter() - begin
        accuracy, *own = (100 * (model(x).argmax(1) == y).float().mean() for x, y in (test, *(part for _, part in clients)))
        rows[at, seed] = torch.tensor([accuracy, min(own), trained, seconds])
    print(f"{'run':20}" + "".join(f"{measure:>20}" for measure in measures) + "   samples seconds")
    for name, mean, spread in zip(runs, rows.mean(1).tolist(), rows.std(1).tolist(), strict=True):
        cells = "".join(f"{m:>12.2f} ± {s:<5.2f}" for m, s in zip(mean[:2], spread, strict=False))
        print(f"{name:20}{cells}{mean[2]:>10,.0f}{mean[3]:>8.1f}")
    for (at, other), (column, measure) in itertools.product(list(enumerate(runs))[2:-1], enumerate(measures)):
        spread, mean = torch.std_mean(rows[-1, :, column] - rows[at, :, column])  # 2.5: Student's t for three seeds, 95%
        word = "more" if abs(mean) > 2.5 * spread else "not more"
        print(f"ST-Prune, {measure}: {mean:+.2f} ± {spread:.2f} against {other}, {word} than the seeds differ.")


if __name__ == "__main__":
    main()
