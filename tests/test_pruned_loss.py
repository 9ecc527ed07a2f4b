"""pruned_loss: the fused op against its float64 reference, the reference against autograd, and what torch asks of an op."""

import math

import pytest
import torch

import stprune
from stprune.ops.pruned_loss import pruned_loss
from stprune.reference import pruned_loss as reference
from stprune.reference import residual_stats as stats_reference
from stprune.reference.precision import accumulator
from stprune.testing import isa, isas

LOSSES = ("mae", "mse", "huber", "mape", "quantile")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PARAMETER = {"mae": 1.0, "mse": 1.0, "huber": 1.5, "mape": 9.0, "quantile": 0.3}
# Around a vector, a unit, a block of units, a segment, a tile; one node; tall ones; narrow ones.
SHAPES = ((3, 12, 1), (2, 5, 7), (2, 5, 16), (2, 12, 65), (2, 33, 20), (2, 3, 5, 3), (1, 2, 4100), (2, 12, 515), (1, 1, 1))
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6}
GRADIENT = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def case(shape, dtype=torch.float32, *, extras=False, masked=False, seed=0):
    """prediction, target, mask, weight, affine, horizon, column_weight; a fifth of the targets are 0."""
    g = torch.Generator().manual_seed(seed)
    target = torch.randn(shape, generator=g, dtype=torch.float64) * 3 + 10
    prediction = target + torch.randn(shape, generator=g, dtype=torch.float64) * 2
    target = target.masked_fill(torch.rand(shape, generator=g) < 0.2, 0.0)
    mask = torch.rand(shape, generator=g) < 0.7
    weight = torch.rand(shape[0], generator=g) + 0.5
    affine = torch.rand(5, 1, math.prod(shape[2:]), generator=g) + 0.5
    horizon = torch.rand(shape[1], generator=g)
    column_weight = torch.rand(shape[0], math.prod(shape[2:]), generator=g) + 0.5
    out = [prediction.to(dtype), target.to(dtype), mask if masked else None]
    return [*out, *(x.to(accumulator(dtype)) if extras else None for x in (weight, affine, horizon, column_weight))]


def fused(arguments, null_value, loss, spatial=0.4, temporal=0.7, columns=True):
    return pruned_loss(*arguments, null_value, 0.0, LOSSES.index(loss), PARAMETER[loss], spatial, temporal, columns)


# matches the reference ------------------------------------------------------------------------------------


@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("null_value", [None, 0.0, math.nan])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(dtype, loss, null_value, masked, extras):
    for shape in SHAPES:
        arguments = case(shape, dtype, extras=extras, masked=masked)
        actual = fused(arguments, null_value, loss)
        expected = reference.pruned_loss(*arguments, null_value, 0.0, LOSSES.index(loss), PARAMETER[loss], 0.4, 0.7, True)
        for i, (value, true) in enumerate(zip(actual, expected, strict=True)):
            assert value.dtype == true.dtype
            assert value.shape == true.shape
            # A column's mean may be of one small difference of values around 20.
            atol = TOLERANCES[dtype] * (5 if i == 4 else 1)
            torch.testing.assert_close(value, true, rtol=TOLERANCES[dtype], atol=atol, equal_nan=True)


@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward_matches_reference(dtype, loss, masked, extras):
    for shape in SHAPES:
        arguments = case(shape, dtype, extras=extras, masked=masked)
        arguments[0].view(-1)[0] = arguments[1].view(-1)[0]  # an error of 0 has the slope 0
        for null_value in (None, 0.0):
            count = fused(arguments, null_value, loss)[3]
            grads = torch.tensor(0.7), torch.arange(1.0, shape[0] + 1)
            grads = [g.to(accumulator(dtype)) for g in grads]
            rest = (*arguments, null_value, 0.0, LOSSES.index(loss), PARAMETER[loss], count, True)
            for pair in ((grads[0], None), (None, grads[1]), grads):
                actual = torch.ops.stprune.pruned_loss_backward(*pair, *rest)
                expected = reference.pruned_loss_backward(*pair, *rest)
                for ours, true in zip(actual, expected, strict=True):
                    assert ours.dtype == dtype
                    torch.testing.assert_close(ours, true, rtol=GRADIENT[dtype], atol=1e-12 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss):
    for extras in (False, True):
        prediction, target, _, *others = case((2, 3, 5), torch.float64, extras=extras, seed=2)
        mask = target != 0  # by mask: finite differences would leave a null value

        def both(p, t, mask=mask, others=others):
            value, mean, *_ = fused([p, t, mask, *others], None, loss)
            return value, mean

        assert torch.autograd.gradcheck(both, (prediction.requires_grad_(), target.requires_grad_()))


