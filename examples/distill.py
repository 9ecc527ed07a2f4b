"""A large STID teaches a small one on SimBench's load profiles; the teacher's forecasts are kept by sample id.

Stands for EasyST (arXiv 2409.06748) and FlowDistill (arXiv 2504.02094), with a normal distribution for their bottleneck. The
teacher's bound and divergence are per sample, so inside of what PrunedMean gets; the score is what exceeds its loss.
distill.py --online    asks the teacher at every step, as one must where samples are augmented
distill.py --shuffled  adds a teacher whose forecasts belong to other samples, as where they are kept by batch number
"""

import argparse
import importlib.util
import itertools
import time

import numpy as np
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import smooth_l1_loss, softplus
from torch.utils.data import DataLoader

import stprune


def load(days, nodes):
    """Windows of the first three quarters of so many days, and of the last: loads, or a series like them."""
    if package := importlib.util.find_spec("simbench"):  # pip install --no-deps simbench
        path = f"{package.submodule_search_locations[0]}/networks/1-complete_data-mixed-all-0-sw/LoadProfile.csv"
        series = np.loadtxt(path, "f", delimiter=";", skiprows=1, usecols=range(1, 193, 192 // nodes), max_rows=days * 96)
    else:
        print("The package simbench is not installed: the series is synthetic.")
        (phase, noise), step = np.random.default_rng(0).normal(size=(2, days * 96, nodes)), np.arange(days * 96)[:, None]
        series = np.float32(np.cos(step * np.pi / 48 + phase[0]) * (1.5 - ((step // 96 + 4) % 7 >= 5)) + 0.2 * noise)
    border = len(series) * 3 // 4
    series = (series - series[:border].mean(0)) / series[:border].std(0)
    cut = {"stride": 7, "steps_per_day": 96, "first_step": 4 * 96}  # from a Friday on; 7 steps on is another time of day
    return [stprune.WindowDataset(series, **cut, **part) for part in ({"stop": border}, {"start": border})]


class Teacher:
    """Forecasts of a trained model, made when a sample is trained on first, and found again by its id."""

    def __init__(self, model, data, *, online=False, shuffled=False):
        self.model, self.online, self.calls = model, online, 0
        self.known, self.kept = torch.zeros(len(data), dtype=torch.bool), torch.empty(len(data), *data[0][1].shape)
        if shuffled:
            self(torch.arange(len(data)), data.batch(range(len(data)))[0])
            self.kept = self.kept[torch.randperm(len(data), generator=torch.Generator().manual_seed(0))]

    def __call__(self, index, x):
        new = ~self.known[index]
        if new.any():
            self.kept[index[new]] = forecast(self.model, x[new])[0].detach()
            self.known[index[new]], self.calls = not self.online, self.calls + int(new.sum())
        return self.kept[index]


def forecast(model, x):
    mean, width = model(x).chunk(2, 1)
    return mean, 0.05 + softplus(width)  # of every node's next steps the mean and the standard deviation, [B, 12, N, 1]


def losses(model, teacher, index, x, y):
    """Losses [B] with all terms, and scores [B]; without a teacher both are the plain loss."""
    mean, width = forecast(model, x)
    loss = smooth_l1_loss(mean, y, reduction="none").mean((1, 2, 3))
    if teacher is None:
        return loss, loss
    taught = teacher(index, x)
    excess = loss - smooth_l1_loss(taught, y, reduction="none").mean((1, 2, 3))
    divergence = kl_divergence(Normal(taught, 0.3), Normal(mean, width)).mean((1, 2, 3))
    return loss * torch.where(excess > -0.05, 1.3, 1.0) + 0.2 * divergence, excess  # 1.3: not clearly better


def train(data, model, sampler, criterion, optimizer, teacher=None, num_workers=0):
    """A loop as yours: new are the sampler, the criterion and `index`. It goes on where loaded states stopped."""
    data, trained = stprune.IndexedDataset(data), 0
    for epoch in range(sampler.next_epoch, sampler.num_epochs):
        sampler.set_epoch(epoch)
        for index, (x, y) in DataLoader(data, batch_size=32, sampler=sampler, num_workers=num_workers):
            values, score = losses(model, teacher, index, x, y)
            loss = criterion(values, index, score=score)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            trained += len(index)
    return trained


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("--online", "--shuffled", "--quick"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--seeds", type=int, default=3, choices=range(3, 10))
    args = parser.parse_args(arguments)
    (data, test), epochs = load(*((14, 8) if args.quick else (84, 24))), 8 if args.quick else 24
    x, y = test.batch(range(len(test)))
    runs = {"the teacher": {"method": "full", "num_epochs": epochs // 3}, "full": {"method": "full"}}
    runs |= {"full, equal cost": {"method": "full", "num_epochs": round(epochs * 7 / 12)}, "no teacher": {}}
    runs |= ({"shuffled teacher": {}} if args.shuffled else {}) | {"soft random": {"method": "soft-random"}, "ST-Prune": {}}
    rows, models = torch.zeros(len(runs), args.seeds, 4), {}
    for seed, (at, (name, settings)) in itertools.product(range(args.seeds), enumerate(runs.items())):
        torch.manual_seed(seed)
        size = {"dim": 32, "num_layers": 3} if name == "the teacher" else {"dim": 8, "num_layers": 1}
        model = models[name] = stprune.models.STID(y.shape[2], horizon=24, steps_per_day=96, **size)
        teacher = Teacher(models["the teacher"], data, online=args.online, shuffled=name == "shuffled teacher")
        sampler = stprune.PruningSampler(len(data), **{"num_epochs": epochs, "seed": seed} | settings)
        optimizer, begin = torch.optim.Adam(model.parameters(), 3e-3), time.perf_counter()
        taught = teacher if name not in ("the teacher", "no teacher") else None
        trained, end = train(data, model, sampler, stprune.PrunedMean(sampler), optimizer, taught), time.perf_counter()
        rows[at, seed] = torch.tensor([(forecast(model, x)[0] - y).abs().mean().item(), trained, teacher.calls, end - begin])
    print(f"{'run':18}{'MAE':>18}   samples  teacher calls seconds")
    for name, (mean, *costs), spread in zip(runs, rows.mean(1).tolist(), rows[..., 0].std(1).tolist(), strict=True):
        print(f"{name:18}{mean:>9.4f} ± {spread:.4f}{costs[0]:>10,.0f}{costs[1]:>15,.0f}{costs[2]:>8.1f}")
    for other, name in list(enumerate(runs))[2:-1]:
        spread, mean = torch.std_mean(rows[-1, :, 0] - rows[other, :, 0])  # 2.5: Student's t for three seeds, 95%
        word = "more" if abs(mean) > 2.5 * spread else "not more"
        print(f"ST-Prune: MAE {mean:+.4f} ± {spread:.4f} against {name}, {word} than the seeds differ.")


if __name__ == "__main__":
    main()
