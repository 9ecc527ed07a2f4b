"""A step of training by one op: what it stands for, plans and tables, its errors, and a second pass over a batch."""

import contextlib
import importlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import stprune
from stprune.ops.pruned_step import composed
from stprune.reference import pruned_step as reference
from stprune.reference.precision import accumulator
from stprune.testing import isa, isas

NAN = float("nan")
INF = float("inf")
OP = torch.ops.stprune.pruned_step.default
PAIRS = [(d, d) for d in (torch.float32, torch.float64, torch.bfloat16, torch.float16)]
PAIRS += [(torch.bfloat16, torch.float32), (torch.float16, torch.float32)]


def batch(shape=(5, 12, 37), dtypes=PAIRS[0], seed=0):
    """prediction, target with missing entries, and a mask."""
    g = torch.Generator().manual_seed(seed)
    target = torch.randn(shape, generator=g) * 3 + 10
    prediction = (target + torch.randn(shape, generator=g)).to(dtypes[0]).requires_grad_()
    target = target.masked_fill(torch.rand(shape, generator=g) < 0.2, 0.0).masked_fill(
        torch.rand(shape, generator=g) < 0.1, NAN
    )
    return prediction, target.to(dtypes[1]), torch.rand(shape, generator=g) < 0.7


def sampler(method="st-prune", epoch=1, size=40, **options):
    """One whose plan holds some samples at unequal weights."""
    made = stprune.PruningSampler(size, num_epochs=4, keep_ratio=0.5, method=method, **options)
    made.update(torch.arange(size), torch.rand(size, generator=torch.Generator().manual_seed(7)))
    made.set_epoch(epoch)
    return made


def copied(arguments):
    return [x.clone() if isinstance(x, torch.Tensor) else x for x in arguments]


def state(made):
    table = made.table
    return [table.scores, table.columns[1] & 15, table.variance, torch.tensor(table.num_trained)]


def assert_same_bits(results):
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.nan_to_num(nan=-7.0), b.nan_to_num(nan=-7.0))


