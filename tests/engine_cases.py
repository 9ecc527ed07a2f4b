"""Every op with exact results, its reference and its inputs: for kernels on the CPU, on a GPU, and CUDA's on the host."""

import importlib
import itertools
import math

import torch
from named_inputs import PROBABILITIES, SCORES, WEIGHTS, probabilities, scores_of, weights_of
from special_inputs import SPECIAL, WIDE

import stprune
from stprune import testing
from stprune.ops.strata import checked_strata
from stprune.reference import plan_budget
from stprune.reference.random import SHUFFLE

MODULES = (
    "order check_range finite_stats budget draw draw_weighted draw_threshold spacing shuffle draw_nodes keep_pairs gather_nodes"
)
REFERENCES = {
    name: function
    for module in (*MODULES.split(), "plan_weights", "plan_lookup", "table_age")
    for name, function in vars(importlib.import_module(f"stprune.reference.{module}")).items()
    if hasattr(torch.ops.stprune, name)
}


def _plan_budget(*arguments):
    """The number and the mean weight in one tensor, as the op returns them."""
    indices, weights, mean = plan_budget.plan_budget(*arguments)
    return indices, weights, torch.tensor([indices.numel(), float(mean)], dtype=torch.float64)


REFERENCES["plan_budget"] = _plan_budget


def random(n, seed=31):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed))


