"""residual_stats against the float64 reference, the reference against loops, and its gradient against autograd's."""

import math

import pytest
import torch

import stprune
from stprune.ops.pruned_loss import LOSSES as ALL_LOSSES
from stprune.ops.pruned_loss import pruned_loss
from stprune.reference import residual_stats as reference
from stprune.reference.precision import accumulator
from stprune.reference.pruned_loss import pruned_loss_backward as reference_backward

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LOSSES = ("mae", "mse", "huber")
# One lane block is 16 float32, one segment 512, one tile 8192 columns; columns go into a double every 32 rows.
SHAPES = (
    (1, 1, 1),
    (3, 12, 1),
    (2, 1, 5),
    (2, 5, 15),
    (2, 5, 16),
    (3, 5, 17),
    (2, 31, 33),
    (2, 32, 20),
    (2, 33, 20),
    (2, 65, 7),
    (1, 3, 511),
    (1, 3, 512),
    (2, 3, 513),
    (1, 2, 8192),
    (1, 2, 8193),
    (1, 34, 8200),
)


def op(prediction, target, mask, null_value, loss, parameter):
    """The fused op, as residual_stats calls it: loss, spatial, temporal and count."""
    options = (mask, None, None, None, None, null_value, 0.0, ALL_LOSSES.index(loss), parameter, 0.0, 0.0, False)
    _, mean, statistics, count, _ = pruned_loss(prediction, target, *options)
    return mean, statistics[0], statistics[1], count[:-1]


def data(shape, dtype=torch.float32, seed=0):
    """Prediction, target with a fifth of zeros, and a mask that keeps about 70 %."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + 10
    prediction = target + torch.randn(shape, generator=generator, dtype=torch.float64) * 2
    target = target.masked_fill(torch.rand(shape, generator=generator) < 0.2, 0.0)
    mask = torch.rand(shape, generator=generator) < 0.7
    return prediction.to(dtype), target.to(dtype), mask


def eager(prediction, target, kept, loss="mae", delta=1.0):
    """The composition users write today, in the input's precision (float32 for narrower ones)."""
    if prediction.dtype in (torch.bfloat16, torch.float16):
        prediction, target = prediction.float(), target.float()
    error = torch.where(kept, prediction - target, 0.0)
    u = error.abs()
    term = {"mae": u, "mse": error**2, "huber": torch.where(u <= delta, 0.5 * u * u, delta * (u - 0.5 * delta))}[loss]

    def spread(dim):
        count = kept.sum(dim)
        mean = u.sum(dim) / count.clamp(min=1)
        groups = (count > 0).sum(1).clamp(min=1)
        centre = torch.where(count > 0, mean, 0.0).sum(1) / groups
        return (torch.where(count > 0, mean - centre[:, None], 0.0).square().sum(1) / groups).sqrt()

    count = kept.sum((1, 2))
    return term.sum((1, 2)) / count.clamp(min=1), spread(1), spread(2), count


def ulp(value):
    """Distance from the largest entry to the next number of its dtype."""
    top = value.abs().max()
    return float(torch.nextafter(top, torch.full_like(top, math.inf)) - top)


def assert_as_exact_as_eager(actual, prediction, target, mask, null_value, loss, delta):
    """Counts equal; other values at most twice as far from the float64 reference as eager float32, plus one ulp."""
    exact = reference.residual_stats(prediction.double(), target.double(), mask, null_value, 0.0, ALL_LOSSES.index(loss), delta)
    rival = eager(prediction, target, reference.kept_entries(target, mask, null_value), loss, delta)
    assert torch.equal(actual[3], exact[3])
    for name, value, plain, true in zip(("loss", "spatial", "temporal"), actual, rival, exact, strict=False):
        allowed = 2 * float((plain.double() - true).abs().max()) + ulp(value)
        assert float((value.double() - true).abs().max()) <= allowed, name


# matches the reference ------------------------------------------------------------------------------------