# what it stands for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", range(5))
@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
@pytest.mark.parametrize("extras", [False, True])
def test_the_step_is_lookup_loss_and_update(dtypes, loss, extras):
    """Bit for bit the compiled parts, and within rounding the reference."""
    prediction, target, mask = batch(dtypes=dtypes)
    wide = accumulator(dtypes[0])
    given = [prediction.detach(), target, None, None, None, None]
    if extras:
        g = torch.Generator().manual_seed(3)
        affine = torch.rand(7, 1, 37, generator=g) + 0.5
        affine[5:] *= 8.0  # bounds between which some of the targets lie
        given[2:] = [mask, *(x.to(wide) for x in (affine, torch.rand(12, generator=g), torch.rand(5, 37, generator=g)))]
    for method in ("full", "soft-random", "infobatch", "ucb"):
        made = sampler(method)
        index = made.plan.indices[:5].flip(0)
        options = (0.0, 0.0, loss, 0.8, 0.5, 0.4, extras)
        plan_and_table = made.running.step_arguments(per_step=True)
        results = []
        for run in (OP, composed, reference.pruned_step):
            arguments = copied(plan_and_table)
            outputs = run(*given, index, *arguments, *options)
            results.append([*outputs, *(x for x in arguments[4:8] if x is not None)])
            results[-1][5] &= 15  # the other bits of the marks, and count[1], are the kernel's own
            results[-1][-1][1] = 0
        assert_same_bits(results[:2])
        for a, b in zip(results[0], results[2], strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("kind", ["even", "random", "clumped", "one"])
@pytest.mark.parametrize("mean", [None, 1.7])
def test_weights_are_looked_up_whatever_lies_between_the_kept_ids(kind, mean):
    g = torch.Generator().manual_seed(0)
    ids = {
        "even": torch.arange(0, 10_000, 2),
        "random": torch.randperm(20_000, generator=g)[:5000].sort().values,
        # Interpolation guesses badly.
        "clumped": torch.cat([torch.arange(2500), torch.tensor([2**40]), 2**61 + torch.arange(2500)]),
        "one": torch.tensor([7]),
    }[kind]
    weights = torch.rand(ids.numel(), generator=g)
    order = torch.randperm(ids.numel(), generator=g)
    mean = None if mean is None else torch.tensor(mean)
    expected = weights[order] if mean is None else weights[order] / mean
    for run in (OP, reference.pruned_step):
        assert torch.equal(looked_up(run, ids[order], ids, weights, mean), expected)
        known = set(ids.tolist())
        for bad in {-1, -(2**62), 2**62, *(i + d for i in ids[::97].tolist() for d in (-1, 1))} - known:
            with pytest.raises(RuntimeError, match=r"pruned_step: index must (hold ids of the plan|lie in .*), got"):
                looked_up(run, torch.tensor([int(ids[0]), bad]), ids, weights, mean)


def looked_up(run, index, ids, weights, mean, num_samples=2**62):
    empty = torch.zeros(index.numel(), 1)
    count = torch.zeros(4, dtype=torch.int64)
    plan_and_table = (ids, weights, mean, num_samples, None, None, None, count, 0.5)
    return run(empty, empty, *[None] * 4, index, *plan_and_table, None, 0.0, 0, 1.0, 0.0, 0.0, False)[1]


def test_a_plan_of_all_needs_no_ids():
    for run in (OP, reference.pruned_step):
        one, all_of_them = torch.tensor([2.0]), torch.arange(10.0)
        assert looked_up(run, torch.tensor([9, 0]), None, one, None, 10).tolist() == [2.0, 2.0]
        assert looked_up(run, torch.tensor([9, 0]), None, all_of_them, None, 10).tolist() == [9.0, 0.0]
        assert looked_up(run, torch.zeros(0, dtype=torch.int64), None, one, None, 10).shape == (0,)
        for bad in (-1, 10):
            with pytest.raises(RuntimeError, match="got"):
                looked_up(run, torch.tensor([bad]), None, one, None, 10)
        with pytest.raises(RuntimeError, match="index must hold ids of the plan, got 0"):
            looked_up(run, torch.tensor([0]), torch.zeros(0, dtype=torch.int64), torch.ones(0), None, 10)
        with pytest.raises(RuntimeError, match="plan_weights must have one element or one for each of 10 ids"):
            looked_up(run, torch.tensor([0]), None, torch.ones(9), None, 10)


def test_what_a_gpu_does_with_a_batch_of_no_entries_and_with_one_that_does_not_fit():
    """The kernels are launched for neither; tests/test_step_triton.py has the others."""
    cuda = importlib.import_module("stprune.ops.pruned_step")._cuda
    index = torch.arange(2)
    results = []
    for run in (cuda, OP):
        arguments = copied(sampler("full").running.step_arguments(per_step=True))
        empty = torch.zeros(2, 0, 3)
        outputs = run(empty, empty, *[None] * 4, index, *arguments, None, 0.0, 0, 1.0, 0.5, 0.5, True)
        results.append([*outputs, *(x for x in arguments[4:8] if x is not None)])
        results[-1][5] &= 15
        results[-1][-1][1] = 0
    assert_same_bits(results)
    with pytest.raises(RuntimeError, match="pruned_step: prediction, target, mask and index must fit each other"):
        cuda(torch.zeros(2, 1), torch.zeros(2, 2), *[None] * 4, index, *arguments, None, 0.0, 0, 1.0, 0.5, 0.5, True)


def test_opcheck():
    for method in ("full", "ucb"):
        prediction, target, mask = batch()
        made = sampler(method)
        inputs = (prediction.detach(), target, mask, torch.rand(7, 1, 37), torch.rand(12), torch.rand(5, 37))
        index = made.plan.indices[:5]
        # Copies, as opcheck tests the op on the table itself several times.
        arguments = copied(made.running.step_arguments(per_step=True))
        torch.library.opcheck(OP, (*inputs, index, *arguments, 0.0, 0.1, 2, 1.5, 0.5, 0.5, False))


# through PrunedLoss ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [False, True])
def test_a_compiled_step_gives_the_bits_of_the_eager_one(nodes):
    results = []
    for compiled in (False, True):
        torch.compiler.reset()
        made = sampler(num_nodes=40, node_ratio=37 / 40 if nodes else 1.0, node_sampler="priority" if nodes else "uniform")
        criterion = stprune.PrunedLoss(made, null_value=0.0, mean=torch.arange(40.0) if nodes else 1.0, std=2.0)
        step = torch.compile(criterion, backend="aot_eager", fullgraph=True) if compiled else criterion
        prediction, target, _ = batch()
        index = made.plan.indices[:5]
        node = made.nodes(index) if nodes else None
        value = step(prediction, target, index, node)
        value.backward()
        made.set_epoch(2)
        results.append([value.detach(), prediction.grad, *state(made), made.nodes(torch.arange(40))])
    assert_same_bits(results)


def test_same_bits_for_any_number_of_threads_and_instruction_set(threads):
    results = []
    for name in isas() or [""]:
        for count in (1, 2, 3):
            threads(count)
            with isa(name) if name else contextlib.nullcontext():
                made = sampler()
                prediction, target, _ = batch((5, 12, 5000))
                value = stprune.PrunedLoss(made, null_value=0.0)(prediction, target, made.plan.indices[:5])
                value.backward()
                results.append([value.detach(), prediction.grad, *state(made)])
    for other in results[1:]:
        assert_same_bits([results[0], other])


def test_gradients_accumulate_and_a_graph_can_be_kept():
    prediction, target, _ = batch()
    made = sampler()
    value = stprune.PrunedLoss(made, null_value=0.0)(prediction, target, made.plan.indices[:5])
    value.backward(retain_graph=True)
    once = prediction.grad.clone()
    value.backward()
    assert torch.equal(prediction.grad, 2 * once)


def test_the_gradient_of_the_target():
    prediction, target, _ = batch((5, 12, 37), (torch.float64, torch.float64))
    target = target.nan_to_num(nan=3.0)
    made = sampler()
    index = made.plan.indices[:5]
    criterion = stprune.PrunedLoss(made, loss="huber")
    of_target = torch.autograd.grad(criterion(prediction.detach(), target.requires_grad_(), index), target)[0]
    of_prediction = torch.autograd.grad(criterion(prediction, target.detach(), index), prediction)[0]
    assert torch.equal(of_target, -of_prediction)


def test_an_input_changed_before_backward_is_noticed():
    prediction, target, _ = batch()
    made = sampler()
    inner = prediction * 1.0
    value = stprune.PrunedLoss(made)(inner, target, made.plan.indices[:5])
    with torch.no_grad():
        inner.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_ids_that_do_not_lie_side_by_side():
    prediction, target, _ = batch()
    made, other = sampler(), sampler()
    index = made.plan.indices[:10:2]
    assert not index.is_contiguous()
    value = stprune.PrunedLoss(made, null_value=0.0)(prediction, target, index)
    expected = stprune.PrunedLoss(other, null_value=0.0)(prediction, target, index.clone())
    assert torch.equal(value, expected)
    assert_same_bits([state(made), state(other)])


def test_a_repeated_id_is_scored_by_its_last_sample():
    prediction, target, _ = batch()
    made, other = sampler(), sampler()
    a, b = made.plan.indices[:2].tolist()
    stprune.PrunedLoss(made, null_value=0.0)(prediction, target, torch.tensor([a, b, a, b, a]))
    stprune.PrunedLoss(other, null_value=0.0)(prediction[3:], target[3:], torch.tensor([b, a]))
    assert_same_bits([state(made), state(other)])


def test_functorch_is_left_to_torch_to_refuse():
    prediction, target, _ = batch()
    made = sampler("full")
    before = [x.clone() for x in state(made)]
    criterion = stprune.PrunedLoss(made, null_value=0.0)
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda p: criterion(p, target, torch.arange(5)))(prediction.detach())
    assert_same_bits([before, state(made)])


