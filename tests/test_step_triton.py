"""The Triton kernels of a training step under Triton's interpreter: lookup, loss, scores into the table, and their launches."""

import pytest
import torch
from own_process import needs_triton, run
from torch.utils._python_dispatch import TorchDispatchMode

import stprune
from stprune.reference import plan_lookup as lookup_reference
from stprune.reference import table_update as reference

START = """
import contextlib
import math
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton_kernels import launches, load
from stprune.nodes.pair_table import PairTable
from stprune.reference import plan_lookup as lookup_reference
from stprune.reference import pruned_step as step_reference
from stprune.reference import table_update as table_reference
from stprune.reference.precision import accumulator

lookup, loss, table = load("plan_lookup"), load("pruned_loss"), load("table_update")
backward = load("pruned_loss_backward")
generator = torch.Generator().manual_seed(0)


def draw(*shape, dtype=torch.float32):
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)


def same(a, b):
    assert (a is None) == (b is None)
    if a is not None:
        assert a.dtype == b.dtype and torch.equal(a.nan_to_num(nan=-7.0), b.nan_to_num(nan=-7.0))


def table_of(n, *, variance=True, stored=True):
    scores = draw(n)
    scores[draw(n) < 0.2] = math.inf
    scores[draw(n) < 0.2] = math.nan
    marks = torch.randint(0, 16, (n,), generator=generator, dtype=torch.uint8)
    return [scores, marks, draw(n) if variance else None, torch.tensor([17, 0, 40, 0])] if stored else [
        None, None, None, torch.tensor([17, 0, 40, 0])
    ]


def copied(tensors):
    return [x.clone() if isinstance(x, torch.Tensor) else x for x in tensors]
"""

TABLE = (
    START
    + """
for width in (4, 128):
    lookup.WIDTH = width
    for ids in (
        torch.arange(0, 400, 2),
        torch.randperm(800, generator=generator)[:130].sort().values,
        torch.cat([torch.arange(50), torch.tensor([2**40]), 2**61 + torch.arange(79)]),
        torch.tensor([7]),
        torch.zeros(0, dtype=torch.int64),
    ):
        weights, order = draw(len(ids)), torch.randperm(len(ids), generator=generator)[:12]
        for mean in (None, torch.tensor(1.7)):
            for of_plan in (weights, torch.tensor([2.5])):
                found = lookup.plan_lookup(ids[order], ids, of_plan, mean, 2**62)
                same(found, lookup_reference.plan_lookup(ids[order], ids, of_plan, mean, 2**62))
            wrong = {-1, -(2**62), 2**62, *(i + d for i in ids[::30].tolist() for d in (-1, 1))} - set(ids.tolist())
            found = lookup.plan_lookup(torch.tensor(sorted(wrong)), ids, weights, mean, 2**62)
            assert bool(found.isnan().all())
    of_all = draw(10)
    assert lookup.plan_lookup(torch.tensor([9, -1, 0, 10]), None, of_all, None, 10).nan_to_num(-1.0).tolist() == [
        of_all[9], -1.0, of_all[0], -1.0
    ]
    try:
        lookup.plan_lookup(torch.tensor([0]), None, torch.ones(9), None, 10)
        raise SystemExit("weights of another plan were taken")
    except RuntimeError as error:
        assert "plan_weights must have one element or one for each of 10 ids" in str(error)

# In the blocks that are used, and in small ones.
SMALL, USED = (32, 32, 1), (table.BLOCK_ID, table.BLOCK_OTHER, table.OPTIONS["num_warps"])
for n, size, variance, stored, blocks in (
    (120, 150, 0, 1, USED),
    (1, 1, 1, 1, SMALL), (20, 40, 1, 1, SMALL), (99, 20, 0, 1, SMALL), (7, 0, 1, 1, SMALL), (9, 9, 0, 0, SMALL),
):
    table.BLOCK_ID, table.BLOCK_OTHER, table.OPTIONS["num_warps"] = blocks
    state = table_of(n, variance=variance, stored=stored)
    index = torch.randint(0, n, (size,), generator=generator)
    values = draw(size)
    values[::9], values[4::9] = math.nan, math.inf
    entries = torch.randint(0, 3, (size,), generator=generator)
    unknown = torch.where(index % 5 == 3, math.nan, draw(size))
    outside = index.clone()
    outside[3::8], outside[4::16] = n, -1
    for trained, of_batch, weight, ids in (
        (True, entries, None, index), (False, entries, None, index), (True, None, None, index),
        (True, entries, unknown, index), (True, None, unknown, outside), (False, None, None, outside - n),
        (True, None, None, outside),
    ):
        expected = copied(state)
        table_reference.update_known(*expected, ids, values, of_batch, weight, 0.3, trained)
        for table.COMPARED in (10**6, -1):  # by comparing, and by claims
            actual = copied(state)
            table.table_update(*actual, ids, values, of_batch, weight, 0.3, trained)
            for a, b in zip(actual, expected, strict=True):
                same(a, b)
# A batch of one id, and one whose ids all want one slot at first.
for index in (torch.zeros(40, dtype=torch.int64), torch.arange(40) * 2**32):
    results = []
    for table.COMPARED in (10**6, -1):
        state = [torch.zeros(41), torch.zeros(41, dtype=torch.uint8), None, torch.zeros(4, dtype=torch.int64)]
        table.table_update(*state, index, torch.arange(40.0), None, None, 0.0, True)
        results.append(state)
    for a, b in zip(*results, strict=True):
        same(a, b)
assert results[0][3].tolist() == [1, 0, 40, 39 * 2**32 + 1]
print("ok")
"""
)

