"""The Triton kernels of the loss and the table: their results under Triton's interpreter, and that they compile for GPUs."""

import math
import pathlib

import pytest
import torch
from own_process import needs_triton, run

import stprune
from stprune.reference import pruned_loss as reference
from stprune.reference.precision import accumulator

# In a process of its own: TRITON_INTERPRET must be set before the kernels are imported, and is not undone.
INTERPRETED = """
import math
import torch
from triton_kernels import load
from stprune.reference import pruned_loss as reference
from stprune.reference.precision import accumulator

kernel, backward, tiles = load("pruned_loss"), load("pruned_loss_backward"), load("tiles")
LOSSES = reference.LOSSES

generator = torch.Generator().manual_seed(0)
assert [tiles.config_of(n, heavy=False)[0] for n in (1, 128, 129, 512, 1024, 8600)] == [128, 128, 256, 512, 1024, 1024]
tiles.CONFIGS, kernel.BLOCK_STEP, kernel.BLOCK_SAMPLE = ((8, 1), (16, 1)), 4, 2


def draw(*shape):
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def check(shape, dtype, loss, masked, extras, null_value, permuted=False, other=None, tolerance=0.0):
    wide = accumulator(dtype)
    target = draw(*shape) * 3 + 5
    prediction = target + draw(*shape) * 4 - 2
    target[draw(*shape) < 0.2] = 0.0
    mask = draw(*shape) < 0.7
    mask[0] = False
    prediction[~mask] = math.nan if masked else 1.0
    prediction, target = prediction.to(dtype), target.to(other or dtype)
    if permuted:
        prediction = prediction.transpose(1, 2).contiguous().transpose(1, 2)
        target = target.transpose(0, 1).contiguous().transpose(0, 1)
    columns = math.prod(shape[2:])
    affine = draw(5 if masked else 7, 1, columns) + 0.5
    affine[5:6] *= 4.0  # bounds between which some of the targets lie
    affine[6:] = affine[5:6] + 1.0
    extra = (draw(shape[0]), affine, draw(shape[1]), draw(shape[0], columns) + 0.5)
    parameter = {"huber": 0.8, "mape": 4.0, "quantile": 0.3}.get(loss, 1.0)
    arguments = (prediction, target, mask if masked else None)
    arguments += tuple(x.to(wide) if extras else None for x in extra)
    arguments += (null_value, tolerance, LOSSES.index(loss), parameter)
    actual = kernel.pruned_loss(*arguments, 0.4, 0.7, extras)
    expected = reference.pruned_loss(*arguments, 0.4, 0.7, extras)
    near = 1e-11 if dtype == torch.float64 else 3e-6
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=near, atol=near, equal_nan=True)
    ones = (*arguments[:6], torch.ones(shape[0], columns, dtype=wide), *arguments[7:])
    if not extras:  # column weights of 1 change no bit
        again = kernel.pruned_loss(*ones, 0.4, 0.7, False)
        assert all(torch.equal(a, b) for a, b in zip(actual, again, strict=True))
    count = expected[3]
    of_value, of_loss = torch.tensor(0.7, dtype=wide), draw(shape[0]).to(wide)
    for pair in ((of_value, None), (of_value, of_loss)):
        grads = backward.pruned_loss_backward(*pair, *arguments, count, True)
        wanted = reference.pruned_loss_backward(*pair, *arguments, count, True)
        near = {torch.float64: 1e-11, torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
        for a, b in zip(grads, wanted, strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=near, atol=1e-11 if dtype == torch.float64 else 1e-6)
        if not extras:
            again = backward.pruned_loss_backward(*pair, *ones, count, True)
            assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))


for loss in LOSSES:
    check((2, 3, 21), torch.float32, loss, True, True, 0.0)
    check((2, 5, 7), torch.float64, loss, False, False, None)
    check((2, 3, 9, 2), torch.bfloat16, loss, False, True, 0.0, permuted=True)
check((3, 40, 5), torch.float32, "mae", False, False, 0.0)  # tall
check((3, 4, 5), torch.float32, "mae", False, False, math.nan)
check((3, 4, 5), torch.float32, "mae", False, False, 6.0, tolerance=0.8)
check((2, 3, 5, 3), torch.float16, "huber", True, False, None, permuted=True)
check((2, 3, 20), torch.bfloat16, "mae", True, False, 0.0, other=torch.float32)
check((2, 3), torch.float32, "mse", True, True, 0.0)
for shape in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
    empty = torch.zeros(shape)
    arguments = (empty, empty, None, None, None, None, None, None, 0.0, 0, 1.0)
    *results, means = kernel.pruned_loss(*arguments, 0.5, 0.5, True)
    assert results[0] == 0.0 and means.shape == (shape[0], shape[2]) and bool(means.isnan().all())
    count = torch.zeros(shape[0] + 1, dtype=torch.int64)
    assert backward.pruned_loss_backward(torch.ones(()), None, *arguments, count, False)[0].shape == shape

print("ok")
"""