def test_fake_tensors_leave_the_table():
    made = sampler("full")
    before = made.table.scores.clone()
    criterion = stprune.PrunedLoss(made)
    with FakeTensorMode(allow_non_fake_inputs=True):
        prediction = torch.empty(5, 12, 37, requires_grad=True)
        assert criterion(prediction, torch.empty(5, 12, 37), torch.empty(5, dtype=torch.int64)).shape == ()
    assert torch.equal(made.table.scores, before)


def test_the_next_epochs_plan_and_a_moved_table_are_used():
    made = sampler()
    criterion = stprune.PrunedLoss(made)
    prediction, target, _ = batch()
    target = target.nan_to_num()
    kept = made.plan.indices.clone()
    criterion(prediction, target, kept[:5])
    made.set_epoch(2)
    made.to("cpu")
    new = made.plan.indices
    gone = kept[~torch.isin(kept, new)]
    criterion(prediction, target, new[:5])
    assert bool((made.table.columns[1][new[:5]] & 1 == 1).all())
    with pytest.raises(ValueError, match="plan of epoch 2"):
        criterion(prediction, target, gone[:1].expand(5).contiguous())


# a second pass over a batch -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["two criteria", "sam", "checkpoint"])
def test_a_second_pass_over_a_batch_moves_neither_position_nor_score(how):
    results = []
    for second in (False, True):
        made = stprune.PruningSampler(64, num_epochs=2)
        first, other = stprune.PrunedLoss(made), stprune.PrunedLoss(made, loss="mse")
        for start in range(0, 32, 8):
            index = torch.arange(start, start + 8)
            prediction, target, _ = batch((8, 3, 4), seed=start)
            target = target.nan_to_num()
            if not second:
                first(prediction, target, index).backward()
            elif how == "two criteria":
                (first(prediction, target, index) + other(prediction, target, index)).backward()
            elif how == "sam":
                first(prediction, target, index).backward()
                first(prediction * 1.5, target, index).backward()
            else:
                checkpoint(first, prediction, target, index, use_reentrant=False).backward()
        results.append(state(made))
        assert made.state_dict()["position"] == 32
    assert_same_bits(results)


