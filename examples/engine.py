"""An engine with its own loop, as LargeST has one: only its training loader and its loss change.

python examples/engine.py trains a small forecaster by the engine, once on everything and once on half of the windows.
"""

import argparse

import numpy as np
import torch

import stprune
from stprune.integrations.engines import LargeSTLoader

SEQ_LEN = HORIZON = 12


class Windows:
    """The engine's own loader: `idx` holds the last row of every window's history; the tail of an epoch is left out."""

    def __init__(self, data, idx, seq_len, horizon, bs):
        self.data, self.idx, self.seq_len, self.horizon, self.bs = data, idx, seq_len, horizon, bs
        self.num_batch, self.random = len(idx) // bs, np.random.default_rng(0)

    def shuffle(self):
        self.idx = self.random.permutation(self.idx)

    def get_iterator(self):
        for first in range(0, self.num_batch * self.bs, self.bs):
            last = self.idx[first : first + self.bs, None]
            x = self.data[last + np.arange(-self.seq_len + 1, 1)]
            yield x.astype(np.float32), self.data[last + np.arange(1, self.horizon + 1), :, :1].astype(np.float32)


def masked_mae(prediction, target, null_value):
    mask = target != null_value
    return (prediction - target).abs()[mask].mean()


class Forecaster(torch.nn.Module):
    """Maps the history [B, T, N, C] to the horizon [B, T, N, 1]; each node has a bias of its own."""

    def __init__(self, num_nodes):
        super().__init__()
        self.horizon = HORIZON
        self.layers = torch.nn.Sequential(torch.nn.Linear(2 * SEQ_LEN, 32), torch.nn.ReLU(), torch.nn.Linear(32, HORIZON))
        self.bias = torch.nn.Parameter(torch.zeros(HORIZON, num_nodes, 1))

    def forward(self, x, label=None):
        return self.layers(x.permute(0, 2, 1, 3).flatten(2)).transpose(1, 2).unsqueeze(-1) + self.bias


class Engine:
    """Trains and validates. Its validation loss is computed after `no_grad` has ended, with gradients enabled."""

    def __init__(self, model, dataloader, mean, std, loss_fn, lr=1e-2):
        self.model, self.dataloader, self.mean, self.std, self.loss_fn = model, dataloader, mean, std, loss_fn
        self.optimizer = torch.optim.Adam(model.parameters(), lr=lr)

    def forward(self, x, label):
        # The engine copies the arrays: nothing that hangs on them survives, such as an id.
        x, label = (torch.tensor(part, dtype=torch.float32) for part in (x, label))
        prediction, label = (part * self.std + self.mean for part in (self.model(x, label), label))
        # Its null value: the smallest label of the batch, where that is below 1.
        return prediction, label, label.min() if label.min() < 1 else torch.tensor(0)

    def train_batch(self):
        self.model.train()
        self.dataloader["train_loader"].shuffle()
        for x, label in self.dataloader["train_loader"].get_iterator():
            self.optimizer.zero_grad()
            loss = self.loss_fn(*self.forward(x, label))
            loss.backward()
            self.optimizer.step()

    def evaluate(self, mode):
        self.model.eval()
        with torch.no_grad():
            parts = [self.forward(x, label) for x, label in self.dataloader[f"{mode}_loader"].get_iterator()]
        prediction, label = (torch.cat([part[i] for part in parts]) for i in range(2))
        return self.loss_fn(prediction, label, label.min() if label.min() < 1 else torch.tensor(0)).item()


def made(rows, num_nodes=20, seed=0):
    """Normalised flows [row, node, 2] by day and node, with a channel of the time of day; mean; std. Nights have zeros."""
    generator = np.random.default_rng(seed)
    day = (np.arange(rows) % 96 / 96)[:, None]
    flow = np.sin(2 * np.pi * (day - 0.3)) * generator.uniform(50, 200, num_nodes) + generator.normal(0, 10, (rows, num_nodes))
    flow = np.where(flow < 0, 0.0, flow + 20)
    return np.stack([(flow - flow.mean()) / flow.std(), np.broadcast_to(day, flow.shape)], -1), flow.mean(), flow.std()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--keep-ratio", type=float, default=0.5)
    parser.add_argument("--rows", type=int, default=3000, help="of the series")
    args = parser.parse_args(argv)
    data, mean, std = made(args.rows)
    idx = np.arange(SEQ_LEN - 1, args.rows - HORIZON)
    parts = {"train": idx[: len(idx) * 3 // 4], "val": idx[len(idx) * 3 // 4 :]}
    for name in ("everything", "pruned"):
        torch.manual_seed(0)
        dataloader = {f"{part}_loader": Windows(data, at, SEQ_LEN, HORIZON, bs=64) for part, at in parts.items()}
        model, loss_fn = Forecaster(data.shape[1]), masked_mae
        if name == "pruned":
            sampler = stprune.PruningSampler(len(parts["train"]), num_epochs=args.epochs, keep_ratio=args.keep_ratio)
            dataloader["train_loader"] = LargeSTLoader(dataloader["train_loader"], sampler)
            loss_fn = dataloader["train_loader"].loss(model)
        engine, steps = Engine(model, dataloader, mean, std, loss_fn), 0
        for epoch in range(args.epochs):
            engine.train_batch()
            steps += dataloader["train_loader"].num_batch
            said = f"{name}: epoch {epoch}, {steps} steps, validation MAE {engine.evaluate('val'):.2f}"
            print(said + (f", {sampler.table.num_trained} of {len(sampler.plan)} planned windows" if name == "pruned" else ""))


if __name__ == "__main__":
    main()
