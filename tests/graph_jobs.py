"""Jobs that a CUDA graph can capture, as their sizes depend on no data.

A row: its name; what makes the job, a function of one tensor, for a device, and brings all else there; two inputs.
"""

import torch
from named_inputs import probabilities, weights_of

import stprune
from stprune import testing
from stprune.ops._window_recipe import make_recipe

OPS = torch.ops.stprune


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


P = probabilities("mixed", 50_000, torch.float64)
COUNT = round(float(P.sum()))
KEYS, MORE = (testing.named_keys(name, 50_000) for name in ("normal", "tie_at_k"))
W = weights_of("lognormal", 50_000)
SCORES = testing.named_keys("normal", 200_000).exp()  # enough for the budget's sample
IDS = torch.arange(50_000)
INDEX = torch.arange(64)
SERIES = random(300, 33, 2)
CHANCES = random(64, 170) + 0.1
GRID = random(8, 12, 33, 2)
NODE = torch.stack([torch.randperm(33, generator=torch.Generator().manual_seed(i))[:9] for i in range(8)])


def simple(function):
    """A job that needs nothing beside its input."""
    return lambda device: function


def windows(device):
    settings = dict.fromkeys(("scale", "offset", "missing", "time_features", "dtype"))
    settings |= {"layout": "BNTC", "mean": 0.4, "std": 2.0, "fill": 0.25, "target_channels": [1], "normalize_target": False}
    recipe = make_recipe("gather_windows", SERIES.to(device), **settings)
    x, y = (torch.empty(shape, device=device) for shape in recipe.shapes(64, 9, 12, 6))

    def cut(start):
        recipe.fill_in(start, stprune.draw_nodes(start, num_nodes=33, count=9, seed=1, epoch=2), x, y)
        return torch.cat([x.flatten(), y.flatten()])

    return cut


def weighted(device):
    index = INDEX.to(device)
    return lambda x: OPS.draw_nodes_weighted(x, index, 50, 1, 2)[1]


def calibrated(device):
    strata, sizes = ((IDS % 24).to(torch.uint8).to(device), torch.bincount(IDS % 24).to(device))
    index = IDS[::2].contiguous().to(device)

    def run(x):
        weights = x[::2].contiguous()
        OPS.calibrate(weights, index, strata, sizes)
        return weights

    return run


def aged(x):
    scores, marks = x.clone(), torch.zeros_like(x, dtype=torch.uint8)
    OPS.table_age(scores, marks, 0.5, 0.9)
    return torch.cat([scores.double(), OPS.count_nonfinite(scores, marks + 8)])


def gathered(device):
    node = NODE.to(device)
    return lambda x: stprune.gather_nodes(x, node)


def gradient(device):
    node = NODE.to(device)

    def run(x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(stprune.gather_nodes(x, node).square().sum(), x)[0]

    return run


def nodes(law):
    def make(device):
        sampler = stprune.PruningSampler(300, num_epochs=2, num_nodes=33, node_ratio=0.3, node_sampler=law).to(device)
        return lambda index: torch.cat([x.double() for x in sampler.draw_nodes(index) if x is not None])

    return make


def statistics(device):
    grid = GRID.to(device)
    return lambda x: torch.cat([one.flatten().double() for one in stprune.residual_stats(grid, x, null_value=0.0)])


JOBS = {
    "select": (simple(lambda x: OPS.select(x, 20_000, None)[0]), KEYS, MORE),
    "topk": (simple(lambda x: OPS.topk(x, 20_000, True, None, None)[1]), KEYS, MORE),
    "draw": (simple(lambda x: OPS.draw(x, COUNT, 1, 2, None)[0]), P, P.flip(0).contiguous()),
    "draw_weighted": (simple(lambda x: OPS.draw_weighted(x, 20_000, 1, 2, False, None, None)[1]), W, W.flip(0).contiguous()),
    "check_range": (simple(lambda x: OPS.check_range(x, 1.0, True)), P, P.square()),
    "inclusion_budget": (simple(lambda x: OPS.inclusion_budget(x, 0.5, 60_000.0, 0.1)), SCORES, SCORES.flip(0).square()),
    "calibrate": (calibrated, W, W.flip(0).contiguous()),
    "finite_stats": (simple(OPS.finite_stats), KEYS, MORE),
    "table_age, count_nonfinite": (simple(aged), KEYS, MORE),
    "shuffle": (simple(lambda x: OPS.shuffle(x, 1, 2, None)[0]), IDS, IDS.flip(0).contiguous()),
    "draw_nodes": (simple(lambda x: stprune.draw_nodes(x, num_nodes=170, count=50, seed=1, epoch=2)), INDEX, INDEX + 100),
    "draw_nodes_weighted": (weighted, CHANCES, CHANCES.flip(0)),
    "uniform nodes": (nodes("uniform"), INDEX, INDEX + 100),
    "priority nodes": (nodes("priority"), INDEX, INDEX + 100),
    "gather_nodes": (gathered, GRID, GRID.flip(0)),
    "gather_nodes, backward": (gradient, GRID, GRID.flip(0)),
    "gather_windows": (windows, INDEX, INDEX + 100),
    "residual_stats": (statistics, random(8, 12, 33, 2, seed=1), random(8, 12, 33, 2, seed=2)),
}
