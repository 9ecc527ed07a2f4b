"""Inputs of which an op's shortcut is no use: for the bounds of what a GPU's kernels read."""

import torch

from stprune.reference import budget
from stprune.reference.random import words


def costly_inputs(n):
    """Scores and probabilities of which a shortcut is no use, by op and name."""
    equal = torch.full((n,), 1e-3)
    equal[words(budget.SAMPLE, seed=0, epoch=0, stream=budget.STREAM) * (n >> 8) >> 24] = 5.0
    yield "the sample misleads", "inclusion_budget", (equal, 0.5, round(0.3 * n) * 1.0, 0.06)
    half_open = torch.ones(n)
    half_open[::2] = 1e-6
    yield "half of the sizes open", "inclusion_budget", (half_open, 0.5, round(0.3 * n) * 1.0, 0.06)
    yield "the plan's sample misleads", "plan_budget", (equal, 0.5, round(0.3 * n), 0.06, None, None, 1, 2)
    yield "all equal", "select", (torch.ones(n), n // 3)
    yield "rising", "select", (torch.arange(n, dtype=torch.float32), n // 3)
    # The last, as it takes seconds to make.
    shares = 1 - torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 8 * 1e-6
    shares[::5] = 0.5
    drawn = round(float(shares.sum()))
    shares[::5] += (drawn - 0.49 - float(shares.sum())) / shares[::5].numel()
    yield "many rounds", "draw", (shares, drawn, 1, 2)