# columns --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_column_weights_of_one_change_no_bit(dtype, loss, masked, extras):
    for shape in SHAPES:
        *arguments, _ = case(shape, dtype, extras=extras, masked=masked)
        ones = torch.ones(shape[0], math.prod(shape[2:]), dtype=accumulator(dtype))
        grads = [g.to(accumulator(dtype)) for g in (torch.tensor(0.7), torch.arange(1.0, shape[0] + 1))]
        for null_value in (None, 0.0):
            results = []
            for column_weight in (None, ones):
                given = [*arguments, column_weight]
                outputs = fused(given, null_value, loss)
                options = (*given, null_value, 0.0, LOSSES.index(loss), PARAMETER[loss], outputs[3], True)
                backward = torch.ops.stprune.pruned_loss_backward(*grads, *options)
                results.append([*outputs[:4], outputs[4].nan_to_num(nan=-1.0), *backward])
            assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_column_weights_touch_the_batch_loss_alone(dtype):
    for shape in ((3, 12, 1), (2, 12, 170), (2, 33, 20)):
        arguments = case(shape, dtype, extras=True)
        arguments[3:6] = [None] * 3
        weighted, plain = fused(arguments, 0.0, "mae"), fused([*arguments[:6], None], 0.0, "mae")
        assert all(torch.equal(a, b) for a, b in zip(weighted[1:], plain[1:], strict=True))
        assert not torch.equal(weighted[0], plain[0])
        doubled = fused([*arguments[:6], arguments[6] * 2], 0.0, "mae")[0]
        assert torch.equal(doubled, weighted[0] * 2)
        # One column at a time: the loss is linear in the weights.
        columns = arguments[6].shape[1]
        for column in {0, columns // 2, columns - 1}:
            only = torch.zeros_like(arguments[6])
            only[:, column] = 1.0
            kept = arguments[1] != 0
            error = (arguments[0].double() - arguments[1].double()).abs().masked_fill(~kept, 0.0)[..., column]
            expected = error.sum() / kept.sum()
            actual = fused([*arguments[:6], only], 0.0, "mae")[0]
            torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=0)


def test_column_means_are_empty_unless_asked_for():
    arguments = case((3, 5, 19))
    outputs = fused(arguments, 0.0, "mae", columns=False)
    assert outputs[4].shape == (0,)
    with_means = fused(arguments, 0.0, "mae")
    assert all(torch.equal(a, b) for a, b in zip(outputs[:4], with_means[:4], strict=True))


@pytest.mark.parametrize("shape", [(2, 5), (2, 7, 19), (2, 40, 19)])
def test_a_column_without_entries_has_the_mean_nan(shape):
    prediction, target, *others = case(shape)
    target[0, :] = 3.0
    target[1] = 0.0
    means = fused([prediction, target, *others], 0.0, "mae")[4]
    expected = (prediction - target).abs()[0].mean(0).reshape(-1)
    torch.testing.assert_close(means[0], expected)
    assert bool(means[1].isnan().all())


@pytest.mark.parametrize(
    ("column_weight", "message"),
    [(torch.ones(3, 18), "column_weight must be contiguous"), (torch.ones(3, 19).double(), "column_weight")],
)
def test_column_weights_that_do_not_fit(column_weight, message):
    prediction, target, *_ = case((3, 5, 19))
    with pytest.raises(RuntimeError, match=message):
        fused([prediction, target, None, None, None, None, column_weight], 0.0, "mae")


