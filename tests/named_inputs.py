"""Inputs by name that the tests of an op on the CPU, of its CUDA kernel on the host and of that on a GPU share."""

import math

import torch

from stprune import testing
from stprune.reference import draw_nodes as reference_nodes

PROBABILITIES = ("uniform", "mixed", "constant", "tiny", "zero_one", "denormal")
SCORES = (*testing.INPUTS, "lognormal", "holes", "unknown", "outlier", "far apart")
WEIGHTS = ("lognormal", "sparse", "constant", "tiny", "huge", "denormal", "one")


def probabilities(name, n, dtype):
    """[n] of the kind `name`, one of PROBABILITIES, in [0, 1]."""
    generator = torch.Generator().manual_seed(11)
    p = torch.rand(n, generator=generator, dtype=dtype)
    if name == "mixed":
        p[torch.rand(n, generator=generator) < 0.2] = 0.0
        p[torch.rand(n, generator=generator) < 0.2] = 1.0
    elif name == "constant":
        p.fill_(0.3)
    elif name == "tiny":
        p *= 1e-12
    elif name == "zero_one":
        p = (p < 0.4).to(dtype)
    elif name == "denormal":
        p *= torch.finfo(dtype).tiny
    return p


def weights_of(name, n, _dtype=torch.float32):
    """[n] float32 of the kind `name`, one of WEIGHTS."""
    generator = torch.Generator().manual_seed(21)
    w = torch.randn(n, generator=generator).exp()
    if name == "sparse":
        w[torch.rand(n, generator=generator) < 0.7] = 0.0
    elif name == "constant":
        w.fill_(2.0)
    elif name == "tiny":
        w *= 1e-37
    elif name == "huge":
        w *= 1e30
    elif name == "denormal":
        w *= 1e-42
    elif name == "one":
        w.zero_()
        w[n // 2 : n // 2 + 1] = 1.0
    return w


def scores_of(name, n, dtype):
    """[n] of the kind `name`, one of SCORES."""
    if name in testing.INPUTS:
        return testing.named_keys(name, n, dtype)
    generator = torch.Generator().manual_seed(31)
    scores = torch.randn(n, generator=generator, dtype=torch.float64).exp().to(dtype)
    if name == "holes":
        scores[torch.rand(n, generator=generator) < 0.3] = math.nan
        scores[torch.rand(n, generator=generator) < 0.1] = math.inf
        scores[torch.rand(n, generator=generator) < 0.1] = -math.inf
    elif name == "unknown":
        scores.fill_(math.inf)
    elif name == "outlier":
        scores[n // 2 : n // 2 + 1] = 1e6  # all but one lie below the mean
    elif name == "far apart":
        scores *= 10.0 ** torch.randint(-30, 30, (n,), generator=generator)
    return scores


def sample_positions(n, size=16_384):
    """Where the CUDA selection looks for its bracket among n keys."""
    mask = (1 << 64) - 1
    for i in range(size):
        x = (i + 1) * 0x9E3779B97F4A7C15 & mask
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
        yield (x ^ (x >> 31)) * n >> 64


def window_with_a_tie(num_nodes):
    """A window in which two nodes of different tiles have the same word, and that word's rank (from 1)."""
    for window in range(2000):
        word = reference_nodes.node_words(torch.tensor([window]), num_nodes, 5, 6)[0]
        ordered, order = word.sort(stable=True)
        equal = (ordered[1:] == ordered[:-1]).nonzero().flatten()
        if equal.numel() and int(order[equal[0]]) // 1024 < int(order[equal[0] + 1]) // 1024:
            return window, int(equal[0]) + 1
    raise AssertionError("no window has a tie")