COMPILED = """
from triton_kernels import assembly, load

loss, backward, tiles = map(load, ("pruned_loss", "pruned_loss_backward", "tiles"))
table, lookup = map(load, ("table_update", "plan_lookup"))
TYPES = dict.fromkeys(("rows", "spreads", "sums"), "*fp64") | dict.fromkeys(("claims", "slot_of"), "*i32")
TYPES |= dict.fromkeys(("count", "index", "entries", "of_samples", "plan_ids"), "*i64")
TYPES |= dict.fromkeys(("scores", "variance", "plan_weights", "mean_weight"), "*fp32") | {"marks": "*u8"}
TYPES |= {"beta": "fp32", "one_minus_beta": "fp32", "weight_step": "i64", "plan_size": "i64"}


def compile_for_all(function, constants, pointers, num_warps, **options):
    strides = [name for name in function.arg_names if name.split("_")[0] in ("p", "t", "m", "gp", "gt", "affine")]
    return assembly(
        function, {**dict.fromkeys(strides, "i64"), **TYPES, **pointers}, constants, num_warps=num_warps, **options
    )


def flags(*names, value):
    return dict.fromkeys(names, value)


PLAN, TABLE = ("HAS_IDS", "HAS_MEAN"), ("STORED", "HAS_VARIANCE", "HAS_ENTRIES", "HAS_WEIGHT", "IS_TRAINED")
BLOCKS = {"BLOCK_ID": table.BLOCK_ID, "BLOCK_OTHER": table.BLOCK_OTHER}
for dtype, wide in (("fp32", False), ("bf16", False), ("fp64", True)):
    of = "*fp64" if wide else "*fp32"
    pointers = {"prediction": "*" + dtype, "target": "*" + dtype, "mask": "*i1", "affine": of, "horizon": of, "weight": of}
    pointers |= {"column_weight": of, "column_mean": of, "of_batch": of, "values": of}
    pointers |= {"grad_value": of, "grad_loss": of, "grad_prediction": "*" + dtype, "grad_target": "*" + dtype}
    pointers |= {"loss": of, "statistics": of, "value": of}
    for code in (0, 3):
        every = code == 3
        constants = {"LOSS": code, "HAS_NULL": True, "WIDE": wide}
        constants |= flags("HAS_MASK", "HAS_AFFINE", "HAS_BOUNDS", "HAS_COLUMN", value=every)
        for width, _ in tiles.CONFIGS if (dtype, every) == ("fp32", True) else tiles.CONFIGS[-1:]:
            block, warps = tiles.config_of(width, heavy=every or wide)
            tile = {**constants, "TALL": every, "BLOCK_COLUMN": block, "COLUMNS": every, "CLAIMED": every, "SLOTS": table.SLOTS}
            tile["ROW"] = 4 if every else 3
            compile_for_all(tiles.tile_kernel, tile, pointers, warps)
            given = flags("HAS_HORIZON", "HAS_VALUE", "HAS_LOSS", "HAS_WEIGHT", "TARGET_TOO", value=True)
            compile_for_all(backward._backward_kernel, {**constants, **given, "BLOCK_COLUMN": block}, pointers, warps)
    for every in (True, False):
        sample = flags("HAS_SPATIAL", "HAS_TEMPORAL", "HAS_HORIZON", "HAS_PLAN", "CLAIMED", *PLAN, value=every)
        sample |= {"WIDTH": lookup.WIDTH, "SLOTS": table.SLOTS, "ROW": 4 if every else 3, "BLOCK_STEP": loss.BLOCK_STEP}
        compile_for_all(loss._sample_kernel, sample, pointers, 1)
        batch = flags("WEIGHTED", "HAS_TABLE", "CLAIMED", *TABLE, value=every)
        batch |= {"BLOCK_SAMPLE": loss.BLOCK_SAMPLE, **BLOCKS}
        compile_for_all(loss._batch_kernel, batch, pointers, **table.OPTIONS)
# Numbers that are 1 are no arguments to Triton but constants.
ones = {name: 1 for name in tiles.tile_kernel.arg_names if name.startswith("num_") or name == "inner"}
compile_for_all(tiles.tile_kernel, {**tile, **ones}, pointers, 4, capabilities=(90,))
ones = {name: 1 for name in ("num_samples", "num_steps", "num_tiles", "plan_size")}
sample |= {**flags("HAS_PLAN", "HAS_IDS", "CLAIMED", value=True), **ones}
compile_for_all(loss._sample_kernel, sample, pointers, 1, capabilities=(90,))
batch |= {**flags("HAS_TABLE", "STORED", value=True), "num_samples": 1, "size": 1}
compile_for_all(loss._batch_kernel, batch, pointers, **table.OPTIONS, capabilities=(90,))
pointers = {"values": "*fp32", "weight": "*fp32"}
for flag in (True, False):
    update = {**flags("CLAIMED", *TABLE, value=flag), "STORED": True, **BLOCKS}
    for text in compile_for_all(table._table_update_kernel, update, pointers, **table.OPTIONS):
        assert "fma" not in text  # one rounding for each operation, as on the CPU
    plan = {**flags(*PLAN, value=flag), "WIDTH": lookup.WIDTH}
    for text in compile_for_all(lookup._plan_lookup_kernel, plan, pointers, 1):
        assert not flag or "div.rn.f32" in text
compile_for_all(table._claim_kernel, {}, {}, 1)
"""


