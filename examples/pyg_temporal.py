"""PyTorch Geometric Temporal's index batching with a pruned sampler: nothing changes but the four lines.

python examples/pyg_temporal.py trains a small graph model on half of the windows of a made series, in METR-LA's file format.
"""

import argparse
import pathlib
import tempfile

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch_geometric.nn import GCNConv
from torch_geometric_temporal.dataset.metr_la import METRLADatasetLoader

import stprune

LAGS = 12


class Forecaster(torch.nn.Module):
    """Maps x [B, T, N, F] to the speeds [B, T, N]: one graph convolution over the nodes, and a linear layer."""

    def __init__(self, channels):
        super().__init__()
        self.convolution, self.out = GCNConv(LAGS * channels, 16), torch.nn.Linear(16, LAGS)

    def forward(self, x, edges, weights):
        hidden = self.convolution(x.permute(0, 2, 1, 3).flatten(2), edges, weights).relu()
        return self.out(hidden).transpose(1, 2)


def write_data(folder, rows, num_nodes):
    """The files that METRLADatasetLoader unpacks: a ring of nodes; speeds with a morning rush, and the time of day."""
    generator = np.random.default_rng(0)
    day = (np.arange(rows) % 288 / 288)[:, None]
    rush = generator.uniform(20, 40, num_nodes) * np.exp(-(((day - 0.35) / 0.05) ** 2))
    speed = 60 - rush + generator.normal(0, 2, (rows, num_nodes))
    np.save(folder / "node_values.npy", np.stack([speed, np.broadcast_to(day, speed.shape)], -1))
    np.save(folder / "adj_mat.npy", (np.eye(num_nodes) + np.roll(np.eye(num_nodes), 1, 0)).astype(np.float32))
    (folder / "METR-LA.zip").touch()  # it looks for the file before it downloads


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--keep-ratio", type=float, default=0.5)
    parser.add_argument("--rows", type=int, default=2500, help="of the series")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        write_data(pathlib.Path(folder), args.rows, num_nodes=15)
        data = METRLADatasetLoader(raw_data_dir=folder, index=True)
        train, val, _, edges, weights, _, _ = data.get_index_dataset(lags=LAGS, batch_size=64)

    sampler = stprune.PruningSampler(len(train.dataset), num_epochs=args.epochs, keep_ratio=args.keep_ratio)
    criterion = stprune.PrunedLoss(sampler)
    train = DataLoader(stprune.IndexedDataset(train.dataset), batch_size=64, sampler=sampler)
    model, steps = Forecaster(channels=2), 0
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        delivered = []
        for index, (x, y) in train:
            delivered += index.tolist()
            optimizer.zero_grad()
            criterion(model(x, edges, weights), y[..., 0], index).backward()
            optimizer.step()
            steps += 1
        assert sorted(delivered) == sorted(sampler.plan.indices.tolist())
        with torch.no_grad():
            error = np.mean([criterion(model(x, edges, weights), y[..., 0]).item() for x, y in val])
        seen = f"{len(delivered)} of {len(sampler.plan)} planned windows"
        print(f"epoch {epoch}: {seen}, {steps} steps, validation MAE {error:.3f}")


if __name__ == "__main__":
    main()
