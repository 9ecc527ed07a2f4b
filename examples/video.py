"""Videos and rasters: stprune.PrunedLoss takes them as they are, [B, T, C, H, W], and leaves out what is missing.

video.py          four frames of moving blobs foretell the next four: a small SimVP, MSE, OneCycleLR over a fixed length
video.py --holes  a raster with missing pixels, in one step: pixels are nodes, and only observed ones are drawn
It stands for OpenSTL (arXiv 2306.11249), SimVPv2 (arXiv 2211.12509) and, in spirit, InSAR deformation (arXiv 2509.18176).
OpenSTL's Moving MNIST makes its training data anew at each access and has no sample to score: here the index makes the sample.
"""

import argparse
import itertools
import time

import torch
from torch import nn
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, TensorDataset

import stprune


def blobs(index):  # two blobs that move and bounce, with the index as seed: frames [4, 1, 16, 16] before and after
    generator = torch.Generator().manual_seed(index)
    place, speed = torch.rand(2, 2, 1, generator=generator), 0.1 * torch.randn(2, 2, 1, generator=generator)
    place = 1 - ((place + speed * torch.arange(8)) % 2 - 1).abs()
    y, x = torch.exp(-(((torch.linspace(0, 1, 16) - place.unsqueeze(3)) / 0.15) ** 2)).unbind(1)
    return (y.unsqueeze(3) * x.unsqueeze(2)).amax(0).unsqueeze(1).split(4)


class SimVP(nn.Module):  # in small: frames are encoded and decoded one by one, and translated together
    def __init__(self, steps=4, width=16, hidden=64):
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(1, width, 4, 2, 1), nn.ReLU())
        mix = nn.Conv2d(steps * width, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, hidden, 5, 1, 2, groups=4), nn.ReLU()
        self.translate = nn.Sequential(*mix, nn.Conv2d(hidden, steps * width, 1))
        self.decode = nn.ConvTranspose2d(width, 1, 4, 2, 1)

    def forward(self, x):
        z = self.encode(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        z = z + self.translate(z.flatten(1, 2)).unflatten(1, z.shape[1:3])
        return self.decode(z.flatten(0, 1)).unflatten(0, x.shape[:2])


class Video:
    def __init__(self, quick):
        self.loss, self.share, self.model = {"loss": "mse", "dims": "BTCHW"}, 0.5, SimVP
        self.train, test = ([blobs(i) for i in ids] for ids in (range(64 if quick else 256), range(10000, 10256)))
        self.test = [torch.stack(frames) for frames in zip(*test, strict=True)]
        self.full, self.runs = {}, {"soft random": {"method": "soft-random"}, "ST-Prune": {"method": "st-prune"}}


class Holes:  # 24 x 24 pixels, of which 60% were never observed, [B, T, pixel]; every third tile of 6 x 6 is for the test
    def __init__(self, quick):
        generator, days = torch.Generator().manual_seed(0), torch.arange(160.0).unsqueeze(1)
        maps = interpolate(torch.randn(1, 3, 6, 6, generator=generator), (24, 24), mode="bicubic")[0].flatten(1)
        series = maps[0] * days / 50 + maps[1] * (days / 8 + maps[2]).sin() + 0.1 * torch.randn(160, 576, generator=generator)
        windows = series[: 60 if quick else 160].unfold(0, 13, 1).transpose(1, 2)
        x, y = (windows - windows[:, 11:12]).split([12, 1], 1)  # changes of 12 days up to the last, and of the next day
        (observed, chosen), tile = torch.rand(2, 576, generator=generator), torch.arange(24) // 6
        self.known = (observed < 0.4) & ((tile + tile.unsqueeze(1)) % 3 > 0).flatten()
        test, static = (observed < 0.4) & ~self.known, self.known & (chosen < 0.65)
        self.train = TensorDataset(x.where(self.known, 0), y.where(self.known, torch.nan))
        self.test, self.loss = (x[..., test], y[..., test]), {"loss": "mse", "null_value": torch.nan}
        self.model = lambda: nn.Sequential(nn.Conv1d(12, 32, 1), nn.ReLU(), nn.Conv1d(32, 1, 1))
        laws = {"uniform": "uniform", "static": stprune.Observed(static), "observed": stprune.Observed(self.known)}
        part = {"num_nodes": 576, "node_ratio": static.sum().item() / 576}
        self.runs = {f"{name} pixels": part | {"node_sampler": law} for name, law in laws.items()}
        self.full = self.runs["observed pixels"] | {"node_ratio": self.known.sum().item() / 576}
        self.share = part["node_ratio"] / self.full["node_ratio"]


def train(task, model, optimizer, schedule, sampler, criterion, num_workers=0):
    """A loop as yours: new are the sampler, the criterion and `index`. It goes on where loaded states stopped."""
    data, samples, passes = stprune.IndexedDataset(task.train), 0, 0
    for epoch in range(sampler.next_epoch, sampler.num_epochs):
        sampler.set_epoch(epoch)
        for index, (x, y) in DataLoader(data, batch_size=16, sampler=sampler, num_workers=num_workers):
            node = sampler.nodes(index) if sampler.num_nodes else None
            x, y = (a if node is None else stprune.gather_nodes(a, node) for a in (x, y))
            loss = criterion(model(x), y, index, node)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            passes += len(index) if node is None else node.numel()
            samples += len(index) if node is None else y.isfinite().sum().item()
    return samples, passes


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--holes", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=3, choices=range(3, 10))
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the models are too small for two
    task, epochs = (Holes if args.holes else Video)(args.quick), 4 if args.quick else 20
    runs = {"full": task.full, "full, equal cost": task.full | {"num_epochs": round(epochs * task.share)}} | task.runs
    rows = torch.zeros(len(runs), args.seeds, 4)
    for seed, (at, (name, settings)) in itertools.product(range(args.seeds), enumerate(runs.items())):
        torch.manual_seed(seed)
        settings = {"num_epochs": epochs, "method": "full", "fixed_length": True, "seed": seed} | settings
        sampler, model = stprune.PruningSampler(len(task.train), **settings), task.model()
        optimizer, begin = torch.optim.Adam(model.parameters()), time.perf_counter()
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=sampler.total_steps(16))
        costs = train(task, model, optimizer, schedule, sampler, stprune.PrunedLoss(sampler, **task.loss))
        seconds, error = time.perf_counter() - begin, model(task.test[0]) - task.test[1]
        rows[at, seed] = torch.tensor([1000 * error.square().mean().item(), *costs, seconds])
        print(f"seed {seed}, {name}: {seconds:.1f} s", flush=True)
    print(f"\n{'run':18}       MSE x 1000   samples    passes seconds")
    for name, row in zip(runs, rows, strict=True):
        spread, mean = torch.std_mean(row, 0)
        print(f"{name:18}{mean[0]:>9.2f} ± {spread[0]:<5.2f}{mean[1]:>10,.0f}{mean[2]:>10,.0f}{mean[3]:>8.1f}")
    for other, row in list(zip(runs, rows, strict=True))[1:-1]:
        spread, mean = torch.std_mean(rows[-1, :, 0] - row[:, 0])  # 2.5: Student's t for three seeds, 95%
        word = "more than" if abs(mean) > 2.5 * spread else "not more than"
        print(f"{name}: {mean:+.2f} ± {spread:.2f} against {other}, {word} the seeds differ.")


if __name__ == "__main__":
    main()
