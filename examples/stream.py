"""Data that grows: periods with new windows and new nodes, old windows replayed by score, calibration at test time.

In each period a sampler without an end grows. New windows are unknown, so all of them are trained on first; then they compete
with the old ones by score, with unbiased weights. The replays' memory holds three periods: in the fourth, new windows take
slots of old ones, which are forgotten, and the old ones that are left count for those that are gone.
Stands for STRAP (arXiv 2505.19547), ST-TTC (2506.00635) and bilevel learning on a stream (2105.01696); see also readout.py.
"""

import argparse
import itertools
import time

import torch
from torch.utils.data import DataLoader, TensorDataset

import stprune


def periods(quick):
    """Four periods and the time after: windows x [W, 12, N, 3] and y [W, 3, N], NaN of nodes that are not there yet."""
    steps, nodes = (120, (4, 6, 8, 8, 8)) if quick else (400, (12, 16, 20, 24, 24))
    g, at = torch.Generator().manual_seed(0), torch.arange(5 * steps)
    drift = torch.randn(3, 5, nodes[-1], generator=g).cumsum(1)[:, at // steps]
    level = drift[2] + torch.randn(len(at), nodes[-1], generator=g)
    series = (1.5 + 0.2 * drift[0]) * torch.cos(torch.pi / 12 * at[:, None] + 0.5 * drift[1]) + 0.2 * level
    for start, there in zip(range(0, 5 * steps, steps), nodes, strict=True):
        part = stprune.WindowDataset(series, start=start, stop=start + steps, horizon=3, steps_per_day=24)
        x, y = part.batch(range(len(part)))
        yield x, y.squeeze(3).masked_fill(torch.arange(nodes[-1]) >= there, torch.nan), there


def take(memory, held, x, y):
    """Put windows into free slots of a memory (x, y, weight), then into slots of those that it holds; returns the slots."""
    slots = torch.cat([torch.arange(held, len(memory)), torch.randperm(held)])[: len(x)]
    memory.tensors[2].mul_(held / max(1, min(held, len(memory) - len(x))))
    for old, new in zip(memory.tensors, (x, y, torch.ones(len(x))), strict=True):
        old[slots] = new
    return slots


def losses(model, x, y, node):
    """Losses [B, m, 3] of nodes [B, m], and which of them there are."""
    x, y = stprune.gather_nodes(x, node, dim=2), stprune.gather_nodes(y, node, dim=2)
    return (model(x, node).squeeze(3) - y.nan_to_num()).abs().transpose(1, 2), y.isfinite().transpose(1, 2)


def train(memory, model, optimizer, sampler, criterion, epochs, num_workers=0):
    """A loop as yours: new are the sampler, the criterion, `index` and `node`."""
    data, trained = stprune.IndexedDataset(memory), 0
    for epoch in epochs:
        sampler.set_epoch(epoch)
        for index, (x, y, weight) in DataLoader(data, batch_size=32, sampler=sampler, num_workers=num_workers):
            node = sampler.nodes(index)
            values, mask = losses(model, x, y, node)
            loss = criterion(values, index, node, mask=mask, weight=weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            trained += len(index)
    return trained


def calibrated(forecast, y, rate=0.02):
    """Forecasts [W, 3, N], each scaled and shifted by what the labels that were known by then taught."""
    scale, shift, found = torch.ones(y.shape[2]), torch.zeros(y.shape[2]), []
    for now, late in enumerate(range(-y.shape[1], len(y) - y.shape[1])):
        if late >= 0:
            error = scale * forecast[late] + shift - y[late]
            scale, shift = scale - rate * (error * forecast[late]).mean(0), shift - rate * error.mean(0)
        found.append(scale * forecast[now] + shift)
    return torch.stack(found)


def run(data, epochs, seed, capacity, share, **settings):
    """Errors on the last period and on those before it, % that calibration gains after it, windows trained on, seconds."""
    torch.manual_seed(seed)
    (*parts, (x, y, nodes)), border, trained, until = data, len(data[0][0]) * 3 // 4, 0, 0
    model = stprune.models.STID(nodes, horizon=3, steps_per_day=24, dim=8, num_layers=1)
    memory = TensorDataset(*(torch.zeros(capacity * border, *a.shape[1:]) for a in (x, y, torch.ones(1))))
    nodes, observed = parts[0][2], stprune.Observed(lambda slots: memory.tensors[1][slots, 0, :nodes].isfinite())
    sampler = stprune.PruningSampler(0, num_epochs=None, num_nodes=nodes, node_sampler=observed, seed=seed, **settings)
    optimizer, begin = torch.optim.Adam(model.parameters(), 3e-3), time.perf_counter()
    for period, (new_x, new_y, there) in enumerate(parts):
        slots = take(memory, sampler.num_windows, new_x[:border], new_y[:border])
        sampler.grow(max(sampler.num_windows, int(slots.max()) + 1))
        sampler.forget(slots)
        nodes = there  # which the mask now has
        sampler.grow_nodes(nodes)
        epoch, until = until, until + round(epochs * share * (period + 1) * border / sampler.num_windows)
        trained += train(memory, model, optimizer, sampler, stprune.PrunedMean(sampler), range(epoch, until))
    seconds, forecast = time.perf_counter() - begin, model(x).squeeze(3).detach()
    gain = 1 - (calibrated(forecast, y) - y).abs().mean().item() / (forecast - y).abs().mean().item()
    held = [(x[border:], y[border:], torch.arange(there).expand(len(x) - border, there)) for x, y, there in parts]
    *earlier, newest = (losses(model, *part)[0].mean().item() for part in held)
    return newest, sum(earlier) / len(earlier), 100 * gain, trained, seconds


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=3, choices=range(3, 10))
    args = parser.parse_args(arguments)
    data, epochs, whole, half = list(periods(args.quick)), 2 if args.quick else 10, {"method": "full"}, {"node_ratio": 0.5}
    runs = {"full": (4, 1, whole), "full, equal steps": (4, 0.5, whole), "newest only": (1, 0.5, whole)}
    runs |= {"uniform replay": (3, 1, half | {"method": "soft-random"}), "score replay": (3, 1, half)}
    rows, measures = torch.zeros(len(runs), args.seeds, 5), ("MAE newest", "MAE earlier", "calibration gain %")
    for seed, (at, (*sizes, settings)) in itertools.product(range(args.seeds), enumerate(runs.values())):
        rows[at, seed] = torch.tensor(run(data, epochs, seed, *sizes, **settings))
    print(f"{'run':18}" + "".join(f"{measure:>20}" for measure in measures) + "   samples seconds")
    for name, mean, spread in zip(runs, rows.mean(1).tolist(), rows.std(1).tolist(), strict=True):
        cells = "".join(f"{m:>11.3f} ± {s:<6.3f}" for m, s in zip(mean[:3], spread, strict=False))
        print(f"{name:18}{cells}{mean[3]:>10,.0f}{mean[4]:>8.1f}")
    for at, other in list(enumerate(runs))[1:-1]:
        found = zip(measures, *(a.tolist() for a in torch.std_mean((rows[-1] - rows[at])[:, :3], 0)), strict=True)
        words = (f"{name} {m:+.3f} ± {s:.3f}{'' if abs(m) > 2.5 * s else ' (as the seeds differ)'}" for name, s, m in found)
        print(f"score replay against {other}: {', '.join(words)}.")


if __name__ == "__main__":
    main()