def test_a_later_epoch_scores_again():
    made = stprune.PruningSampler(8, num_epochs=2, method="full")
    criterion = stprune.PrunedLoss(made, spatial=0.0, temporal=0.0)
    for epoch, error in ((0, 4.0), (1, 2.0)):
        made.set_epoch(epoch)
        criterion(torch.full((2, 1), error, requires_grad=True), torch.zeros(2, 1), torch.arange(2))
        assert made.table.num_trained == 2
        assert made.table.scores[:2].tolist() == [error, error]


def test_a_sample_without_entries_keeps_its_score():
    made = sampler("full")
    before = made.table.scores.clone()
    prediction, target, _ = batch()
    target[1] = 0.0
    stprune.PrunedLoss(made, null_value=0.0)(prediction, target, torch.arange(5)).backward()
    assert made.table.scores[1] == before[1]
    assert bool((made.table.scores[[0, 2, 3, 4]] != before[[0, 2, 3, 4]]).all())
    assert made.table.num_trained == 5


# errors ---------------------------------------------------------------------------------------------------


def wrong(name):
    prediction, target, mask = batch()
    index = torch.arange(5)
    return {
        "shape": ((prediction[:, :2], target, index), ValueError, "prediction must have the shape of target"),
        "order": ((prediction, target.transpose(1, 2), index), ValueError, "prediction must have the shape of target"),
        "dtype": ((prediction.double(), target, index), TypeError, "prediction must have target's dtype torch.float32"),
        "halves": ((prediction.half(), target.bfloat16(), index), TypeError, "prediction must have target's dtype"),
        "integer": ((prediction, target.long(), index), TypeError, "target must be float32"),
        "vector": ((prediction[:, 0, 0], target[:, 0, 0], index), ValueError, r"prediction must be \[B, T, N, C\], .* or dims"),
        "grid": (
            (prediction[..., None, None], target[..., None, None], index),
            ValueError,
            r"prediction must be .* or dims must name its dimensions \('BTCHW'",
        ),
        "no index": ((prediction, target, None), TypeError, r"index must be given in training.* criterion\.eval\(\)"),
        "list": ((prediction, target, [0, 1, 2, 3, 4]), TypeError, "index must be a tensor"),
        "index": ((prediction, target, index.int()), TypeError, "index must be int64"),
        "matrix": ((prediction, target, index[:, None]), ValueError, "index must have one dimension"),
        "number": ((prediction, target, index[:4]), ValueError, "index must hold one id for each of 5 samples, got 4"),
        "pruned": (
            (prediction, target, index),
            ValueError,
            "index must hold .* of epoch 1, got 0; .* loader with this sampler",
        ),
        "beyond": ((prediction, target, index + 40), ValueError, "index must hold ids of the plan of epoch 1, got 40"),
        "negative": ((prediction, target, -index - 1), ValueError, "index must hold ids of the plan of epoch 1, got -1"),
        "mask": ((prediction, target, index, mask.float()), ValueError, "mask must be bool"),
        "mask's shape": ((prediction, target, index, mask[:1]), ValueError, "mask must be bool"),
    }[name]


WRONG = ["shape", "order", "dtype", "halves", "integer", "vector", "grid", "no index", "list", "index", "matrix", "number"]
WRONG += ["pruned", "beyond", "negative", "mask", "mask's shape"]


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_named_and_changes_nothing(name):
    (prediction, target, index, *mask), error, message = wrong(name)
    made = stprune.PruningSampler(40, num_epochs=4, keep_ratio=0.5, method="top-k")  # keeps the upper half
    made.update(torch.arange(40), torch.arange(40.0))
    made.set_epoch(1)
    before = [x.clone() for x in state(made)]
    with pytest.raises(error, match=f"PrunedLoss: {message}"):
        stprune.PrunedLoss(made)(prediction, target, index, mask=mask[0] if mask else None)
    assert_same_bits([before, state(made)])


@pytest.mark.parametrize("bad", ["shape", "halves", "mask", "number"])
def test_the_op_and_its_reference_refuse_the_same(bad):
    arguments, _, _ = wrong(bad)
    prediction, target, index, mask = (*arguments, None)[:4]
    for run in (OP, reference.pruned_step):
        made = sampler("full")
        before = [x.clone() for x in state(made)]
        with pytest.raises(RuntimeError):
            run(
                prediction.detach(), target, mask, None, None, None, index,
                *made.running.step_arguments(per_step=True), None, 0.0, 0, 1.0, 0.5, 0.5, False,
            )  # fmt: skip
        assert_same_bits([before, state(made)])
