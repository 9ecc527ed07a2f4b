"""What every public op must pass, in one table: reference, refusals, opcheck, threads and instruction sets, torch.compile."""

import inspect
import pathlib

import pytest
import torch
from named_inputs import PROBABILITIES, probabilities, weights_of
from named_inputs import WEIGHTS as KINDS_OF_WEIGHTS
from own_process import run
from torch.utils._python_dispatch import TorchDispatchMode

import stprune
from stprune import ops, testing
from stprune.ops.budget import inclusion_budget
from stprune.ops.plan_budget import Buffers, plan_budget
from stprune.ops.strata import checked_strata

N = 70_001  # several pieces of work for every thread
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
    "select": (stprune.select, [WEIGHTS, 9_000], {}),
    "select of float64 rows": (stprune.select, [WEIGHTS[:70_000].double().view(4, -1), 3_000], {}),
    "select of float16": (stprune.select, [WEIGHTS.half(), 9_000], {}),
    "select, out": (stprune.select, [WEIGHTS, 9_000], {"out": ids()}),
    "topk": (stprune.topk, [WEIGHTS.bfloat16(), 9_000], {}),
    "topk, not sorted, out": (stprune.topk, [WEIGHTS, 9_000], {"sorted": False, "out": (floats(), ids())}),
    "draw": (stprune.draw, [CHANCE], SEED),
    "draw, count": (stprune.draw, [CHANCE.double()], {**SEED, "count": COUNT}),
    "draw, out": (stprune.draw, [CHANCE], {**SEED, "out": ids()}),
    "draw, count, out": (stprune.draw, [CHANCE], {**SEED, "count": COUNT, "out": ids()}),
    "draw_weighted": (stprune.draw_weighted, [WEIGHTS, 9_000], SEED),
    "draw_weighted, race": (stprune.draw_weighted, [WEIGHTS, 9_000], {**SEED, "law": "race"}),
    "draw_weighted, out": (stprune.draw_weighted, [WEIGHTS, 9_000], {**SEED, "out": (ids(), floats())}),
    "draw_weighted, race, out": (stprune.draw_weighted, [WEIGHTS, 9_000], {**SEED, "law": "race", "out": (ids(), None)}),
    "draw_threshold": (stprune.draw_threshold, [WEIGHTS, 0.3], SEED),
    "draw_threshold, exact": (stprune.draw_threshold, [WEIGHTS.double(), 0.3], {**SEED, "exact_count": True}),
    "draw_threshold, out": (stprune.draw_threshold, [WEIGHTS, 0.3], {**SEED, "out": (ids(), floats())}),
    "draw_spaced": (stprune.draw_spaced, [WEIGHTS], {**SEED, "spacing": 7, "threshold": 2.0}),
    "shuffle": (stprune.shuffle, [torch.arange(N, dtype=torch.int16)], SEED),
    "shuffle of complex numbers": (stprune.shuffle, [WEIGHTS.to(torch.complex128)], SEED),
    "shuffle, out": (stprune.shuffle, [WEIGHTS], {**SEED, "out": floats()}),
    "permute": (stprune.permute, [N, 100, 60_000], SEED),
    "inclusion_budget": (inclusion_budget, [WEIGHTS], {"alpha": 0.5, "count": 9_000.0, "minimum": 0.1}),
    "plan_budget": (plan_budget, [WEIGHTS], {**SEED, "alpha": 0.5, "count": 9_000, "minimum": 0.1}),
    "plan_budget, strata": (plan_budget, [WEIGHTS], {**SEED, "alpha": 1.0, "count": 9_000, "minimum": 0.1, "strata": STRATA}),
    "plan_budget, strata, out": (
        plan_budget,
        [WEIGHTS.double()],
        {
            **SEED,
            **{"alpha": 0.5, "count": 9_000, "minimum": 0.1, "strata": STRATA},
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

# Awkward values, which kernels treat apart: for the bits alone.
VALUES = {}
for kind in testing.INPUTS:
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        VALUES[f"topk of {kind}, {dtype}"] = (stprune.topk, [testing.named_keys(kind, N, dtype), N // 3], {})
    keys = testing.named_keys(kind, N)
    for exact in (False, True):
        settings = {**SEED, "exact_count": exact}
        VALUES[f"draw_threshold of {kind}, exact {exact}"] = (stprune.draw_threshold, [keys, 0.37], settings)
for kind in PROBABILITIES:
    for dtype in (torch.float32, torch.float64):
        p = probabilities(kind, N, dtype)
        VALUES[f"draw of {kind}, {dtype}"] = (stprune.draw, [p], SEED)
        VALUES[f"draw of {kind}, {dtype}, count"] = (stprune.draw, [p], {**SEED, "count": round(float(p.double().sum()))})
for kind in KINDS_OF_WEIGHTS:
    w = weights_of(kind, N)
    for law in ("priority", "race"):
        VALUES[f"{law} of {kind}"] = (stprune.draw_weighted, [w, min(9_000, int((w > 0).sum()))], {**SEED, "law": law})
# More scores than the budget takes a sample of, some never scored and some negative.
SCORES = torch.empty(300_001).log_normal_(generator=torch.Generator().manual_seed(2))
SCORES[::7], SCORES[3::70] = torch.nan, -1.0
for alpha in (0.0, 0.5, 1.0):
    settings = {"alpha": alpha, "count": 150_000, "minimum": 0.1}
    VALUES[f"inclusion_budget of many, power {alpha}"] = (inclusion_budget, [SCORES], settings)
    for strata in (None, *(checked_strata("test", torch.arange(300_001) * 9 % number, 300_001) for number in (24, 300))):
        number = 0 if strata is None else strata.sizes.numel()
        VALUES[f"plan_budget of many, power {alpha}, {number} strata"] = (
            plan_budget,
            [SCORES if alpha == 0.5 else SCORES.double()],
            {**SEED, **settings, "strata": strata},
        )
ALL = {**CASES, **VALUES}


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
    door, arguments, settings = copied(ALL[name])
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


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The results of all cases by the references, from a process without the compiled library."""
    file = tmp_path_factory.mktemp("ops") / "expected.pt"
    script = "import sys; sys.path.insert(0, sys.argv[1]); import test_ops as t, torch\n"
    script += "torch.save({name: t.call(name) for name in t.ALL}, sys.argv[2])"
    run(script, str(pathlib.Path(__file__).parent), str(file), STPRUNE_DISABLE_NATIVE="1")
    return torch.load(file)


def assert_all_same(actual, wanted):
    for one, other in zip(actual, wanted, strict=True):
        testing.assert_same(one, other)


@pytest.mark.parametrize("name", ALL)
def test_matches_the_reference_for_any_threads_and_instruction_set(name, expected, threads):
    for number in (1, 2):
        threads(number)
        for isa in testing.isas():
            with testing.isa(isa):
                assert_all_same(call(name), expected[name])


@EACH
def test_same_bits_under_torch_compile(name, expected):
    door, arguments, settings = copied(CASES[name])
    torch._dynamo.reset()
    assert_all_same(flat(torch.compile(door, backend="aot_eager")(*arguments, **settings)), expected[name])


def bad_values(name, value):
    """Values that an argument must not have, and the error each gets."""
    if name in ("seed", "epoch"):
        yield from ((-1, ValueError), (2**63 if name == "seed" else 2**32, ValueError))
    if isinstance(value, torch.Tensor):
        yield [1.0], TypeError
    elif isinstance(value, int) and not isinstance(value, bool):
        yield from ((1.5, TypeError), (True, TypeError), ("1", TypeError), (-1, ValueError))
    elif isinstance(value, float):
        yield from (("1", TypeError), (float("nan"), ValueError))
    elif isinstance(value, str):
        yield "nonsense", ValueError


@EACH
def test_refuses_bad_arguments_and_changes_nothing(name):
    door, positional, keywords = copied(CASES[name])
    given = inspect.signature(door).bind(*positional, **keywords).arguments
    before = copied(given)
    for argument, value in given.items():
        for bad, error in bad_values(argument, value):
            with pytest.raises(error, match=rf"^{door.__name__}: {argument} must .*, got "):
                door(**{**given, argument: bad})
            assert_all_same(flat(given), flat(before))