def labels(kind, n, dtype):
    """[n] of `kind` strata, the last one among them."""
    strata = (random(n) * int(kind)).to(dtype)
    strata[n // 2 : n // 2 + 1] = int(kind) - 1
    return strata


def kept(n):
    """What a plan keeps of n samples, and the weights."""
    indices = (random(n, 1) < 0.4).nonzero().flatten()
    return indices, 1 / random(indices.numel(), 2).clamp_min(0.05)


def budgets(scores):
    n = scores.numel()
    rules = ((0.5, 0.1), (0.5, 0.9), (1.0, 0.5), (0.0, 0.3))
    return ((scores, alpha, float(round(ratio * n)), ratio / 5) for alpha, ratio in rules)


def plans(scores):
    n = scores.numel()
    cuts = [checked_strata("test", labels(number, n, torch.int64), n) for number in (3, 400)] if n else []
    for strata in [(None, None), *((cut.labels, cut.sizes) for cut in cuts)] if n else []:
        for alpha, ratio in ((0.5, 0.1), (1.0, 0.9), (0.0, 0.5)):
            yield scores, alpha, max(1, round(ratio * n)), ratio / 5, *strata, 1, 2


def lookups(x):
    n = x.numel()
    ids, weights = kept(n)
    yield ids.flip(0).contiguous(), ids, weights, torch.tensor(1.7), n
    yield ids, ids, weights[:1] if n else torch.ones(1), None, n
    yield torch.arange(n).flip(0).contiguous(), None, random(n, 4), torch.tensor(0.3), n


def calibrations(strata):
    """The last stratum has no sample."""
    n = strata.numel()
    indices, weights = kept(n)
    yield weights, indices, strata, torch.bincount(strata, minlength=2 + int(strata.max()) if n else 3)


def table_of(scores):
    """The scores and their marks."""
    return scores, (random(scores.numel(), 3) * 256).to(torch.uint8)


def stretches(x):
    n = x.numel()
    bounds = ((0, n), (n // 3, n // 2), (max(0, n - 1), n))
    return ((x[start:stop], n, start, 3, 4, SHUFFLE) for start, stop in bounds)


ONE = (torch.float32,)
SEEDS = ((5, 6), (2**63 - 1, 2**32 - 1))  # the largest seed and epoch too
ALL_BUT = 1 - 2.0**-33
SHARES = ((0.5, False, 5, 6), (1.0, True, 5, 7), (0.3, True, *SEEDS[1]), (0.001, True, 7, 3))
SHARES += ((2.0**-33, False, 3, 4), (ALL_BUT, False, *SEEDS[1]))
SPACINGS = ((1, 0.0), (12, 1.5), (1000, math.inf), (2**31 - 1, -math.inf), (12, 0.0), (1000, 1.5), (2**31 - 1, 0.0))
LABELS = ("1", "2", "10", "256", "257", "1000", "70001")
SHUFFLED = (torch.bool, torch.uint8, torch.int16, torch.bfloat16, *WIDE, torch.int64, torch.complex128)

# op: (function (kind, size, dtype), kinds, dtypes, function of what the first one made that yields arguments)
OPS = {
    "select": (testing.named_keys, testing.INPUTS, testing.FLOATS, lambda x: ((x, k) for k in testing.ranks(x.numel()))),
    "topk": (
        testing.named_keys,
        testing.INPUTS,
        testing.FLOATS,
        lambda x: itertools.product([x], testing.ranks(x.numel()), (True, False)),
    ),
    "check_range": (
        probabilities,
        ["mixed"],
        WIDE,
        lambda p: ((p, *rule) for rule in ((1.0, True), (1.0, False), (0.5, False), (0.0, False))),
    ),
    "draw": (
        probabilities,
        PROBABILITIES,
        WIDE,
        lambda p: ((p, count, *seeds) for seeds in SEEDS for count in (None, round(float(p.double().sum())))),
    ),
    "draw_weighted": (
        weights_of,
        WEIGHTS,
        ONE,
        lambda w: ((w, k, 5, 6, race) for k in testing.ranks(int((w > 0).sum())) for race in (False, True)),
    ),
    "draw_threshold": (scores_of, SCORES, WIDE, lambda x: ((x, *share) for share in SHARES)),
    "draw_spaced": (scores_of, SCORES, WIDE, lambda x: ((x, *spacing, 3, 2) for spacing in SPACINGS)),
    "finite_stats": (scores_of, SCORES, WIDE, lambda x: [(x,)]),
    "inclusion_budget": (scores_of, SCORES, WIDE, budgets),
    "plan_budget": (scores_of, SCORES, WIDE, plans),
    "compact_strata": (labels, LABELS, [torch.int64], lambda x: [(x,)]),
    "calibrate": (labels, LABELS, [torch.int32], calibrations),
    "calibrate ": (labels, LABELS[:4], [torch.uint8], calibrations),
    "inverse_at": (probabilities, ["uniform"], WIDE, lambda p: [(p + 0.01, kept(p.numel())[0])]),
    "plan_lookup": (scores_of, ["holes"], ONE, lookups),
    "scale_by_stratum": (
        labels,
        ["5"],
        [torch.int32],
        lambda x: [(random(x.numel()), x, torch.linspace(0.1, 3, 5, dtype=torch.float64))],
    ),
    "table_age": (scores_of, ["holes"], ONE, lambda x: ((*table_of(x), mean, 0.97) for mean in (0.123456789, None))),
    "count_nonfinite": (scores_of, ["holes"], ONE, lambda x: [table_of(x)]),
    "shuffle": (lambda _, n, dtype: (torch.arange(n) % 251).to(dtype), [""], SHUFFLED, lambda x: ((x, *s) for s in SEEDS)),
    "permute": (lambda _, n, dtype: torch.empty(n, dtype=dtype), [""], [torch.int64], stretches),
}
SIZED = {
    f"{op} {kind} {str(dtype)[6:]}": (
        op.strip(),
        lambda n, op=op, kind=kind, dtype=dtype: OPS[op][3](OPS[op][0](kind, n, dtype)),
    )
    for op, (_, kinds, dtypes, _) in OPS.items()
    for kind in kinds
    for dtype in dtypes
}
"""Name of an input: (op, function of a size that yields arguments)."""


# --- running a case ----------------------------------------------------------------------------------------------------


DOORS = {
    # The functions bring 16-bit keys to what the kernels of a GPU take.
    "select": stprune.select,
    "topk": lambda keys, k, is_sorted: stprune.topk(keys, k, sorted=is_sorted),
}
ON_A_GPU = ("select", "topk", "check_range", "finite_stats", "inclusion_budget", "draw", "draw_weighted", "draw_threshold")
ON_A_GPU += (
    "calibrate",
    "draw_spaced",
    "table_age",
    "count_nonfinite",
    "plan_budget",
    "shuffle",
    "permute",
    "draw_nodes",
    "draw_nodes_weighted",
    "draw_nodes_by_score",
    "keep_pairs",
    "gather_nodes",
    "gather_nodes_backward",
)


def inputs(name, sizes):
    """The op of an input's name and its arguments: for every size, or the special ones."""
    if name in SPECIAL:
        op, make = SPECIAL[name]
        return op, make()
    op, make = SIZED[name]
    return op, itertools.chain.from_iterable(make(n) for n in sizes)


def flat(value):
    """Every tensor in nested tuples and dicts, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    return [tensor for part in value for tensor in flat(part)] if isinstance(value, (tuple, list)) else []


def outcome(op, function, arguments):
    """What a function with an op's arguments returns, and what it makes of the tensors that the op writes to."""
    schema = getattr(torch.ops.stprune, op).default._schema.arguments
    written = [i for i in range(len(arguments)) if schema[i].alias_info is not None]
    given = [x.clone() if i in written else x for i, x in enumerate(arguments)]
    return [*flat(function(*given)), *(given[i] for i in written)]


def kernel(op):
    """The op as registered with torch, with its reference's arguments and results: fresh memory, and no number of results."""
    call = getattr(torch.ops.stprune, op).default
    buffers = [argument for argument in call._schema.arguments if argument.name.startswith("out")]
    drop = bool(buffers) and op not in ("permute", "plan_budget") and len(call._schema.returns) > len(buffers)

    def run(*arguments):
        results = call(*arguments, *[None] * (len(call._schema.arguments) - len(arguments)))
        return results[:-1] if drop else results

    return DOORS.get(op, run)


def on(device, value):
    """The same on a device, with its strides and its place in memory: windows of one series overlap there too."""
    if isinstance(value, torch.Tensor) and device != "cpu":
        whole = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage())
        return whole.to(device).as_strided(value.shape, value.stride(), value.storage_offset())
    if isinstance(value, dict):
        return {key: on(device, part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [on(device, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def assert_all_same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        testing.assert_same(one.cpu(), other)
