"""A step of training by one op: the bits of the general way, its errors, and the cases that must take the general way."""

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import stprune
from stprune.reference import pruned_step as reference
from stprune.testing import isa, isas

NAN = float("nan")
OP = torch.ops.stprune.pruned_step.default
BACKWARD = torch.ops.stprune.pruned_step_backward.default
PAIRS = [(d, d) for d in (torch.float32, torch.float64, torch.bfloat16, torch.float16)]
PAIRS += [(torch.bfloat16, torch.float32), (torch.float16, torch.float32)]
LOSSES = ["mae", "mse", "huber", "mape", "quantile"]


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
    """One whose plan holds some samples at unequal weights; and ids of the plan."""
    made = stprune.PruningSampler(size, num_epochs=4, keep_ratio=0.5, method=method, **options)
    made.update(torch.arange(size), torch.rand(size, generator=torch.Generator().manual_seed(7)))
    made.set_epoch(epoch)
    return made


def took_one_op(value):
    return type(value.grad_fn).__name__ == "_StepBackward"


def state(made):
    table = made.table
    return [table.scores, table.age, table.variance, torch.tensor(table.num_counted)]


def both_ways(make, arguments, mask=None, **options):
    """Loss, gradients and table after a step by one op, and by the general way."""
    results = []
    for general in (False, True):
        made = make()
        criterion = stprune.PrunedLoss(made, **options)
        prediction, target = (x.detach().clone().requires_grad_(x.requires_grad) for x in arguments)
        index = made.plan.indices[: prediction.shape[0]].flip(0)
        if general:
            value = criterion._general(prediction, target, index, None, mask)
        else:
            value = criterion(prediction, target, index, mask=mask)
        assert took_one_op(value) is not general
        value.backward(torch.full_like(value, 0.7))
        gradients = [x.grad for x in (prediction, target) if x.requires_grad]
        results.append([value.detach(), *gradients, *state(made)])
    return results


def assert_same_bits(results):
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.nan_to_num(nan=-7.0), b.nan_to_num(nan=-7.0))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_one_op_gives_the_bits_of_the_general_way(dtypes, loss, masked):
    for rescale in stprune.loss.RESCALES:
        for null_value in (None, 0.0):
            prediction, target, mask = batch(dtypes=dtypes)
            options = {"loss": loss, "rescale": rescale, "null_value": null_value}
            results = both_ways(sampler, (prediction, target), mask if masked else None, **options)
            assert_same_bits(results)


@pytest.mark.parametrize("method", ["full", "soft-random", "infobatch", "ucb"])
def test_whatever_the_plan_and_the_table(method):
    assert_same_bits(both_ways(lambda: sampler(method), batch()[:2], null_value=0.0))


@pytest.mark.parametrize("layout", ["channels", "time last", "strided", "one node", "two dimensions"])
def test_whatever_the_layout(layout):
    prediction, target, _ = batch((5, 12, 14, 2))
    view = {
        "channels": lambda x: x,
        "time last": lambda x: x[..., 0].detach().transpose(1, 2).contiguous().transpose(1, 2),
        "strided": lambda x: x.detach()[:, ::2, ::3],
        "one node": lambda x: x.detach()[:, :, :1, 0],
        "two dimensions": lambda x: x.detach()[:, :, 0, 0],
    }[layout]
    assert_same_bits(both_ways(sampler, (view(prediction).detach().requires_grad_(), view(target)), null_value=0.0))


def test_settings_of_nodes_and_steps():
    options = {"mean": torch.rand(37), "std": torch.rand(37) + 1, "node_scale": torch.rand(37) + 1}
    options |= {"horizon_weights": torch.arange(12.0), "normalized_target": True}
    assert_same_bits(both_ways(sampler, batch()[:2], null_value=0.0, **options))


def test_the_gradient_of_the_target():
    prediction, target, _ = batch()
    assert_same_bits(both_ways(sampler, (prediction, target.requires_grad_()), null_value=0.0, loss="huber"))
    assert_same_bits(both_ways(sampler, (prediction.detach(), target), null_value=0.0, loss="mape"))


def test_a_compiled_step_gives_the_bits_of_one_op():
    torch.compiler.reset()
    prediction, target, _ = batch()
    results = []
    for compiled in (False, True):
        made = sampler()
        criterion = stprune.PrunedLoss(made, null_value=0.0)
        step = torch.compile(criterion, backend="aot_eager", fullgraph=True) if compiled else criterion
        p = prediction.detach().clone().requires_grad_()
        value = step(p, target, made.plan.indices[:5])
        assert took_one_op(value) is not compiled
        value.backward()
        results.append([value.detach(), p.grad, *state(made)])
    assert_same_bits(results)


