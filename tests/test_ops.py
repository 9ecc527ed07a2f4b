"""What every op must pass, in one table: reference, refusals, opcheck, threads and instruction sets, torch.compile.

On the CPU, and on a GPU where there is one. tests/engine_cases.py has the inputs of the ops whose results are exact.
"""

import contextlib
import inspect
import itertools
import math

import pytest
import torch
from engine_cases import ON_A_GPU, REFERENCES, SIZED, assert_all_same, flat, inputs, kernel, on, outcome
from own_process import made_once, run
from special_inputs import SPECIAL
from torch.utils._python_dispatch import TorchDispatchMode

import stprune
from stprune import ops, testing
from stprune.ops.budget import inclusion_budget
from stprune.ops.finite_mean import finite_stats
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


# name: public function, its positional arguments, its keyword arguments
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
    "draw_threshold of bfloat16": (stprune.draw_threshold, [WEIGHTS.bfloat16(), 0.3], SEED),
    "draw_threshold, out": (stprune.draw_threshold, [WEIGHTS, 0.3], {**SEED, "out": (ids(), floats())}),
    "draw_spaced": (stprune.draw_spaced, [WEIGHTS], {**SEED, "spacing": 7, "threshold": 2.0}),
    "draw_spaced of float16": (stprune.draw_spaced, [WEIGHTS.half()], {**SEED, "spacing": 7, "threshold": 2.0}),
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


def with_gradient(function):
    """Also the gradient of a weighted sum of the (first) result."""

    def run(x, *arguments, **settings):
        x = x.detach().requires_grad_()
        results = flat(function(x, *arguments, **settings))
        (results[0] * (1 + results[0].detach())).sum().backward()
        return [*(result.detach() for result in results), x.grad]

    return run


# For the bits alone: gradients, short and long rows.
VALUES = {"residual_stats, gradient": (with_gradient(stprune.residual_stats), [X, X.flip(0)], {})}
for dtype in testing.FLOATS:
    x = torch.randn(7, 60, 300, 2, generator=torch.Generator().manual_seed(1)).to(dtype)
    node = torch.randint(300, (7, 900), generator=torch.Generator().manual_seed(2))
    VALUES[f"gather_nodes of {dtype}, gradient"] = (with_gradient(stprune.gather_nodes), [x, node], {})
for kind, shape in itertools.product(
    ("normal", "tie_at_k", "inf"), ((3, 5, 70), (7, 4097), (40, 3000), (2, 9 * testing.CHUNK + 5), (0, 9), (3, 0))
):
    for dtype in testing.FLOATS:
        keys = testing.named_keys(kind, math.prod(shape), dtype).view(shape)
        for op, k in itertools.product((stprune.select, stprune.topk), testing.ranks(shape[-1])):
            VALUES[f"{op.__name__} of rows {shape}, {kind}, {dtype}, {k}"] = (op, [keys, k], {})
for dtype in (*testing.FLOATS, torch.int16):
    series = (torch.randn(60, 700, 3, generator=torch.Generator().manual_seed(3)) * 50 + 200).to(dtype)
    node = torch.stack([torch.randperm(700, generator=torch.Generator().manual_seed(i))[:300] for i in range(40)])
    settings = {"history": 12, "horizon": 2, "mean": torch.arange(2100.0).view(700, 3), "std": 2.0, "normalize_target": True}
    settings |= {"target_channels": [2, 0], "fill": 0.5, **({"scale": 0.1, "missing": 200} if dtype == torch.int16 else {})}
    for layout, drawn in itertools.product(("BTNC", "BCNT"), (None, node)):
        given = {**settings, "layout": layout, "node": drawn}
        name = f"gather_windows of {dtype}, {layout}, nodes {drawn is not None}"
        VALUES[name] = (stprune.gather_windows, [series, torch.arange(40)], given)
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


def call(name, device="cpu"):
    function, arguments, settings = on(device, copied(ALL[name]))
    return flat(function(*arguments, **settings))


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
    assert set(ops.__all__) - {"ResidualStats", "WindowStats"} <= {function.__name__ for function, *_ in CASES.values()}


@EACH
def test_opcheck(name):
    with Calls() as calls:
        call(name)
    assert calls.made
    for op, arguments in calls.made:
        torch.library.opcheck(op, tuple(arguments))


# Around the blocks of the CPU's kernels, and those of a GPU's: segments of 1,024, chunks of 8,192, samples of 16,384.
SIZES = {"cpu": testing.SIZES, "cuda": (0, 1, 31, 128, 1023, 1025, 4097, 8191, 8193, 16_384, 16_385, 100_003)}