@pytest.mark.parametrize("null_value", [None, 0.0])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(dtype, loss, masked, null_value):
    for shape in SHAPES:
        prediction, target, mask = data(shape, dtype)
        mask = mask if masked else None
        actual = op(prediction, target, mask, null_value, loss, 1.5)
        expected = reference.residual_stats(prediction, target, mask, null_value, 0.0, ALL_LOSSES.index(loss), 1.5)
        for value, true in zip(actual, expected, strict=True):
            assert value.dtype == true.dtype
            tolerance = 1e-12 if dtype == torch.float64 else 2e-6
            torch.testing.assert_close(value, true, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("loss", LOSSES)
def test_reference_by_hand(loss):
    prediction, target, mask = data((3, 4, 5), torch.float64)
    mask[1, :, 2] = False
    mask[1, 3] = False
    for sample in range(3):
        kept = [(t, n) for t in range(4) for n in range(5) if mask[sample, t, n] and target[sample, t, n] != 0]
        u = {at: abs(float(prediction[(sample, *at)] - target[(sample, *at)])) for at in kept}
        term = {
            "mae": lambda x: x,
            "mse": lambda x: x * x,
            "huber": lambda x: 0.5 * x * x if x <= 1.5 else 1.5 * (x - 0.75),
        }[loss]

        def spread(axis, u=u):
            groups = {at[axis] for at in u}
            means = [sum(u[at] for at in u if at[axis] == g) / sum(at[axis] == g for at in u) for g in groups]
            centre = sum(means) / len(means)
            return math.sqrt(sum((m - centre) ** 2 for m in means) / len(means))

        stats = reference.residual_stats(prediction, target, mask, 0.0, 0.0, ALL_LOSSES.index(loss), 1.5)
        assert float(stats[0][sample]) == pytest.approx(sum(map(term, u.values())) / len(u), rel=1e-12)
        assert float(stats[1][sample]) == pytest.approx(spread(1), rel=1e-12)
        assert float(stats[2][sample]) == pytest.approx(spread(0), rel=1e-12)
        assert int(stats[3][sample]) == len(u)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", [(4, 12, 170), (2, 12, 8600), (2, 2016, 37), (3, 2016, 1)])
def test_as_exact_as_eager(shape, loss):
    for null_value in (None, 0.0):
        prediction, target, mask = data(shape)
        mask = mask if null_value is None else None
        stats = op(prediction, target, mask, null_value, loss, 1.5)
        assert_as_exact_as_eager(stats, prediction, target, mask, null_value, loss, 1.5)


def test_small_spread_on_a_large_error():
    """Errors of 1000 that differ by a thousandth: the spreads survive."""
    prediction, target, _ = data((2, 12, 600))
    prediction = target + 1000 + 1e-3 * prediction
    stats = op(prediction, target, None, None, "mae", 1.0)
    assert_as_exact_as_eager(stats, prediction, target, None, None, "mae", 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_two_way_decomposition(dtype):
    """On a complete grid mean(e^2) = mu^2 + spatial^2 + temporal^2 + interaction."""
    prediction, target, _ = data((4, 12, 170), dtype)
    mae = stprune.residual_stats(prediction, target)
    mse = stprune.residual_stats(prediction, target, loss="mse")
    assert torch.equal(mae.spatial, mse.spatial)
    assert torch.equal(mae.temporal, mse.temporal)
    u = (prediction.double() - target.double()).abs()
    interaction = u - u.mean(1, keepdim=True) - u.mean(2, keepdim=True) + u.mean((1, 2), keepdim=True)
    parts = mae.loss**2 + mae.spatial**2 + mae.temporal**2 + interaction.square().mean((1, 2)).to(dtype)
    torch.testing.assert_close(parts, mse.loss, rtol=1e-6 if dtype == torch.float32 else 1e-13, atol=0)


# edges ----------------------------------------------------------------------------------------------------


def test_channels_fold_into_nodes_and_two_dimensions_are_one_node():
    prediction, target, mask = data((3, 6, 10))
    folded = stprune.residual_stats(prediction, target, mask=mask)
    shaped = stprune.residual_stats(*(x.reshape(3, 6, 5, 2) for x in (prediction, target)), mask=mask.reshape(3, 6, 5, 2))
    for a, b in zip(folded, shaped, strict=True):
        assert torch.equal(a, b)
    series = stprune.residual_stats(prediction[:, :, 0], target[:, :, 0])
    assert torch.equal(series.spatial, torch.zeros(3))
    u = (prediction[:, :, 0] - target[:, :, 0]).abs().double()
    torch.testing.assert_close(series.temporal.double(), u.std(1, correction=0), rtol=1e-6, atol=0)


def test_all_equal_errors_have_no_spread():
    for dtype in DTYPES:
        target = torch.zeros(2, 12, 170, dtype=dtype)
        stats = stprune.residual_stats(target + 0.7, target)
        for spread in (stats.spatial, stats.temporal):
            torch.testing.assert_close(spread, torch.zeros_like(spread), rtol=0, atol=1e-14)
        if dtype != torch.float64:  # equal float32 means have an exact mean in float64
            assert torch.equal(stats.spatial, torch.zeros(2))


@pytest.mark.parametrize("shape", [(0, 12, 5), (3, 0, 5), (3, 12, 0), (3, 12, 5, 0), (0, 0)])
@pytest.mark.parametrize("null_value", [None, 0.0])
def test_empty(shape, null_value):
    prediction = torch.empty(shape, requires_grad=True)
    stats = stprune.residual_stats(prediction, torch.empty(shape), null_value=null_value)
    for value in stats[:3]:
        assert torch.equal(value, torch.zeros(shape[0]))
    assert torch.equal(stats.count, torch.zeros(shape[0], dtype=torch.int64))
    stats.loss.sum().backward()
    assert prediction.grad.shape == shape


def test_one_element():
    stats = stprune.residual_stats(torch.tensor([[3.0]]), torch.tensor([[1.0]]), loss="mse")
    assert [float(x) for x in stats] == [4.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("how", ["mask", "null", "nan"])
def test_samples_without_entries_are_zero(how):
    prediction, target, mask = data((3, 12, 20))
    mask[1] = False
    target[1] = math.nan if how == "nan" else 0.0
    prediction[1] = math.inf
    options = {"mask": mask} if how == "mask" else {"null_value": math.nan if how == "nan" else 0.0}
    stats = stprune.residual_stats(prediction, target, **options)
    assert [float(x[1]) for x in stats] == [0.0, 0.0, 0.0, 0.0]
    assert all(bool((x[[0, 2]] > 0).all()) for x in stats)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_removed_entries_reach_nothing(dtype, poison):
    """NaN and infinity in removed entries of prediction and target give the bits of harmless values there."""
    for shape in ((3, 5, 19), (3, 40, 1)):
        prediction, target, mask = data(shape, dtype)
        clean = stprune.residual_stats(prediction, target, mask=mask, loss="huber")
        for poisoned in (
            (prediction.masked_fill(~mask, poison), target),
            (prediction, target.masked_fill(~mask, poison)),
            (prediction.masked_fill(~mask, poison), target.masked_fill(~mask, poison)),
        ):
            for a, b in zip(stprune.residual_stats(*poisoned, mask=mask, loss="huber"), clean, strict=True):
                assert torch.equal(a, b)
        missing = target == 0
        by_null = stprune.residual_stats(prediction.masked_fill(missing, poison), target, null_value=0.0)
        by_nan = stprune.residual_stats(prediction, target.masked_fill(missing, math.nan), null_value=math.nan)
        by_both = stprune.residual_stats(prediction, target.masked_fill(missing & mask, math.nan), null_value=0.0)
        by_mask = stprune.residual_stats(prediction, target, mask=~missing)
        for a, b, c, d in zip(by_null, by_nan, by_both, by_mask, strict=True):
            assert torch.equal(a, d)
            assert torch.equal(b, d)
            assert torch.equal(c, d)


def test_null_value_rules():
    target = torch.tensor([[[0.0, -0.0, math.nan, 2.0]]])
    prediction = torch.ones(1, 1, 4)
    assert stprune.residual_stats(prediction, target, null_value=0.0).count.item() == 1
    assert stprune.residual_stats(prediction, target, null_value=math.nan).count.item() == 3
    assert stprune.residual_stats(prediction, target, null_value=2).count.item() == 2
    unfiltered = stprune.residual_stats(prediction, target)
    assert unfiltered.count.item() == 4
    assert all(math.isnan(x) for x in unfiltered[:3])
    # Compared in the data's dtype: what bfloat16 stores for 0.1 is 0.1.
    for dtype in DTYPES:
        tenth = torch.tensor([[0.1, 0.2]], dtype=dtype)
        assert stprune.residual_stats(torch.zeros(1, 2, dtype=dtype), tenth, null_value=0.1).count.item() == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_entry_spoils_its_own_sample_only(value):
    for loss in LOSSES:
        prediction, target, _ = data((3, 12, 20))
        clean = stprune.residual_stats(prediction, target, loss=loss)
        prediction[1, 4, 5] = value
        stats = stprune.residual_stats(prediction, target, loss=loss)
        for a, b in zip(stats, clean, strict=True):
            assert torch.equal(a[[0, 2]], b[[0, 2]])
        assert math.isnan(stats.spatial[1])
        assert math.isnan(stats.temporal[1])
        assert math.isnan(stats.loss[1]) if math.isnan(value) else stats.loss[1] == value
        assert stats.count[1] == 240


def test_nodes_and_steps_without_entries_are_left_out():
    prediction, target, _ = data((1, 6, 8))
    mask = torch.ones(1, 6, 8, dtype=torch.bool)
    mask[:, :, 5:] = False
    mask[:, 4:] = False
    masked = stprune.residual_stats(prediction, target, mask=mask)
    cut = stprune.residual_stats(prediction[:, :4, :5], target[:, :4, :5])
    for a, b in zip(masked, cut, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


def test_denormal_errors_are_kept():
    tiny = torch.finfo(torch.float32).tiny / 4
    stats = stprune.residual_stats(torch.full((1, 3, 5), tiny), torch.zeros(1, 3, 5))
    assert stats.loss.item() == tiny


def test_huber_meets_its_ends():
    prediction, target, _ = data((2, 12, 40), torch.float64)
    half_square = stprune.residual_stats(prediction, target, loss="huber", huber_delta=math.inf).loss
    assert torch.equal(half_square * 2, stprune.residual_stats(prediction, target, loss="mse").loss)
    delta = 1e-9
    linear = stprune.residual_stats(prediction, target, loss="huber", huber_delta=delta).loss / delta
    torch.testing.assert_close(linear, stprune.residual_stats(prediction, target).loss, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(dtype):
    """Strided, misaligned, permuted and expanded inputs give the bits of contiguous ones, and nothing is written."""
    prediction, target, mask = data((3, 7, 18), dtype)
    expected = stprune.residual_stats(prediction, target, mask=mask)

    def strided(x):
        return torch.zeros(3, 7, 36, dtype=x.dtype)[:, :, ::2].copy_(x)

    def misaligned(x):
        return torch.zeros(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)

    def permuted(x):
        return x.permute(2, 0, 1).contiguous().permute(1, 2, 0)

    for change in (strided, misaligned, permuted):
        inputs = [change(x) for x in (prediction, target, mask)]
        before = [x.clone() for x in inputs]
        for a, b in zip(stprune.residual_stats(*inputs[:2], mask=inputs[2]), expected, strict=True):
            assert torch.equal(a, b)
        assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))
    row = prediction[:1, :1].expand(3, 7, 18)
    for a, b in zip(stprune.residual_stats(row, target), stprune.residual_stats(row.contiguous(), target), strict=True):
        assert torch.equal(a, b)


# errors ---------------------------------------------------------------------------------------------------

# gradient -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("null_value", [None, 0.0])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss, masked, null_value):
    prediction, target, mask = data((2, 3, 5), torch.float64, seed=3)
    target = target if null_value is None else target.masked_fill(target == 0, math.nan)

    def per_sample(p, t):
        return stprune.residual_stats(
            p, t, mask=mask if masked else None, null_value=null_value, loss=loss, huber_delta=1.5
        ).loss

    inputs = (prediction.requires_grad_(), target.requires_grad_())
    if null_value is not None:  # finite differences cannot start from the NaN of a removed target
        inputs, target = (prediction,), target.detach()
        assert torch.autograd.gradcheck(lambda p: per_sample(p, target), inputs)
    else:
        assert torch.autograd.gradcheck(per_sample, inputs)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_is_that_of_eager(dtype, loss):
    for shape in ((3, 12, 20), (2, 5, 1), (2, 2, 1100)):
        prediction, target, mask = data(shape, dtype)
        prediction[0, 0, 0] = target[0, 0, 0]  # sign(0) = 0
        weight = torch.arange(1.0, shape[0] + 1)
        grads = []
        for measure in (
            lambda p, t, kept: stprune.residual_stats(p, t, mask=kept, loss=loss, huber_delta=1.5).loss,
            lambda p, t, kept: eager(p.double(), t.double(), kept, loss, 1.5)[0],
        ):
            p, t = prediction.clone().requires_grad_(), target.clone().requires_grad_()
            (measure(p, t, mask) * weight).sum().backward()
            grads.append((p.grad, t.grad))
        tolerance = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
        for ours, theirs in zip(*grads, strict=True):
            assert ours.dtype == dtype
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=1e-6 if dtype == torch.float16 else 1e-12)
        assert torch.equal(grads[0][0], -grads[0][1])
        assert torch.equal(grads[0][0][~mask], torch.zeros_like(grads[0][0][~mask]))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("null_value", [None, 0.0])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward_matches_reference(dtype, loss, null_value, masked):
    prediction, target, mask = data((3, 7, 333), dtype)
    prediction[0, 0, :5] = torch.tensor([math.nan, math.inf, -math.inf, 0.0, 1.0], dtype=dtype)
    count = reference.kept_entries(target, mask if masked else None, null_value).sum((1, 2))
    count = torch.cat([count, count.sum(0, keepdim=True)])
    grad_loss = torch.tensor([1.0, -2.0, 0.5], dtype=accumulator(dtype))
    options = (mask if masked else None, None, None, None, None, null_value, 0.0, ALL_LOSSES.index(loss), 1.5, count, True)
    arguments = (None, grad_loss, prediction, target, *options)
    actual = torch.ops.stprune.pruned_loss_backward(*arguments)
    expected = reference_backward(*arguments)
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    atol = 1e-6 if dtype == torch.float16 else 1e-12
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=atol, equal_nan=True)


@pytest.mark.parametrize("loss", LOSSES)
def test_removed_entries_reach_no_gradient(loss):
    prediction, target, mask = data((3, 5, 19))
    mask[1] = False
    prediction = prediction.masked_fill(~mask, math.nan).requires_grad_()
    stats = stprune.residual_stats(prediction, target.masked_fill(~mask, math.inf), mask=mask, loss=loss)
    stats.loss.sum().backward()
    assert bool(prediction.grad.isfinite().all())
    assert torch.equal(prediction.grad[~mask], torch.zeros(int((~mask).sum())))
    assert bool((prediction.grad[mask] != 0).all())


def test_only_loss_has_a_gradient():
    prediction, target, _ = data((3, 5, 4))
    stats = stprune.residual_stats(prediction.requires_grad_(), target)
    assert stats.loss.requires_grad
    assert not any(value.requires_grad for value in stats[1:])
    frozen = stprune.residual_stats(prediction.detach(), target)
    assert not any(value.requires_grad for value in frozen)


def test_second_derivative_is_refused():
    prediction, target, _ = data((3, 5, 4))
    prediction.requires_grad_()
    loss = stprune.residual_stats(prediction, target, loss="mse").loss.sum()
    (grad,) = torch.autograd.grad(loss, prediction, create_graph=True)
    torch.testing.assert_close(grad.detach(), 2 * (prediction - target).detach() / 20)
    with pytest.raises(RuntimeError, match="pruned_loss: the loss can be differentiated once"):
        grad.square().sum().backward()


# torch ----------------------------------------------------------------------------------------------------


def test_traces_without_a_break():
    prediction, target, mask = data((3, 5, 19))

    def step(p):
        stats = stprune.residual_stats(p, target, mask=mask, null_value=0.0)
        return stats.loss.sum(), stats.spatial

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        p = prediction.clone().requires_grad_()
        loss, spatial = function(p)
        loss.backward()
        results.append((loss.detach(), spatial, p.grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