def test_same_bits_for_any_number_of_threads_and_instruction_set(threads):
    results = []
    for name in isas() or [""]:
        for count in (1, 2, 3):
            threads(count)
            with isa(name) if name else contextlib.nullcontext():
                results.append(both_ways(sampler, batch((5, 12, 5000))[:2], null_value=0.0)[0])
    assert results
    for other in results[1:]:
        assert_same_bits([results[0], other])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_op_matches_the_reference(dtype, loss):
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    results = []
    for run, back in ((OP, BACKWARD), (reference.pruned_step, reference.pruned_step_backward)):
        prediction, target, mask = batch(dtypes=(dtype, dtype))
        made = sampler("ucb")
        inputs = (prediction.detach(), target, mask, None, None)
        index = made.plan.indices[:5]
        outputs = run(*inputs, index, *made.step_arguments(per_step=True), 0.0, loss, 0.8, 0.5, 0.4)
        gradients = back(torch.ones_like(outputs[0]), *inputs, *outputs[1:], 0.0, loss, 0.8, True)
        results.append([*outputs, *gradients, *state(made)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def test_opcheck():
    for method in ("full", "ucb"):
        prediction, target, mask = batch()
        made = sampler(method)
        inputs = (prediction.detach(), target, mask, torch.rand(5, 1, 37), torch.rand(12))
        index = made.plan.indices[:5]
        # Copies, as opcheck tests the op on the table itself several times.
        arguments = [x.clone() if isinstance(x, torch.Tensor) else x for x in made.step_arguments(per_step=True)]
        torch.library.opcheck(OP, (*inputs, index, *arguments, 0.0, "huber", 1.5, 0.5, 0.5))
        weight, count = torch.rand(5), torch.full((5,), 9)
        torch.library.opcheck(BACKWARD, (torch.ones(()), *inputs, weight, count, 0.0, "huber", 1.5, True))


def test_gradients_accumulate_and_a_graph_can_be_kept():
    prediction, target, _ = batch()
    made = sampler()
    criterion = stprune.PrunedLoss(made, null_value=0.0)
    value = criterion(prediction, target, made.plan.indices[:5])
    assert took_one_op(value)
    value.backward(retain_graph=True)
    once = prediction.grad.clone()
    value.backward()
    assert torch.equal(prediction.grad, 2 * once)


def test_second_derivative_is_refused():
    prediction, target, _ = batch()
    made = sampler()
    value = stprune.PrunedLoss(made, loss="mse", null_value=0.0)(prediction, target, made.plan.indices[:5])
    assert took_one_op(value)
    (gradient,) = torch.autograd.grad(value, prediction, create_graph=True)
    with pytest.raises(RuntimeError, match="the loss can be differentiated once"):
        gradient.sum().backward()


def test_an_input_changed_before_backward_is_noticed():
    prediction, target, _ = batch()
    made = sampler()
    inner = prediction * 1.0
    value = stprune.PrunedLoss(made)(inner, target, made.plan.indices[:5])
    with torch.no_grad():
        inner.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def wrong(name):
    prediction, target, mask = batch()
    index = torch.arange(5)
    return {
        "shape": ((prediction[:, :2], target, index), ValueError, "prediction must have the shape of target"),
        "order": ((prediction, target.transpose(1, 2), index), ValueError, "prediction must have the shape of target"),
        "dtype": ((prediction.double(), target, index), TypeError, "prediction must have target's dtype torch.float32"),
        "halves": ((prediction.half(), target.bfloat16(), index), TypeError, "prediction must have target's dtype"),
        "integer": ((prediction, target.long(), index), TypeError, "target must be float32"),
        "vector": ((prediction[:, 0, 0], target[:, 0, 0], index), ValueError, "prediction must have the shape"),
        "no index": ((prediction, target, None), TypeError, "index must be given in training"),
        "list": ((prediction, target, [0, 1, 2, 3, 4]), TypeError, "index must be a tensor"),
        "index": ((prediction, target, index.int()), TypeError, "index must be int64"),
        "matrix": ((prediction, target, index[:, None]), ValueError, "index must have one dimension"),
        "number": ((prediction, target, index[:4]), ValueError, "index must hold one id for each of 5 samples, got 4"),
        "pruned": ((prediction, target, index), ValueError, "index must hold ids of the plan of epoch 1, got 0"),
        "beyond": ((prediction, target, index + 40), ValueError, "index must hold ids of the plan of epoch 1, got 40"),
        "negative": ((prediction, target, -index - 1), ValueError, "index must hold ids of the plan of epoch 1, got -1"),
        "mask": ((prediction, target, index, mask.float()), ValueError, "mask must be bool"),
        "mask's shape": ((prediction, target, index, mask[:1]), ValueError, "mask must be bool"),
    }[name]


WRONG = ["shape", "order", "dtype", "halves", "integer", "vector", "no index", "list", "index", "matrix", "number"]
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
                prediction.detach(), target, mask, None, None, index,
                *made.step_arguments(per_step=True), None, "mae", 1.0, 0.5, 0.5,
            )  # fmt: skip
        assert_same_bits([before, state(made)])


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
    value = stprune.PrunedLoss(made, null_value=0.0)(prediction, target, torch.tensor([a, b, a, b, a]))
    assert took_one_op(value)
    stprune.PrunedLoss(other, null_value=0.0)(prediction[3:], target[3:], torch.tensor([b, a]))
    assert torch.equal(made.table.scores, other.table.scores)


def test_a_sampler_of_ones_own_is_asked():
    class Own(stprune.PruningSampler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.seen = []

        def update(self, index, scores):
            self.seen.append((index, scores))
            super().update(index, scores)

    made = Own(40, num_epochs=2)
    prediction, target, _ = batch()
    value = stprune.PrunedLoss(made)(prediction, target, torch.arange(5))
    assert not took_one_op(value)
    assert len(made.seen) == 1

    class Heavy(stprune.PruningSampler):
        def weights_of(self, index, *, per_step=True):
            return 3 * super().weights_of(index, per_step=per_step)

    plain = stprune.PrunedLoss(stprune.PruningSampler(40, num_epochs=2))(prediction, target.nan_to_num(), torch.arange(5))
    heavy = stprune.PrunedLoss(Heavy(40, num_epochs=2))(prediction, target.nan_to_num(), torch.arange(5))
    torch.testing.assert_close(heavy, 3 * plain)


def test_functorch_is_left_to_torch_to_refuse():
    prediction, target, _ = batch()
    made = sampler("full")
    before = [x.clone() for x in state(made)]
    criterion = stprune.PrunedLoss(made, null_value=0.0)
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda p: criterion(p, target, torch.arange(5)))(prediction.detach())
    assert_same_bits([before, state(made)])


def test_fake_tensors_take_the_general_way_and_leave_the_table():
    made = sampler("full")
    before = made.table.scores.clone()
    criterion = stprune.PrunedLoss(made)
    with FakeTensorMode(allow_non_fake_inputs=True):
        prediction = torch.empty(5, 12, 37, requires_grad=True)
        value = criterion(prediction, torch.empty(5, 12, 37), torch.empty(5, dtype=torch.int64))
        assert value.shape == ()
    assert torch.equal(made.table.scores, before)


def test_the_next_epochs_plan_and_a_moved_table_are_used():
    made = sampler()
    criterion = stprune.PrunedLoss(made)
    prediction, target, _ = batch()
    target = target.nan_to_num()
    kept = made.plan.indices
    criterion(prediction, target, kept[:5])
    made.set_epoch(2)
    made.to("cpu")
    new = made.plan.indices
    gone = kept[~torch.isin(kept, new)]
    value = criterion(prediction, target, new[:5])
    assert took_one_op(value)
    assert made.table.age[new[:5]].tolist() == [0] * 5
    with pytest.raises(ValueError, match="plan of epoch 2"):
        criterion(prediction, target, gone[:1].expand(5).contiguous())


def test_the_last_plans_memory_is_free_for_the_next():
    """What a step keeps at hand of a plan goes with the plan: a third epoch's takes the first one's place."""
    made = sampler("soft-random", size=100_000)
    criterion = stprune.PrunedLoss(made, null_value=0.0)
    prediction, target, _ = batch()
    places = set()
    for epoch in (1, 2, 3):
        made.set_epoch(epoch)
        criterion(prediction, target, made.plan.indices[:5].clone()).backward()
        places.add(made.plan.indices.data_ptr())
    assert len(places) <= 2


def test_a_table_that_was_moved_by_itself_is_not_mistaken():
    made = sampler("full")
    assert made.step_arguments(per_step=True) is not None
    made.table.to("meta")
    assert made.step_arguments(per_step=True) is None