STEP = (
    START
    + """
tiles = load("tiles")
tiles.CONFIGS, loss.BLOCK_STEP, loss.BLOCK_SAMPLE = ((8, 1), (16, 1)), 4, 2
table.BLOCK_ID, loss.BLOCK_ID, table.OPTIONS["num_warps"] = 32, 32, 1


class Watch(TorchDispatchMode):
    \"\"\"Notes what runs on the device: our launches, and torch's ops that are more than memory and views.\"\"\"

    def __init__(self):
        super().__init__()
        self.ours, self.torchs = 0, []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op._schema.name not in ("aten::empty", "aten::new_empty", "aten::empty_like") and not op.is_view:
            self.torchs.append(op._schema.name)
        return op(*args, **(kwargs or {}))


@contextlib.contextmanager
def watched():
    with launches() as ours, Watch() as watch:
        yield watch
    watch.ours = ours.count


def step(shape, dtype, extras, method, stored=True, wrong=False, loss_name=0):
    wide = accumulator(dtype)
    samples, columns = shape[0], math.prod(shape[2:])
    target = draw(*shape, dtype=torch.float64) * 3 + 5
    prediction = (target + draw(*shape, dtype=torch.float64) * 4 - 2).to(dtype)
    target[draw(*shape) < 0.2] = 0.0
    target[1] = 0.0
    target = target.to(dtype)
    mask = (draw(*shape) < 0.7) if extras else None
    extra = [x.to(wide) for x in (draw(7, 1, columns) + 0.5, draw(shape[1]), draw(samples, columns) + 0.5)]
    given = [prediction, target, mask, *(extra if extras else [None] * 3)]
    n = 60
    ids = torch.arange(0, n, 2) if method == "ids" else None
    index = torch.randint(0, n // 2, (samples,), generator=generator) * 2
    weights = torch.tensor([1.25]) if method == "one" else draw(n if ids is None else len(ids)) + 0.5
    plan = (ids, weights, torch.tensor(1.7) if extras else None, n)
    state = table_of(n, stored=stored)
    options = (0.3, 0.0, 0.0, loss_name, 0.75, 0.4, 0.7, extras)
    if wrong:
        index[2], index[3] = 1, -5
    tiles.null_bounds(0.0, 0.0, dtype)  # on the host, once for all steps
    results = []
    for table.COMPARED in (10**6, -1):
        copy = copied(state)
        with watched() as watch:
            outputs = loss.pruned_step(*given, index, *plan, *copy, *options)
        assert (watch.ours, watch.torchs) == (3, []), (watch.ours, watch.torchs)
        results.append([*outputs, *copy])
    for a, b in zip(*results, strict=True):
        same(a, b)
    value, weight, count, column_mean, *after = results[0]
    if wrong:
        assert bool(value.isnan()) and weight.isnan().nonzero().flatten().tolist() == [2, 3]
        expected = copied(state)
        score = loss.pruned_loss(*given[:3], weight, *given[3:], *options[1:])[2][2].float()
        table_reference.update_known(*expected, index, score, count[:-1], weight.float(), 0.3, True)
        for a, b in zip(after, expected, strict=True):
            same(a, b)
        assert after[3][3] == -5
        return
    expected = copied(state)
    outputs = step_reference.pruned_step(*given, index, *plan, *expected, *options)
    same(weight, outputs[1])
    near = 1e-11 if dtype == torch.float64 else 3e-6
    for a, b in zip(results[0], [*outputs, *expected], strict=True):
        if a is not None:
            torch.testing.assert_close(a, b, rtol=near, atol=near, equal_nan=True)
    of_value = torch.tensor(0.7, dtype=wide)
    with watched() as watch:
        backward.pruned_loss_backward(
            of_value, None, prediction, target, mask, weight, *given[3:], *options[1:5], count, False
        )
    assert (watch.ours, watch.torchs) == (1, []), (watch.ours, watch.torchs)


step((6, 5, 21), torch.float32, False, "ids")
step((6, 3, 7), torch.bfloat16, True, "ids")
step((6, 3, 7), torch.float64, True, "all", loss_name=2)
step((6, 3, 7, 2), torch.float32, False, "one")
step((6, 3, 7), torch.float32, True, "ids", stored=False)
step((6, 3, 7), torch.float32, False, "ids", wrong=True)
ids, index, weights, state, table.COMPARED = torch.arange(9), torch.tensor([3]), torch.ones(9), table_of(9), 10
with watched() as watch:
    weight = lookup.plan_lookup(index, ids, weights, weights[:1], 9)
    table.table_update(*state, index, weights[:1], None, weight, 0.3, True)
assert (watch.ours, watch.torchs) == (2, [])
cut, draws = load("gather_windows"), load("draw_nodes")
x, y, series, index = torch.empty(3, 4, 2, 1), torch.empty(3, 2, 2, 1), draw(20, 9, 1), torch.arange(3)
with watched() as watch:
    node = draws.draw_nodes(index, 9, 2, 1, 2)
    cut.gather_windows(series, index, node, *[None] * 7, [0], False, True, x, y)
assert (watch.ours, watch.torchs) == (2, [])
for storage in ("float32", "bfloat16", "int8"):
    pairs = PairTable(3, 9, storage=storage)
    score, *kept = torch.ones(3, 2), torch.zeros(3, 2, dtype=torch.int32), torch.zeros(3, 2), torch.zeros(3, dtype=torch.bool)
    with watched() as watch:
        node, _ = draws.draw_nodes_by_score(*pairs.columns, index, 9, 2, 0.25, 1, 2)
        load("keep_pairs").keep_pairs(index, node, score, *kept)
    assert (watch.ours, watch.torchs) == (2, []), (watch.ours, watch.torchs)
print("ok")
"""
)
LAUNCHES = {
    "gather_windows": 1,
    "draw_nodes": 1,
    "draw_nodes_by_score": 1,
    "keep_pairs": 1,
    "pruned_step": 3,
    "pruned_loss_backward": 1,
    "plan_lookup": 1,
    "table_update": 1,
}
"""Of each op, as the two scripts count them."""