@needs_triton
def test_match_the_reference_in_the_interpreter() -> None:
    assert run(INTERPRETED, TRITON_INTERPRET="1").strip() == "ok"


@needs_triton
def test_compile_ahead_of_time(tmp_path: pathlib.Path) -> None:
    assert len(run(COMPILED, TRITON_CACHE_DIR=str(tmp_path)).splitlines()) == 3 * (2 * (3 + 6) + 3 * 4 + 5) + 3


# on a GPU -------------------------------------------------------------------------------------------------

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


# Every loss in float32 and every dtype once; all shapes for one, as each takes kernels of its own to compile.
COMBINATIONS = [(torch.float32, loss) for loss in ("mae", "mse", "huber", "mape", "quantile")]
COMBINATIONS += [(torch.bfloat16, "mae"), (torch.float16, "huber"), (torch.float64, "mape")]


@gpu
@needs_triton
@pytest.mark.parametrize(("dtype", "loss"), COMBINATIONS, ids=str)
def test_gpu_matches_the_reference(dtype: torch.dtype, loss: str) -> None:
    first = (dtype, loss) == COMBINATIONS[0]
    parameter = {"huber": 0.8, "mape": 4.0, "quantile": 0.3}.get(loss, 1.0)
    wide = accumulator(dtype)
    tolerance = 1e-11 if dtype == torch.float64 else 1e-5
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 12, 170), *(((2, 12, 8600), (2, 12, 300, 3), (3, 40, 700), (4, 12, 1)) if first else ())):
        columns = math.prod(shape[2:])
        target = torch.rand(shape, generator=generator) * 3 + 5
        prediction = (target + torch.rand(shape, generator=generator) * 4 - 2).to(dtype)
        target = target.masked_fill(torch.rand(shape, generator=generator) < 0.2, 0.0).to(dtype)
        sizes = ((shape[0],), (5, 1, columns), (shape[1],), (shape[0], columns))
        extra = [(torch.rand(size, generator=generator) + 0.5).to(wide) for size in sizes]
        for extras in (False, True) if first else (True,):
            given = [prediction, target, None, *(extra if extras else [None] * 4)]
            on_gpu = [None if x is None else x.cuda() for x in given]
            rest = (0.0, 0.0, reference.LOSSES.index(loss), parameter)
            actual = torch.ops.stprune.pruned_loss(*on_gpu, *rest, 0.4, 0.7, True)
            expected = reference.pruned_loss(*given, *rest, 0.4, 0.7, True)
            for a, b in zip(actual, expected, strict=True):
                torch.testing.assert_close(a.cpu(), b, rtol=tolerance, atol=tolerance, equal_nan=True)
            again = torch.ops.stprune.pruned_loss(*on_gpu, *rest, 0.4, 0.7, True)
            assert all(torch.equal(a.nan_to_num(-1.0), b.nan_to_num(-1.0)) for a, b in zip(actual, again, strict=True))
            of_value = torch.tensor(0.7, dtype=wide)
            grads = torch.ops.stprune.pruned_loss_backward(of_value.cuda(), None, *on_gpu, *rest, actual[3], True)
            wanted = reference.pruned_loss_backward(of_value, None, *given, *rest, expected[3], True)
            rough = {torch.bfloat16: 1e-2, torch.float16: 2e-3}.get(dtype, tolerance)
            for a, b in zip(grads, wanted, strict=True):
                torch.testing.assert_close(a.cpu(), b, rtol=rough, atol=1e-11 if dtype == torch.float64 else 1e-6)


