"""Any loss of any task, here the cross entropy of scikit-learn's digits: stprune.PrunedMean takes losses [B] or [B, ...].

any_loss.py --adversarial  trains on FGSM's adversarial examples: every kept sample costs two passes
any_loss.py --tokens       trains on a small text: the tokens of a sequence are its nodes, and half of them are drawn
These two stand for robust dataset learning (arXiv 2211.10752) and EntroDrop (arXiv 2512.23422), in spirit: no code published.
Here the model is made robust, not the data; and tokens lose their loss, not their input.
"""

import argparse
import inspect
import itertools
import time

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import stprune


class Digits:
    measures, batch_size, rate, full = ("accuracy %", "robust accuracy %"), 50, 3e-3, 14 / 24  # 4 whole epochs and 20 halves

    def __init__(self, quick, adversarial=False):
        self.passes = 2 if adversarial else 1
        self.runs = {"soft random": {"method": "soft-random"}, "ST-Prune": {"method": "st-prune"}}
        x, y = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
        parts = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).tensor_split([300 if quick else 1200])
        self.train, self.test = (TensorDataset(x[part].float() / 16, y[part]) for part in parts)
        self.layers = lambda: (nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def attacked(self, model, x, y, size=0.1):  # FGSM (arXiv 1412.6572): every pixel moves to where the loss grows
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(model(x), y, reduction="sum"), x)
        return (x + size * gradient.sign()).clamp(0, 1).detach()

    def losses(self, model, x, y):
        x = self.attacked(model, x, y) if self.passes == 2 else x  # then the score, too, is the robust loss
        return cross_entropy(model(x), y, reduction="none")  # [B]

    def measure(self, model):
        x, y = self.test.tensors
        return [100 * (model(a).argmax(1) == y).float().mean().item() for a in (x, self.attacked(model, x, y))]


class HighEntropy(stprune.Priority):  # EntroDrop in spirit: hard tokens more often, without weights, so biased on purpose
    name, unbiased, weighted = "high-entropy", False, False

    def draw(self, index, epoch):
        return super().draw(index, epoch)[0], None


class Tokens:
    measures, batch_size, rate, full, passes = ("loss", "first letters' loss"), 16, 3e-3, 1 / 2, 1

    def __init__(self, quick):
        laws = {"uniform tokens": "uniform", "tokens by loss": "priority", "high entropy": HighEntropy()}
        self.runs = {name: {"num_nodes": 64, "node_ratio": 0.5, "node_sampler": law} for name, law in laws.items()}
        tokens = torch.tensor(list(inspect.getsource(argparse).encode())).unfold(0, 9, 1)  # eight letters foretell the ninth
        tokens = tokens[: 64 * (60 if quick else 300)].view(-1, 64, 9)
        test = torch.arange(len(tokens)) % 5 == 4
        self.train, self.test = (TensorDataset(part[..., :8], part[..., 8]) for part in (tokens[~test], tokens[test]))
        self.layers = lambda: (nn.Embedding(256, 16), nn.Flatten(-2), nn.Linear(128, 192), nn.ReLU(), nn.Linear(192, 256))

    def losses(self, model, x, y):
        return cross_entropy(model(x).transpose(1, -1), y, reduction="none")  # [B, m]

    def measure(self, model):  # the first letters of words are the tokens of high entropy
        (x, y), losses = self.test.tensors, self.losses(model, *self.test.tensors).detach()
        return [losses.mean().item(), losses[(x[..., -1] == ord(" ")) & (y != ord(" "))].mean().item()]


def train(task, model, optimizer, sampler, criterion, num_workers=0):
    """A loop as yours: new are the sampler, the criterion and `index`. It goes on where loaded states stopped."""
    data, trained = stprune.IndexedDataset(task.train), 0
    for epoch in range(sampler.next_epoch, sampler.num_epochs):
        sampler.set_epoch(epoch)
        for index, (x, y) in DataLoader(data, batch_size=task.batch_size, sampler=sampler, num_workers=num_workers):
            node = sampler.nodes(index) if sampler.num_nodes else None
            x, y = (a if node is None else stprune.gather_nodes(a, node, dim=1) for a in (x, y))
            loss = criterion(task.losses(model, x, y), index, node)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            trained += y.numel()
    return trained


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("--adversarial", "--tokens", "--quick"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--seeds", type=int, default=3, choices=range(3, 10))
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the models are too small for two
    task, epochs = Tokens(args.quick) if args.tokens else Digits(args.quick, args.adversarial), 8 if args.quick else 24
    runs = {"full": {}, "full, equal cost": {"num_epochs": round(epochs * task.full)}} | task.runs
    rows = torch.zeros(len(runs), args.seeds, len(task.measures) + 3)
    for seed, (at, (name, settings)) in itertools.product(range(args.seeds), enumerate(runs.items())):
        torch.manual_seed(seed)
        model = nn.Sequential(*task.layers())
        sampler = stprune.PruningSampler(len(task.train), **{"num_epochs": epochs, "method": "full", "seed": seed} | settings)
        optimizer, begin = torch.optim.Adam(model.parameters(), task.rate), time.perf_counter()
        trained, end = train(task, model, optimizer, sampler, stprune.PrunedMean(sampler)), time.perf_counter()
        rows[at, seed] = torch.tensor([*task.measure(model), trained, trained * task.passes, end - begin])
        print(f"seed {seed}, {name}: {end - begin:.1f} s", flush=True)
    print(f"\n{'run':18}" + "".join(f"{column:>22}" for column in task.measures) + "   samples    passes seconds")
    for name, mean, spread in zip(runs, rows.mean(1).tolist(), rows.std(1).tolist(), strict=True):
        cells = "".join(f"{m:>14.2f} ± {s:<5.2f}" for m, s in zip(mean[:-3], spread, strict=False))
        print(f"{name:18}{cells}{mean[-3]:>10,.0f}{mean[-2]:>10,.0f}{mean[-1]:>8.1f}")
    for (at, measure), other in itertools.product(enumerate(task.measures), range(1, len(runs) - 1)):
        spread, mean = torch.std_mean(rows[-1, :, at] - rows[other, :, at])  # 2.5: Student's t for three seeds, 95%
        word = "more than" if abs(mean) > 2.5 * spread else "not more than"
        print(f"{name}, {measure}: {mean:+.2f} ± {spread:.2f} against {list(runs)[other]}, {word} the seeds differ.")


if __name__ == "__main__":
    main()