# the layouts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", ["BTNC", "BNTC", "BNT", "BCTN", "BTCHW", "BCHW", "BHWTC", "TBN", "BTN"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dims_name_the_layout(dtype, dims):
    """Any order of dimensions gives the loss, scores and gradient of [B, T, nodes and channels]."""
    sizes = {"B": 3, "T": 6, "N": 35, "C": 2, "H": 5, "W": 7}
    g = torch.Generator().manual_seed(3)
    shape = [sizes[letter] for letter in dims]
    prediction = torch.randn(shape, generator=g).to(dtype).requires_grad_()
    target = torch.randn(shape, generator=g).to(dtype)
    mask = torch.rand(shape, generator=g) < 0.7
    order = ["B", *("T" if "T" in dims else ""), *(letter for letter in dims if letter not in "BT")]

    def plainly(x):
        x = x.detach().permute([dims.index(letter) for letter in order])
        x = x if "T" in dims else x.unsqueeze(1)
        return x.reshape(x.shape[0], x.shape[1], -1).contiguous()

    stats = stprune.residual_stats(prediction, target, mask=mask, dims=dims)
    plain_prediction = plainly(prediction).requires_grad_()
    plain = stprune.residual_stats(plain_prediction, plainly(target), mask=plainly(mask))
    for a, b in zip(stats, plain, strict=True):
        assert torch.equal(a, b)
    stats.loss.sum().backward()
    plain.loss.sum().backward()
    assert torch.equal(plainly(prediction.grad), plain_prediction.grad)
    assert prediction.grad.stride() == prediction.stride()


def test_gradient_keeps_the_layout_of_the_prediction():
    target = torch.randn(4, 12, 50)
    prediction = torch.randn(4, 50, 12).transpose(1, 2).requires_grad_()
    stprune.residual_stats(prediction, target).loss.sum().backward()
    assert prediction.grad.stride() == prediction.stride()
    assert torch.equal(prediction.grad, (prediction.detach() - target).sign() / 600)


# nodes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_node_by_itself(dtype, loss):
    for shape in ((3, 12, 40, 1), (2, 5, 17, 3), (2, 40, 600, 1), (1, 1, 1, 1)):
        prediction, target, mask, *_ = case(shape, dtype, masked=True)
        for null_value in (None, 0.0):
            options = {
                "mask": mask,
                "null_value": null_value,
                "loss": loss,
                "mape_floor": 9.0,
                "quantile": 0.3,
                "huber_delta": 1.5,
            }
            actual = stprune.residual_stats(prediction, target, granularity="node", **options)
            expected = stats_reference.node_stats(
                prediction, target, mask, null_value, 0.0, LOSSES.index(loss), PARAMETER[loss]
            )
            for value, true in zip(actual, expected, strict=True):
                assert value.shape == (shape[0], shape[2])
                assert value.dtype == true.dtype
                torch.testing.assert_close(value, true, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])
            for node in (0, shape[2] - 1):
                one = [x[:, :, node : node + 1] for x in (prediction, target, mask)]
                alone = stprune.residual_stats(one[0].flatten(2), one[1].flatten(2), **{**options, "mask": one[2].flatten(2)})
                for value, true in zip(actual, alone, strict=True):
                    torch.testing.assert_close(value[:, node], true, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


def test_node_scores_of_series_and_grids():
    prediction, target, *_ = case((2, 6, 30))
    scores = stprune.score(prediction, target, granularity="node", temporal=0.5)
    u = (prediction - target).abs()
    torch.testing.assert_close(scores, u.mean(1) + 0.5 * u.std(1, correction=0), rtol=1e-5, atol=1e-6)
    grid = stprune.score(prediction.view(2, 6, 5, 6), target.view(2, 6, 5, 6), granularity="node", dims="BTHW")
    assert torch.equal(grid, scores.view(2, 5, 6))
    first = stprune.score(prediction.view(2, 6, 1, 5, 6), target.view(2, 6, 1, 5, 6), granularity="node", dims="BTCHW")
    assert torch.equal(first, scores.view(2, 5, 6))


# the same bits --------------------------------------------------------------------------------------------


def everything(arguments, null_value, loss):
    value, mean, rest, count, columns = fused(arguments, null_value, loss)
    grads = torch.ops.stprune.pruned_loss_backward(
        torch.ones_like(value), None, *arguments, null_value, 0.0, LOSSES.index(loss), PARAMETER[loss], count, True
    )
    nodes = [x if x is None or x.dim() == 4 else x.unsqueeze(-1) for x in arguments[:3]]
    columns = columns.nan_to_num(nan=-1.0)
    return [
        value,
        mean,
        rest,
        count,
        *grads,
        columns,
        *torch.ops.stprune.node_stats(*nodes, null_value, 0.0, LOSSES.index(loss), PARAMETER[loss]),
    ]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_on_every_instruction_set(dtype, loss):
    names = isas()
    if len(names) < 2:
        pytest.skip("this machine or build has one instruction set")
    for shape in ((2, 12, 170), (2, 33, 23), (1, 3, 5, 3), (2, 3, 1050)):
        for extras in (False, True):
            for masked, null_value in ((False, None), (False, 0.0), (True, 0.0)):
                arguments = case(shape, dtype, extras=extras, masked=masked)
                results = []
                for name in names:
                    with isa(name):
                        results.append(everything(arguments, null_value, loss))
                for other in results[1:]:
                    for a, b in zip(results[0], other, strict=True):
                        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 12, 700), (1, 12, 20_000), (1, 33, 40_000), (2, 40, 5000)])