@gpu
@needs_triton
def test_gpu_step_runs_as_a_cuda_graph() -> None:
    """Forward, loss, table update and backward, captured once and replayed on new data, are the eager step."""
    results = []
    for captured in (False, True):
        generator = torch.Generator().manual_seed(0)
        sampler = stprune.PruningSampler(64, num_epochs=2).to("cuda")
        criterion = stprune.PrunedLoss(sampler, null_value=0.0)
        weight = torch.randn(32, 32, generator=generator).cuda().requires_grad_()
        batches = [[torch.randn(8, 12, 32, generator=generator).cuda() for _ in range(2)] for _ in range(3)]
        ids = [torch.arange(8 * i, 8 * i + 8).cuda() for i in range(3)]
        x, y = (part.clone() for part in batches[0])
        index = ids[0].clone()

        def step(x=x, y=y, index=index, weight=weight, criterion=criterion):  # type: ignore[no-untyped-def]
            weight.grad = None
            loss = criterion(x @ weight, y, index)
            loss.backward()
            return loss

        losses = []
        run = step
        if captured:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                step()  # compiles the kernels
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                static = step()

            def run(graph=graph, static=static):  # type: ignore[no-untyped-def,misc]
                graph.replay()
                return static

        for batch, batch_ids in zip(batches, ids, strict=True):
            for to, source in zip((x, y, index), (*batch, batch_ids), strict=True):
                to.copy_(source)
            losses.append(run().detach().clone())  # type: ignore[no-untyped-call]
            losses.append(weight.grad.clone())
        results.append([*losses, sampler.table.scores[:24].clone()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
