"""PrunedLoss: the plain loss where weights are 1, weighted otherwise; scores go to the table; bad input changes nothing."""

import math

import numpy as np
import pytest
import torch
from loops import train_step
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import stprune

NAN = float("nan")
# The eager formula sums in another order, in the input's precision.
TOLERANCES = {torch.float32: {"rtol": 1e-6, "atol": 1e-7}, torch.float64: {"rtol": 1e-14, "atol": 1e-15}}


def batch(dtype=torch.float32, shape=(5, 4, 3, 2), seed=0):
    g = torch.Generator().manual_seed(seed)
    prediction = torch.randn(shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    target = torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
    return prediction, target


def plain(prediction, target, valid, loss):
    """The formula of the field, eager."""
    error = torch.where(valid, prediction - target, 0.0) if valid is not None else prediction - target
    element = {"mae": lambda e: e.abs(), "mse": lambda e: e.square()}.get(
        loss, lambda e: torch.nn.functional.huber_loss(e, torch.zeros_like(e), reduction="none")
    )(error)
    return element.mean() if valid is None else element.sum() / valid.sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", ["mae", "mse", "huber"])
@pytest.mark.parametrize("missing", ["none", "null", "mask", "both"])
@pytest.mark.parametrize("method", ["full", "soft-random"])
def test_weights_of_one_give_the_plain_masked_loss(dtype, loss, missing, method):
    prediction, target = batch(dtype)
    mask = null = valid = None
    if missing in ("null", "both"):
        target[0, 1, 2, 0] = target[3, :, 0] = 0.0
        target[1, 1, 1, 1] = NAN
        null, valid = 0.0, (target != 0.0) & ~target.isnan()
    if missing in ("mask", "both"):
        mask = torch.rand(target.shape, generator=torch.Generator().manual_seed(1)) < 0.7
        valid = mask if valid is None else mask & valid
    sampler = stprune.PruningSampler(10, num_epochs=8, method=method, keep_ratio=0.5, schedule="none")
    sampler.set_epoch(3)
    index = sampler.plan.order(0, 5)
    criterion = stprune.PrunedLoss(sampler, loss=loss, null_value=null)
    ours = criterion(prediction, target, index, mask=mask)
    (gradient,) = torch.autograd.grad(ours, prediction)
    # Bit for bit the loss without weights ...
    unweighted = criterion.eval()(prediction, target, mask=mask)
    (unweighted_gradient,) = torch.autograd.grad(unweighted, prediction)
    assert torch.equal(ours, unweighted)
    assert torch.equal(gradient, unweighted_gradient)
    # ... which is the formula of the field.
    expected = plain(prediction, target, valid, loss)
    (expected_gradient,) = torch.autograd.grad(expected, prediction)
    torch.testing.assert_close(ours, expected, **TOLERANCES[dtype])
    torch.testing.assert_close(gradient, expected_gradient, **TOLERANCES[dtype])


def test_weights_multiply_each_samples_share():
    prediction, target = batch()
    sampler = stprune.PruningSampler(100, num_epochs=8, keep_ratio=0.3, schedule="none")
    sampler.update(torch.arange(100), torch.rand(100, generator=torch.Generator().manual_seed(3)))
    sampler.set_epoch(1)
    index = sampler.plan.order(0, 5)
    weight = torch.stack([sampler.plan.weights[sampler.plan.indices == i][0] for i in index])
    assert weight.unique().numel() > 1
    share = (prediction - target).abs().mean((1, 2, 3))
    raw = stprune.PrunedLoss(sampler, rescale="epoch_sum")(prediction, target, index)
    assert torch.allclose(raw, (weight * share).mean())
    step = stprune.PrunedLoss(sampler)(prediction, target, index)
    assert torch.allclose(step, (weight / sampler.plan.weights.mean() * share).mean())


def test_scores_reach_the_table():
    prediction, target = batch()
    sampler = stprune.PruningSampler(10, num_epochs=2)
    index = torch.tensor([9, 0, 4, 2, 7])
    stprune.PrunedLoss(sampler, spatial=0.3, temporal=0.9)(prediction, target, index)
    expected = stprune.score(prediction, target, spatial=0.3, temporal=0.9)
    assert torch.equal(sampler.table.scores[index], expected)
    assert int(torch.isinf(sampler.table.scores).sum()) == 5


def test_masked_entries_leak_nowhere():
    for everything in (True, False):
        prediction, target = batch()
        with torch.no_grad():
            prediction[2, 1, 0, 0] = NAN
        target[... if everything else (2, 1, 0, 0)] = 0.0
        sampler = stprune.PruningSampler(5, num_epochs=1)
        loss = stprune.PrunedLoss(sampler, null_value=0.0)(prediction, target, torch.arange(5))
        loss.backward()
        assert math.isfinite(loss.item())
        assert bool(torch.isfinite(prediction.grad).all())
        if everything:
            assert loss.item() == 0.0
            assert torch.equal(prediction.grad, torch.zeros_like(prediction))
        else:
            assert bool(torch.isfinite(sampler.table.scores).all())


class Law(stprune.PruningSampler):
    """A node law with known weights, which keeps the errors it is given."""

    weights: torch.Tensor | None = None
    taken: torch.Tensor | None = None
    wants_pair_scores = True

    def node_weights(self, index, node):
        return None if self.weights is None else self.weights[index[:, None], node]

    def take_in(self, index, node, pair_scores):
        self.taken = pair_scores


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dims", [None, "BTN", "BTNC", "BTCN", "BNT", "BCNT"])
def test_pairs_are_weighted_and_scored(dims, dtype):
    letters = dims or "BTNC"
    sizes = {"B": 4, "T": 12, "N": 6, "C": 2}
    g = torch.Generator().manual_seed(7)
    prediction = torch.randn([sizes[x] for x in letters], generator=g).to(dtype).requires_grad_()
    target = torch.randn([sizes[x] for x in letters], generator=g).to(dtype)
    target[0] = 0.0  # a window without entries
    sampler = Law(4, num_epochs=1, num_nodes=20, node_ratio=0.3)
    index = torch.tensor([2, 0, 3, 1])
    node = sampler.nodes(index)
    criterion = stprune.PrunedLoss(sampler, dims=dims, null_value=0.0)
    plain = criterion(prediction, target, index, node)
    (plain_gradient,) = torch.autograd.grad(plain, prediction)
    scores = sampler.table.scores.clone()

    placed = [sizes[x] if x in "BN" else 1 for x in letters]  # letters has B before N
    u = (prediction.detach().float() - target.float()).abs()
    there = target != 0.0
    others = [i for i, x in enumerate(letters) if x not in "BN"]
    time = letters.index("T")
    of_channel = torch.where(there, u, NAN).nanmean(time, keepdim=True)
    expected = of_channel.nanmean(others).float()
    assert sampler.taken.dtype == torch.float32
    assert bool(sampler.taken[0].isnan().all())
    torch.testing.assert_close(sampler.taken, expected, equal_nan=True, rtol=1e-5, atol=1e-6)

    sampler.weights = torch.ones(4, 20)
    same = criterion(prediction, target, index, node)
    assert torch.equal(same, plain)
    assert torch.equal(torch.autograd.grad(same, prediction)[0], plain_gradient)

    sampler.weights = torch.rand(4, 20, generator=g) * 2
    weighted = criterion(prediction, target, index, node)
    share = sampler.weights[index[:, None], node].view(placed)
    term = torch.where(there, prediction.float() - target.float(), 0.0).abs() * share
    torch.testing.assert_close(weighted, (term.sum() / there.sum()).to(weighted.dtype), rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(weighted, prediction)
    (wanted,) = torch.autograd.grad(term.sum() / there.sum(), prediction)
    torch.testing.assert_close(gradient, wanted, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-7)
    # Scores of windows know nothing of the weights, and evaluation neither.
    assert torch.equal(sampler.table.scores, scores)
    assert torch.equal(criterion.eval()(prediction, target, None, node), plain)


def test_uniform_draws_have_no_weights_and_keep_no_errors():
    sampler = stprune.PruningSampler(4, num_epochs=1, num_nodes=20, node_ratio=0.3)
    index = torch.arange(4)
    assert sampler.node_weights(index, sampler.nodes(index)) is None
    assert not sampler.wants_pair_scores


def test_autocast():
    model = torch.nn.Linear(4, 4)
    sampler = stprune.PruningSampler(5, num_epochs=1)
    x, y = torch.randn(5, 3, 4), torch.randn(5, 3, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = stprune.PrunedLoss(sampler)(model(x), y, torch.arange(5))
    loss.backward()
    assert bool(torch.isfinite(model.weight.grad).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("target_dtype", [None, torch.float32])
def test_half_precision_is_reduced_in_float32(dtype, target_dtype):
    """The error is that of the two as they are, in float32; autocast hands over a float32 target.

    A gradient scaler multiplies the loss, whose weights and mask stay in float32: dividing again gives the gradient.
    """
    prediction, target = batch(dtype)
    target = batch()[1] if target_dtype else target
    sampler = stprune.PruningSampler(5, num_epochs=1)
    loss = stprune.PrunedLoss(sampler)(prediction, target, torch.arange(5))
    (gradient,) = torch.autograd.grad(loss, prediction, retain_graph=True)
    (scaled,) = torch.autograd.grad(loss * 1024, prediction)
    same = prediction.detach().float().requires_grad_()
    expected = stprune.PrunedLoss(sampler)(same, target.float(), torch.arange(5))
    assert (loss.dtype, gradient.dtype, scaled.dtype) == (torch.float32, dtype, dtype)
    assert torch.equal(loss, expected)
    assert torch.equal(gradient, torch.autograd.grad(expected, same)[0].to(dtype))
    torch.testing.assert_close(scaled / 1024, gradient)
    torch.testing.assert_close(loss, (same - target).abs().mean(), **TOLERANCES[torch.float32])


@pytest.mark.parametrize("loss", ["mae", "mse", "huber", "mape", "quantile"])
@pytest.mark.parametrize("how", ["number", "node", "channel"])
@pytest.mark.parametrize("both", [False, True])
def test_denormalisation_is_folded_in(loss, how, both):
    """Loss, gradient and scores are those of prediction * std + mean, and of the target alike if it is normalised too."""
    g = torch.Generator().manual_seed(5)
    shape = {"number": (), "node": (3,), "channel": (1, 2)}[how]
    mean = torch.randn(shape, generator=g, dtype=torch.float64)
    std = torch.rand(shape, generator=g, dtype=torch.float64) + 0.5
    prediction, target = batch(torch.float64)
    missing = torch.zeros(target.shape, dtype=torch.bool)
    missing[0, 0, 0, 0] = True
    wide = [x.view(3, 1) if how == "node" else x for x in (mean, std)]
    target = torch.where(missing, (9.0 - wide[0]) / wide[1] if both else 9.0, target)
    index = torch.arange(5)
    options = {"loss": loss, "null_value": 9.0, "quantile": 0.3, "mape_floor": 0.05}
    sampler, plain_sampler = (stprune.PruningSampler(5, num_epochs=1) for _ in range(2))
    folded = stprune.PrunedLoss(sampler, mean=mean, std=std, normalized_target=both, **options)
    ours = folded(prediction, target, index)
    (gradient,) = torch.autograd.grad(ours, prediction)
    other = target * wide[1] + wide[0] if both else target
    expected = stprune.PrunedLoss(plain_sampler, **{**options, "null_value": None})(
        prediction * wide[1] + wide[0], other, index, mask=~missing
    )
    (expected_gradient,) = torch.autograd.grad(expected, prediction)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(sampler.table.scores, plain_sampler.table.scores)


def test_node_scale_and_horizon_weights():
    prediction, target = batch(torch.float64)
    scale = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    horizon = torch.tensor([1.0, 0.5, 0.25, 0.0])
    sampler = stprune.PruningSampler(5, num_epochs=1)
    criterion = stprune.PrunedLoss(sampler, node_scale=scale, horizon_weights=horizon, spatial=0.3, temporal=0.2)
    ours = criterion(prediction, target, torch.arange(5))
    u = (prediction - target).abs() / scale[:, None]
    weighted = u * horizon.double()[:, None, None]
    torch.testing.assert_close(ours, weighted.mean(), rtol=1e-13, atol=0)
    (gradient,) = torch.autograd.grad(ours, prediction)
    torch.testing.assert_close(gradient, torch.autograd.grad(weighted.mean(), prediction)[0], rtol=1e-12, atol=0)
    folded = u.detach().flatten(2)
    score = weighted.mean((1, 2, 3)) + 0.3 * folded.mean(1).std(1, correction=0) + 0.2 * folded.mean(2).std(1, correction=0)
    torch.testing.assert_close(sampler.table.scores, score.float())


MEAN, STD = 207.2227, 156.4805  # of a series of flows, in which a scaler turns 0 into 1.5e-5


def flows(dtype=torch.float32):
    """A series with missing values, its image by a scaler of the dtype, the model's output, and which entries are there."""
    g = torch.Generator().manual_seed(0)
    whole = (torch.rand(8, 12, 20, generator=g) * 400).to(dtype)
    series = whole.masked_fill(torch.rand(8, 12, 20, generator=g) < 0.1, 0.0)
    prediction = (whole - MEAN) / STD + 0.1 * torch.randn(8, 12, 20, generator=g)
    return series, (series - MEAN) / STD, prediction.requires_grad_(), series != 0.0


def masked_mae(prediction, series, there):
    return (prediction.detach().double() * STD + MEAN - series.double()).abs()[there].mean().float()


def test_a_null_value_that_went_through_a_scaler_and_back_is_found_by_tolerance():
    series, normalized, prediction, there = flows()
    returned = normalized * STD + MEAN
    assert 0 < float(returned[~there].abs().max()) < 5e-5
    right = masked_mae(prediction, series, there)
    values = []
    for tolerance in (0.0, 5e-5):
        sampler = stprune.PruningSampler(8, num_epochs=1)
        criterion = stprune.PrunedLoss(sampler, null_value=0.0, null_tolerance=tolerance, mean=MEAN, std=STD)
        values.append(criterion(prediction, returned, torch.arange(8)).detach())
        denormalised = prediction.detach() * STD + MEAN
        stats = stprune.residual_stats(denormalised, returned, null_value=0.0, null_tolerance=tolerance)
        nodes = stprune.residual_stats(denormalised, returned, null_value=0.0, null_tolerance=tolerance, granularity="node")
        scores = stprune.score(denormalised, returned, null_value=0.0, null_tolerance=tolerance)
        torch.testing.assert_close(sampler.table.scores, scores, rtol=1e-5, atol=0)
        kept = there if tolerance else returned != 0.0
        assert torch.equal(stats.count, kept.sum((1, 2)))
        assert torch.equal(nodes.count, kept.sum(1))
    assert float(values[0]) > float(right) * 1.05  # the missing entries count as data
    torch.testing.assert_close(values[1], right, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_normalised_target_is_missing_where_it_is_the_image_of_the_null_value(dtype):
    """Whatever the scaler's rounding; and a target of the mean is data."""
    series, normalized, prediction, there = flows(torch.float64 if dtype == torch.float64 else torch.float32)
    series[0, 0, 0], normalized[0, 0, 0], there[0, 0, 0] = MEAN, 0.0, True
    # Nothing of the series lies so near to 0 that the dtype could not tell it from a missing value.
    near = there & (series < 4.0)
    prediction, normalized = prediction.detach().to(dtype).requires_grad_(), normalized.to(dtype)
    criterion = stprune.PrunedLoss(
        stprune.PruningSampler(8, num_epochs=1), null_value=0.0, mean=MEAN, std=STD, normalized_target=True
    )
    mask = ~near
    value = criterion(prediction, normalized, torch.arange(8), mask=mask)
    expected = (prediction.detach().double() - normalized.double()).abs().mul(STD)[there & mask].mean()
    torch.testing.assert_close(value.detach().double(), expected, rtol=1e-4, atol=0)
    value.backward()
    assert torch.equal(prediction.grad != 0, there & mask & (prediction.detach() != normalized))


def test_the_image_is_found_for_every_mean_and_std():
    g = torch.Generator().manual_seed(0)
    for null in (0.0, -1.0, -9999.0):
        mean, std = torch.rand(2000, generator=g, dtype=torch.float64) * 1000, torch.rand(2000, generator=g) * 300 + 1
        for scaled in ((null - mean.float()) / std, ((null - mean) / std).float()):
            target = torch.stack([scaled, scaled * 0.999])[None]  # beside it a value that is there
            criterion = stprune.PrunedLoss(
                stprune.PruningSampler(1, num_epochs=1), null_value=null, mean=mean, std=std, normalized_target=True
            ).eval()
            expected = (target[0, 1].double() * std).abs().mean()
            value = criterion(torch.zeros_like(target), target)
            torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=0)


def test_settings_keep_their_precision_and_are_seen_when_changed():
    """A pressure in Pa: 101325 is infinite in float16."""
    truth = torch.full((2, 3, 4), 101987.9)
    prediction = torch.zeros(2, 3, 4, dtype=torch.float16)
    criterion = stprune.PrunedLoss(stprune.PruningSampler(2, num_epochs=1), mean=101325, std=500).eval()
    for move in (criterion.half, criterion.bfloat16, criterion.float, lambda: criterion.to(torch.float16)):
        move()
        assert criterion.mean.dtype == torch.float64
        torch.testing.assert_close(criterion(prediction, truth), torch.tensor(662.9), rtol=1e-4, atol=0)
    assert criterion.state_dict() == {}
    criterion.mean = np.float32(101987.0)
    torch.testing.assert_close(criterion(prediction, truth), torch.tensor(0.9), rtol=1e-2, atol=0)
    criterion.mean += 0.5
    torch.testing.assert_close(criterion(prediction, truth), torch.tensor(0.4), rtol=2e-2, atol=0)
    criterion.horizon_weights = np.array([0.0, 0.0, 3.0])
    first = criterion(prediction, truth)
    criterion.horizon_weights[2] = 6.0
    assert torch.equal(criterion(prediction, truth), 2 * first)
    with pytest.raises(ValueError, match="std must be positive and finite everywhere"):
        criterion.std = 0.0


def test_settings_may_be_arrays():
    prediction, target = batch()
    values = np.array([1.0, 2.0, 4.0])[::-1]
    index = torch.arange(5)
    results = []
    for given in (values, torch.from_numpy(values.copy()), values.tolist()):
        sampler = stprune.PruningSampler(5, num_epochs=1)
        criterion = stprune.PrunedLoss(sampler, mean=given, std=given, node_scale=given, horizon_weights=np.ones(4))
        results.append(criterion(prediction, target, index))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_no_float64_tensor_reaches_the_device():
    """Some devices have none: on the meta device, whose tensors nobody can read, every tensor made is of float32."""
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            seen.extend(x for x in tree_leaves(result) if isinstance(x, torch.Tensor) and x.device.type == "meta")
            return result

    criterion = stprune.PrunedLoss(
        stprune.PruningSampler(5, num_epochs=1), null_value=0.0, mean=1.0, std=[1.0, 2.0, 3.0], horizon_weights=[1.0] * 4
    ).eval()
    with Watch():
        criterion(torch.empty(5, 4, 3, device="meta"), torch.empty(5, 4, 3, device="meta"))
    assert seen
    assert all(x.dtype != torch.float64 for x in seen)


def test_settings_of_nodes_follow_the_drawn_nodes():
    prediction, target = batch(torch.float64, shape=(4, 12, 20, 2))
    sampler = stprune.PruningSampler(4, num_epochs=1, num_nodes=20, node_ratio=0.3)
    index = torch.arange(4)
    node = sampler.nodes(index)
    mean, std = torch.arange(20.0), torch.arange(1.0, 21.0)
    p, t = stprune.gather_nodes(prediction, node), stprune.gather_nodes(target, node)
    ours = stprune.PrunedLoss(sampler, mean=mean, std=std, node_scale=std)(p, t, index, node)
    whole = (prediction * std.double()[:, None] + mean.double()[:, None] - target) / std.double()[:, None]
    expected = stprune.gather_nodes(whole, node).abs().mean()
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(ours, prediction)[0], torch.autograd.grad(expected, prediction)[0], rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize("dims", ["BCTN", "BTCHW", "BTHWC"])
def test_settings_of_nodes_follow_the_dims(dims):
    sizes = {"B": 3, "T": 4, "N": 6, "C": 2, "H": 2, "W": 3}
    g = torch.Generator().manual_seed(1)
    prediction, target = (torch.randn([sizes[d] for d in dims], generator=g, dtype=torch.float64) for _ in range(2))
    nodes = (6,) if "N" in dims else (2, 3)
    std = torch.rand(*nodes, 2, generator=g, dtype=torch.float64) + 0.5
    mean = torch.randn(nodes, generator=g, dtype=torch.float64)

    letters = "NC" if "N" in dims else "HWC"

    def placed(x):
        """[nodes ..., C or 1] in the order of the dims."""
        there = [d for d in dims if d in letters]
        shape = iter(x.permute([letters.index(d) for d in there]).shape)
        return x.permute([letters.index(d) for d in there]).reshape([next(shape) if d in letters else 1 for d in dims])

    criterion = stprune.PrunedLoss(stprune.PruningSampler(3, num_epochs=1), mean=mean, std=std, dims=dims)
    criterion(prediction, target, torch.arange(3))
    value = criterion.eval()(prediction, target)
    torch.testing.assert_close(
        value, (prediction * placed(std) + placed(mean[..., None]) - target).abs().mean(), rtol=1e-13, atol=0
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": torch.zeros(5), "std": 1.0}, r"must fit nodes and channels \(4, 1\), got \(5, 1\)"),
        ({"node_scale": torch.ones(4, 1, 1)}, r"must fit nodes and channels \(4, 1\), got \(4, 1, 1\)"),
        ({"horizon_weights": [1.0, 2.0]}, "horizon_weights must have one weight for each of 3 steps, got 2"),
        ({"dims": "BTN"}, "dims 'BTN' must name the dimensions of prediction"),
    ],
)
def test_settings_that_do_not_fit_the_batch(options, message):
    sampler = stprune.PruningSampler(10, num_epochs=1)
    with pytest.raises(ValueError, match="PrunedLoss: .*" + message):
        stprune.PrunedLoss(sampler, **options)(PREDICTION, TARGET, INDEX)
    assert bool(torch.isinf(sampler.table.scores).all())


def test_second_derivative_is_refused():
    prediction, target = batch()
    loss = stprune.PrunedLoss(stprune.PruningSampler(5, num_epochs=1), loss="mse")(prediction, target, torch.arange(5))
    (gradient,) = torch.autograd.grad(loss, prediction, create_graph=True)
    with pytest.raises(RuntimeError, match="the loss can be differentiated once"):
        gradient.sum().backward()


@pytest.mark.parametrize("method", ["full", "soft-random"])
def test_a_training_step_traces_without_a_break_and_is_not_traced_again_each_epoch(method):
    """Compiled and eager training end with the same weights and scores; later epochs reuse the compiled step."""
    results = []
    for compiled in (False, True):
        sampler = stprune.PruningSampler(40, num_epochs=6, method=method, keep_ratio=0.5, schedule="none")
        criterion = stprune.PrunedLoss(sampler, null_value=0.0, mean=1.0, std=2.0)
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(4, 4, generator=generator).requires_grad_()
        x = torch.randn(40, 3, 4, generator=generator)
        y = torch.randn(40, 3, 4, generator=generator)

        def step(index, x=x, y=y, weight=weight, criterion=criterion):
            return criterion(x[index] @ weight, y[index], index)

        _, counter = train_step(sampler, weight, step, compiled=compiled, epochs=6)
        results.append((weight.detach(), sampler.table.scores, sampler.state_dict()["position"]))
        assert counter.frame_count <= 3
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-5, atol=1e-6)
    assert results[0][2] == results[1][2]


@pytest.mark.parametrize("method", ["st-prune", "soft-random"])
def test_a_compiled_step_works_before_the_first_set_epoch(method):
    """The first epoch is planned outside of the graph; a graph without a break needs set_epoch, or iteration, first."""
    torch._dynamo.reset()
    samplers = [stprune.PruningSampler(40, num_epochs=3, method=method) for _ in range(2)]
    index = samplers[1].plan.order(0, 4)
    x, y = (torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(2))
    eager = stprune.PrunedLoss(samplers[1])(x.requires_grad_(), y, index)
    step = torch.compile(stprune.PrunedLoss(samplers[0]), backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(step(x, y, index), eager)
    assert torch.equal(samplers[0].plan.indices, samplers[1].plan.indices)
    assert samplers[0].state_dict()["position"] == 4  # the second step saw the same samples
    samplers[0].set_epoch(1)
    assert torch.isfinite(step(x, y, samplers[0].plan.order(0, 4)))


PREDICTION, TARGET = torch.zeros(2, 3, 4, 1), torch.zeros(2, 3, 4, 1)
INDEX = torch.tensor([0, 1])


@pytest.mark.parametrize("node", [torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 4), [[0, 1, 2, 3]] * 2])
def test_bad_nodes_change_nothing(node):
    sampler = stprune.PruningSampler(10, num_epochs=4)
    with pytest.raises((TypeError, ValueError), match=r"PrunedLoss: node must be (int64 \[B, m\]|a tensor)"):
        stprune.PrunedLoss(sampler)(PREDICTION, TARGET, INDEX, node)
    assert bool(torch.isinf(sampler.table.scores).all())
    assert sampler.state_dict()["position"] == 0


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"sampler": 3}, TypeError, "sampler must be a PruningSampler, got int"),
        ({"loss": "rmse"}, ValueError, "loss must be one of mae, mse, huber, mape, quantile, got 'rmse'; .*own .* PrunedMean"),
        ({"rescale": "none"}, ValueError, "rescale must be one of per_step, epoch_sum, got 'none'"),
        ({"spatial": -1.0}, ValueError, "spatial must lie in"),
        ({"temporal": NAN}, ValueError, "temporal must lie in"),
        ({"huber_delta": 0.0}, ValueError, "huber_delta must lie in"),
        ({"quantile": 1.0}, ValueError, r"quantile must lie in \(0, 1\), got 1"),
        ({"mape_floor": 0.0}, ValueError, r"mape_floor must lie in \(0, inf\], got 0"),
        ({"mean": 1.0}, ValueError, "mean and std must be given together, got mean alone"),
        ({"normalized_target": True}, ValueError, "mean and std must be given for a normalized_target"),
        ({"mean": 1.0, "std": 0.0}, ValueError, "std must be positive and finite everywhere, got 0$"),
        ({"mean": NAN, "std": 1.0}, ValueError, "mean must"),
        ({"node_scale": torch.tensor([1.0, -1.0])}, ValueError, "node_scale must be positive and finite everywhere, got -1$"),
        ({"node_scale": 2.0, "loss": "mape"}, ValueError, "node_scale must be None for the loss 'mape'"),
        ({"horizon_weights": [1.0, -1.0]}, ValueError, "horizon_weights must be one finite weight >= 0 for each step"),
        ({"dims": "TN"}, ValueError, "dims must name each dimension once"),
    ],
)
def test_bad_settings(kwargs, error, message):
    with pytest.raises(error, match="PrunedLoss: " + message):
        stprune.PrunedLoss(**{"sampler": stprune.PruningSampler(3, num_epochs=1), **kwargs})
