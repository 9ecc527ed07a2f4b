"""What every public op must pass, in one table: reference, refusals, opcheck, threads and instruction sets, torch.compile."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import stprune
from stprune import ops
from stprune.ops.budget import inclusion_budget
from stprune.ops.plan_budget import Buffers, plan_budget
from stprune.ops.strata import checked_strata

N = 3_001
WEIGHTS = torch.empty(N).log_normal_(generator=torch.Generator().manual_seed(0))
CHANCE = WEIGHTS / WEIGHTS.max()
COUNT = round(float(CHANCE.double().sum()))
WINDOWS = torch.tensor([3, 70, 2**40])
NODES = torch.tensor([[0, 2, 4], [1, 2, 3], [4, 4, 0]])
SERIES = (torch.arange(60 * 5 * 2, dtype=torch.float32) % 17).view(60, 5, 2)
X = torch.randn(3, 4, 5, 2, generator=torch.Generator().manual_seed(1))
SEED = {"seed": 5, "epoch": 6}
STRATA = checked_strata("test", torch.arange(N) % 7, N)


def ids(size=N):
    return torch.full((size,), -7, dtype=torch.int64)


def floats(size=N):
    return torch.full((size,), -7.0)


# name: door, its positional arguments, its keyword arguments
CASES = {
    "select": (stprune.select, [WEIGHTS, 900], {}),
    "select of float64 rows": (stprune.select, [WEIGHTS[:3000].double().view(4, -1), 300], {}),
    "select of float16": (stprune.select, [WEIGHTS.half(), 900], {}),
    "select, out": (stprune.select, [WEIGHTS, 900], {"out": ids()}),
    "topk": (stprune.topk, [WEIGHTS.bfloat16(), 900], {}),
    "topk, not sorted, out": (stprune.topk, [WEIGHTS, 900], {"sorted": False, "out": (floats(), ids())}),
    "draw": (stprune.draw, [CHANCE], SEED),
    "draw, count": (stprune.draw, [CHANCE.double()], {**SEED, "count": COUNT}),
    "draw, out": (stprune.draw, [CHANCE], {**SEED, "out": ids()}),
    "draw, count, out": (stprune.draw, [CHANCE], {**SEED, "count": COUNT, "out": ids()}),
    "draw_weighted": (stprune.draw_weighted, [WEIGHTS, 900], SEED),
    "draw_weighted, race": (stprune.draw_weighted, [WEIGHTS, 900], {**SEED, "law": "race"}),
    "draw_weighted, out": (stprune.draw_weighted, [WEIGHTS, 900], {**SEED, "out": (ids(), floats())}),
    "draw_weighted, race, out": (stprune.draw_weighted, [WEIGHTS, 900], {**SEED, "law": "race", "out": (ids(), None)}),
    "draw_threshold": (stprune.draw_threshold, [WEIGHTS, 0.3], SEED),
    "draw_threshold, exact": (stprune.draw_threshold, [WEIGHTS.double(), 0.3], {**SEED, "exact_count": True}),
    "draw_threshold, out": (stprune.draw_threshold, [WEIGHTS, 0.3], {**SEED, "out": (ids(), floats())}),
    "draw_spaced": (stprune.draw_spaced, [WEIGHTS], {**SEED, "spacing": 7, "threshold": 2.0}),
    "shuffle": (stprune.shuffle, [torch.arange(N, dtype=torch.int16)], SEED),
    "shuffle of complex numbers": (stprune.shuffle, [WEIGHTS.to(torch.complex128)], SEED),
    "shuffle, out": (stprune.shuffle, [WEIGHTS], {**SEED, "out": floats()}),
    "permute": (stprune.permute, [N, 100, 2000], SEED),
    "inclusion_budget": (inclusion_budget, [WEIGHTS], {"alpha": 0.5, "count": 900.0, "minimum": 0.1}),
    "plan_budget": (plan_budget, [WEIGHTS], {**SEED, "alpha": 0.5, "count": 900, "minimum": 0.1}),
    "plan_budget, strata": (plan_budget, [WEIGHTS], {**SEED, "alpha": 1.0, "count": 900, "minimum": 0.1, "strata": STRATA}),
    "plan_budget, strata, out": (
        plan_budget,
        [WEIGHTS.double()],
        {
            **SEED,
            **{"alpha": 0.5, "count": 900, "minimum": 0.1, "strata": STRATA},
            "out": Buffers(ids(), floats(), torch.zeros(N, dtype=torch.int32)),
        },
    ),
    "draw_nodes": (stprune.draw_nodes, [WINDOWS], {**SEED, "num_nodes": 100, "count": 30}),
    "draw_nodes_weighted": (stprune.draw_nodes_weighted, [WEIGHTS[:300].view(3, 100), WINDOWS], {**SEED, "count": 30}),
    "gather_nodes": (stprune.gather_nodes, [X, NODES], {}),
    "gather_windows": (stprune.gather_windows, [SERIES, torch.tensor([0, 7, 50])], {"history": 6, "horizon": 4}),
    "gather_windows, nodes": (
        stprune.gather_windows,
        [SERIES, torch.tensor([0, 7, 50])],
        {"history": 6, "horizon": 4, "node": NODES, "layout": "BCNT", "mean": 2.0, "std": 3.0},
    ),
    "residual_stats": (stprune.residual_stats, [X, X.flip(0)], {}),
    "score": (stprune.score, [X, X.flip(0)], {}),
    "window_stats": (stprune.window_stats, [SERIES], {"history": 6, "horizon": 4}),
    "window_stats, per node": (stprune.window_stats, [SERIES], {"history": 6, "horizon": 4, "per_node": True}),
}
EACH = pytest.mark.parametrize("name", CASES)


def flat(value):
    """Every tensor in nested tuples and dicts, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    return [tensor for part in value for tensor in flat(part)] if isinstance(value, (tuple, list)) else []


def copied(value):
    """The same with new memory for every tensor, so that a call that writes to its arguments changes no other test's."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: copied(part) for key, part in value.items()}
    if isinstance(value, tuple):
        parts = [copied(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return [copied(part) for part in value] if isinstance(value, list) else value


def call(name):
    door, arguments, settings = copied(CASES[name])
    return flat(door(*arguments, **settings))


class Calls(TorchDispatchMode):
    """Records the calls of stprune's ops."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "stprune":
            self.made.append((func, copied(list(args))))
        return func(*args, **(kwargs or {}))


def test_the_table_has_every_public_op():
    assert set(ops.__all__) - {"ResidualStats", "WindowStats"} <= {door.__name__ for door, *_ in CASES.values()}


@EACH
def test_opcheck(name):
    with Calls() as calls:
        call(name)
    assert calls.made
    for op, arguments in calls.made:
        torch.library.opcheck(op, tuple(arguments))