@needs_triton
def test_lookup_and_update_are_the_reference_bit_for_bit() -> None:
    assert run(TABLE, TRITON_INTERPRET="1").strip() == "ok"


@needs_triton
def test_a_step_is_the_reference_in_three_launches_and_one_back() -> None:
    assert run(STEP, TRITON_INTERPRET="1").strip() == "ok"


class Ops(TorchDispatchMode):
    """Notes the ops that do something on the device."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        on_host = args and isinstance(args[0], torch.Tensor) and args[0].is_cpu and "copy" not in op._schema.name
        if op._schema.name != "aten::empty" and not op.is_view and not on_host:
            self.names.append(op._schema.name.removeprefix("stprune::"))
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("drawn", [None, "uniform", "float32", "bfloat16", "int8"])
def test_a_step_of_training_takes_six_launches_or_seven_and_waits_for_nothing(drawn) -> None:  # type: ignore[no-untyped-def]
    """On torch's device without memory, where whatever asks for a value is an error, as what waits for a GPU would be.

    Nodes drawn by error, whose table has the storage, take one more: their errors are kept until the epoch ends.
    """
    by_error = drawn not in (None, "uniform")
    law = stprune.Priority(storage=drawn) if by_error else "uniform"
    sampler = stprune.PruningSampler(300, num_epochs=4, num_nodes=33, node_ratio=0.3 if drawn else 1.0, node_sampler=law)
    sampler.set_epoch(1)
    sampler.to("meta")
    series = torch.rand(323, 33, 1, device="meta")
    loader = iter(stprune.WindowLoader(series, sampler, batch_size=16))
    criterion = stprune.PrunedLoss(sampler, null_value=0.0, mean=1.0, std=2.0, horizon_weights=torch.ones(12))
    for _ in range(2):  # what the first one finds out is remembered
        with Ops() as cut:
            index, *node, x, y = next(loader)
        prediction = x[..., :1].requires_grad_()
        with Ops() as forward:
            value = criterion(prediction, y, index, *node)
    one = torch.ones_like(value)
    with Ops() as back:
        torch.autograd.grad(value, prediction, one)
    kept = ["keep_pairs"] * by_error
    assert cut.names == [*["draw_nodes_by_score" if by_error else "draw_nodes"] * (drawn is not None), "gather_windows"]
    assert forward.names == ["pruned_step", *kept]
    assert back.names == ["pruned_loss_backward"]
    assert (
        sum(LAUNCHES.get(name, 0) for name in (*cut.names, *forward.names, *back.names)) == 5 + (drawn is not None) + by_error
    )
    values = torch.rand(16, x.shape[2], device="meta", requires_grad=True)
    with Ops() as mean:
        stprune.PrunedMean(sampler)(values, index, *node)
    assert mean.names == ["plan_lookup", *["aten::mul"] * (1 + by_error), "aten::mean", "aten::mean", "table_update", *kept]


# on a GPU -------------------------------------------------------------------------------------------------

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def on_gpu(tensors):  # type: ignore[no-untyped-def]
    return [x.cuda() if isinstance(x, torch.Tensor) else x for x in tensors]


@gpu
@needs_triton
@pytest.mark.parametrize("size", [64, 1024, 1025, 16_384])
def test_gpu_lookup_and_update_are_the_reference_bit_for_bit(size: int) -> None:
    g = torch.Generator().manual_seed(size)
    n = 3 * size
    scores = torch.rand(n, generator=g).masked_fill(torch.rand(n, generator=g) < 0.2, torch.inf)
    table = [scores, torch.zeros(n, dtype=torch.uint8), torch.rand(n, generator=g), torch.tensor([3, 0, 5, 0])]
    index = torch.randint(-1, n + 1, (size,), generator=g)
    ids = torch.randperm(n, generator=g)[: n // 2].sort().values
    plan = (ids, torch.rand(len(ids), generator=g) + 0.5, torch.tensor(1.7), n)
    weight = torch.full((size,), torch.nan)
    known = torch.isin(index, ids)
    weight[known] = lookup_reference.plan_lookup(index[known], *plan)
    found = torch.ops.stprune.plan_lookup(index.cuda(), *on_gpu(plan))
    torch.testing.assert_close(found.cpu(), weight, rtol=0, atol=0, equal_nan=True)
    batch = (index, torch.rand(size, generator=g), torch.randint(0, 3, (size,), generator=g), weight)
    ours = on_gpu(table)
    torch.ops.stprune.table_update(*ours, *on_gpu(batch), 0.3, True)
    reference.update_known(*table, *batch, 0.3, True)
    for a, b in zip(ours, table, strict=True):
        assert torch.equal(a.cpu(), b)


@gpu
@pytest.mark.parametrize("wrong", [10**12, -1, "not in the plan"])
@pytest.mark.parametrize("kind", [stprune.PrunedLoss, stprune.PrunedMean])
def test_gpu_a_wrong_id_makes_the_loss_nan_is_not_stored_and_is_told(kind, wrong) -> None:  # type: ignore[no-untyped-def]
    sampler = stprune.PruningSampler(40, num_epochs=4, keep_ratio=0.5, method="top-k")  # keeps the upper half
    sampler.update(torch.arange(40), torch.arange(40.0))
    sampler.set_epoch(1)
    criterion, before = kind(sampler), sampler.table.scores.clone()
    wrong = 3 if wrong == "not in the plan" else wrong
    index = torch.tensor([30, wrong, 31], device="cuda")
    values = torch.rand(3, 2, 5, device="cuda", requires_grad=True)
    call = (values, torch.zeros_like(values)) if kind is stprune.PrunedLoss else (values,)
    assert bool(criterion(*call, index).isnan())
    torch.cuda.synchronize()
    after = sampler.table.scores.cpu()
    assert (after != before).nonzero().flatten().tolist() == [30, 31]
    with pytest.raises(ValueError, match=f"index must hold ids of .*, got {wrong} in a batch on cuda"):
        sampler.state_dict()
    index[1] = 32
    assert bool(criterion(*call, index).isfinite())
    assert sampler.state_dict()["position"] == 3