def test_same_bits_for_any_number_of_threads(shape, dtype, threads):
    arguments = case(shape, dtype, extras=True, masked=True)
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(everything(arguments, 0.0, "huber"))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# NaN and empty --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_removed_entries_reach_nothing(poison, dtype, loss):
    for extras in (False, True):
        arguments = case((3, 5, 19), dtype, extras=extras, masked=True)
        mask = arguments[2]
        mask[1] = False
        clean = everything(arguments, None, loss)
        poisoned = [x.masked_fill(~mask, poison) for x in arguments[:2]]
        for a, b in zip(everything([*poisoned, *arguments[2:]], None, loss), clean, strict=True):
            assert torch.equal(a, b)
        assert bool(torch.isfinite(clean[0]))
        assert bool((clean[4][~mask] == 0).all())


def test_mape_leaves_small_targets_out_of_everything():
    target = torch.tensor([[[0.0, 1e-5, 2.0, -4.0]]])
    stats = stprune.residual_stats(target + 1, target, loss="mape", mape_floor=1e-3)
    assert stats.count.item() == 2
    assert stats.loss.item() == 0.375


def test_quantile_is_the_pinball_loss():
    target = torch.zeros(1, 1, 2)
    stats = stprune.residual_stats(torch.tensor([[[-4.0, 4.0]]]), target, loss="quantile", quantile=0.75)
    assert stats.loss.item() == (0.75 * 4 + 0.25 * 4) / 2


def test_nonfinite_samples_are_flagged():
    prediction, target, *_ = case((3, 5, 19))
    prediction[1, 2, 3] = math.nan
    assert stprune.residual_stats(prediction, target).nonfinite.tolist() == [False, True, False]


@pytest.mark.parametrize("shape", [(0, 12, 5), (3, 0, 5), (3, 12, 0)])
def test_empty(shape):
    prediction = torch.zeros(shape, requires_grad=True)
    value, mean, rest, count, columns = fused([prediction, torch.zeros(shape), *[None] * 5], 0.0, "mae")
    value.backward()
    assert value.item() == 0.0
    assert torch.equal(mean.detach(), torch.zeros(shape[0]))
    assert torch.equal(rest, torch.zeros(3, shape[0]))
    assert torch.equal(count, torch.zeros(shape[0] + 1, dtype=torch.int64))
    assert prediction.grad.shape == shape
    assert columns.shape == (shape[0], shape[2])
    assert bool(columns.isnan().all())


# torch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "loss", "extras"),
    [(torch.float32, "mae", True), (torch.bfloat16, "mape", False), (torch.float64, "huber", True)],
    ids=str,
)
def test_opcheck(dtype, loss, extras):
    arguments = case((3, 12, 19), dtype, extras=extras, masked=extras)  # steps enough for an entry in every column: no NaN
    options = (0.0, 0.0, LOSSES.index(loss), PARAMETER[loss])
    torch.library.opcheck(torch.ops.stprune.pruned_loss.default, (*arguments, *options, 0.5, 0.5, extras))
    count = fused(arguments, 0.0, loss)[3]
    grads = torch.ones((), dtype=accumulator(dtype)), torch.ones(3, dtype=accumulator(dtype))
    torch.library.opcheck(torch.ops.stprune.pruned_loss_backward.default, (*grads, *arguments, *options, count, True))
    nodes = [x if x is None else x.unsqueeze(-1) for x in arguments[:3]]
    torch.library.opcheck(torch.ops.stprune.node_stats.default, (*nodes, *options))