@pytest.mark.parametrize("name", {op: name for name, (op, _) in reversed({**SIZED, **SPECIAL}.items())}.values())
def test_opcheck_of_ops_without_a_function(name):
    op, every = inputs(name, [64])
    overload = getattr(torch.ops.stprune, op).default
    arguments = next(every)
    torch.library.opcheck(overload, (*arguments, *[None] * (len(overload._schema.arguments) - len(arguments))))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_floats_are_taken_as_the_float32_they_are(dtype):
    x = WEIGHTS.to(dtype)
    assert_all_same(stprune.draw_threshold(x, 0.5, **SEED), stprune.draw_threshold(x.float(), 0.5, **SEED))
    assert finite_stats(x) == finite_stats(x.float())


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The results of all cases by the references, from a process without the compiled library."""

    def make(folder):
        script = "import sys, torch, test_ops as t; torch.save({name: t.call(name) for name in t.ALL}, sys.argv[1])"
        run(script, str(folder / "expected.pt"), STPRUNE_DISABLE_NATIVE="1")
        return folder / "expected.pt"

    return torch.load(made_once(tmp_path_factory, "expected_of_ops.pt", make))


# Ops of one pass over memory, which cut the work for threads at more samples than those.
LONG = dict.fromkeys(
    ("finite_stats", "compact_strata", "calibrate", "inverse_at", "scale_by_stratum", "table_age", "count_nonfinite"),
    (300_001,),
)
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
# On a GPU these round as Triton does, or are the plain composition; permute is told its device by name.
NOT_ON_A_GPU = ("residual_stats", "score", "window_stats", "gather_windows", "plan_budget", "permute")


def ways(device, threads):
    """Run what follows with one thread or more, on every instruction set."""
    if device != "cpu":
        yield contextlib.nullcontext()
        return
    for number, isa in itertools.product((1, 3), testing.isas() or [None]):
        threads(number)
        yield testing.isa(isa) if isa else contextlib.nullcontext()


@pytest.mark.parametrize(
    ("name", "device"),
    [(name, device) for device in DEVICES for name in ALL if device == "cpu" or ALL[name][0].__name__ not in NOT_ON_A_GPU],
)
def test_matches_the_reference_for_any_threads_and_instruction_set(name, device, expected, threads):
    for way in ways(device, threads):
        with way:
            results = call(name, device)
            assert_all_same(results, expected[name])
            assert all(x.device.type == device for x in results)


@pytest.mark.parametrize(
    ("name", "device"),
    [
        (name, device)
        for device in DEVICES
        for name, (op, _) in {**SIZED, **SPECIAL}.items()
        if device == "cpu" or op in ON_A_GPU
    ],
)
def test_matches_the_reference_for_any_input(name, device, threads):
    op, every = inputs(name, SIZES[device] + LONG.get(name.split()[0], ()))
    for arguments in every:
        expected = outcome(op, REFERENCES[op], arguments)
        moved = on(device, arguments)
        for way in ways(device, threads):
            with way:
                assert_all_same(outcome(op, kernel(op), moved), expected)


@EACH
def test_any_place_in_memory_and_arguments_left_alone(name, expected):
    """Strided tensors, and ones that start off a vector's alignment, give the same; an op writes to its buffers only."""
    function, arguments, settings = CASES[name]
    places = [testing.awkward(x) if isinstance(x, torch.Tensor) else [x] * 3 for x in arguments]
    for given in zip(*places, strict=True):
        before = copied(given)
        assert_all_same(flat(function(*given, **copied(settings))), expected[name])
        assert_all_same(flat(given), flat(before))


@EACH
def test_same_bits_under_torch_compile(name, expected):
    function, arguments, settings = copied(CASES[name])
    torch._dynamo.reset()
    # What only reads a batch is one graph; where a size depends on data, or data are checked, the graph breaks.
    whole = function.__name__ in ("gather_nodes", "gather_windows", "residual_stats", "score")
    run = torch.compile(function, backend="aot_eager", fullgraph=whole)
    assert_all_same(flat(run(*arguments, **settings)), expected[name])


@pytest.mark.parametrize("name", ["select", "select, out", "topk", "draw, count, out", "draw_weighted", "shuffle"])
def test_the_compiler_of_torch_takes_optional_buffers(name, expected):
    function, arguments, settings = copied(CASES[name])
    torch._dynamo.reset()
    assert_all_same(flat(torch.compile(function)(*arguments, **settings)), expected[name])


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
    function, positional, keywords = copied(CASES[name])
    given = inspect.signature(function).bind(*positional, **keywords).arguments
    before = copied(given)
    for argument, value in given.items():
        for bad, error in bad_values(argument, value):
            with pytest.raises(error, match=rf"^{function.__name__}: {argument} must .*, got "):
                function(**{**given, argument: bad})
            assert_all_same(flat(given), flat(before))
