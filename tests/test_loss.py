"""PrunedLoss: the plain loss where weights are 1, weighted otherwise; scores go to the table; bad input changes nothing."""

import math

import pytest
import torch

import stprune

NAN = float("nan")


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
def test_weights_of_one_give_the_plain_masked_loss_bit_for_bit(dtype, loss, missing, method):
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
    expected = plain(prediction, target, valid, loss)
    (expected_gradient,) = torch.autograd.grad(expected, prediction)
    assert torch.equal(ours, expected)
    assert torch.equal(gradient, expected_gradient)


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


@pytest.mark.parametrize("how", ["no_grad", "eval"])
def test_evaluation_is_the_plain_loss_and_touches_nothing(how):
    prediction, target = batch()
    sampler = stprune.PruningSampler(10, num_epochs=2)
    criterion = stprune.PrunedLoss(sampler)
    if how == "eval":
        value = criterion.eval()(prediction, target)
    else:
        with torch.no_grad():
            value = criterion(prediction, target)
    assert torch.equal(value, (prediction - target).abs().mean())
    assert bool(torch.isinf(sampler.table.scores).all())
    assert sampler.state_dict()["position"] == 0


def test_a_fully_masked_batch_is_zero_with_zero_gradient():
    prediction, target = batch()
    sampler = stprune.PruningSampler(5, num_epochs=1)
    loss = stprune.PrunedLoss(sampler, null_value=0.0)(prediction, torch.zeros_like(target), torch.arange(5))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(prediction.grad, torch.zeros_like(prediction))


def test_nan_in_a_masked_entry_leaks_nowhere():
    prediction, target = batch()
    with torch.no_grad():
        prediction[2, 1, 0, 0] = NAN
    target[2, 1, 0, 0] = 0.0
    sampler = stprune.PruningSampler(5, num_epochs=1)
    loss = stprune.PrunedLoss(sampler, null_value=0.0)(prediction, target, torch.arange(5))
    loss.backward()
    assert math.isfinite(loss.item())
    assert bool(torch.isfinite(prediction.grad).all())
    assert bool(torch.isfinite(sampler.table.scores).all())


def test_node_batches():
    prediction, target = batch(shape=(4, 12, 20, 1))
    sampler = stprune.PruningSampler(4, num_epochs=1, num_nodes=20, node_ratio=0.3)
    index = torch.arange(4)
    node = sampler.nodes(index)
    assert node.shape == (4, 6)
    p, t = stprune.gather_nodes(prediction, node), stprune.gather_nodes(target, node)
    loss = stprune.PrunedLoss(sampler)(p, t, index, node)
    assert torch.equal(loss, (p - t).abs().mean())
    loss.backward()
    untouched = torch.ones(4, 20, dtype=torch.bool).scatter_(1, node, False)
    assert bool((prediction.grad.abs().sum((1, 3))[untouched] == 0).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_reduced_in_float32(dtype):
    prediction, target = batch(dtype)
    sampler = stprune.PruningSampler(5, num_epochs=1)
    loss = stprune.PrunedLoss(sampler)(prediction, target, torch.arange(5))
    loss.backward()
    assert loss.dtype == torch.float32
    assert prediction.grad.dtype == dtype
    assert torch.equal(loss, (prediction.float() - target.float()).abs().mean())


def test_autocast():
    model = torch.nn.Linear(4, 4)
    sampler = stprune.PruningSampler(5, num_epochs=1)
    x, y = torch.randn(5, 3, 4), torch.randn(5, 3, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = stprune.PrunedLoss(sampler)(model(x), y, torch.arange(5))
    loss.backward()
    assert bool(torch.isfinite(model.weight.grad).all())


PREDICTION, TARGET = torch.zeros(2, 3, 4, 1), torch.zeros(2, 3, 4, 1)
INDEX = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((PREDICTION[:, :2], TARGET, INDEX), ValueError, r"prediction must have the shape of target \(2, 3, 4, 1\), got"),
        ((PREDICTION.long(), TARGET, INDEX), TypeError, "prediction must be float32"),
        ((PREDICTION.double(), TARGET, INDEX), TypeError, "prediction must have target's dtype"),
        ((PREDICTION, TARGET, None), TypeError, "index must be given in training"),
        ((PREDICTION, TARGET, INDEX.float()), TypeError, "index must be int64"),
        ((PREDICTION, TARGET, INDEX[:1]), ValueError, "index must hold one id for each of 2 samples, got 1"),
        ((PREDICTION, TARGET, torch.tensor([8, 10])), ValueError, "index must hold ids of the plan of epoch 1, got 10"),
        ((PREDICTION, TARGET, torch.tensor([-1, 8])), ValueError, "index must hold ids of the plan of epoch 1, got -1"),
        ((PREDICTION, TARGET, INDEX, torch.zeros(2, 3, dtype=torch.int64)), ValueError, "node must be int64"),
        ((PREDICTION, TARGET, INDEX, torch.zeros(2, 4)), ValueError, "node must be int64"),
    ],
)
def test_bad_input_changes_nothing(arguments, error, message):
    sampler = stprune.PruningSampler(10, num_epochs=4, keep_ratio=0.2, method="top-k")  # keeps 8 and 9
    sampler.update(torch.arange(10), torch.arange(10.0))
    sampler.set_epoch(1)
    before = sampler.table.scores.clone()
    position = sampler.state_dict()["position"]
    criterion = stprune.PrunedLoss(sampler)
    with pytest.raises(error, match="PrunedLoss: " + message):
        criterion(*arguments)
    assert torch.equal(sampler.table.scores, before)
    assert sampler.state_dict()["position"] == position


def test_an_id_that_was_pruned_is_refused():
    sampler = stprune.PruningSampler(10, num_epochs=4, keep_ratio=0.2, method="top-k")
    sampler.update(torch.arange(10), torch.arange(10.0))
    sampler.set_epoch(1)
    assert sampler.plan.indices.tolist() == [8, 9]
    with pytest.raises(ValueError, match="plan of epoch 1, got 3"):
        stprune.PrunedLoss(sampler)(PREDICTION, TARGET, torch.tensor([8, 3]))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"loss": "rmse"}, ValueError, "loss must be one of mae, mse, huber, got 'rmse'"),
        ({"rescale": "none"}, ValueError, "rescale must be one of per_step, epoch_sum, got 'none'"),
        ({"spatial": -1.0}, ValueError, "spatial must lie in"),
        ({"temporal": NAN}, ValueError, "temporal must lie in"),
        ({"huber_delta": 0.0}, ValueError, "huber_delta must lie in"),
    ],
)
def test_bad_settings(kwargs, error, message):
    with pytest.raises(error, match="PrunedLoss: " + message):
        stprune.PrunedLoss(stprune.PruningSampler(3, num_epochs=1), **kwargs)


def test_the_sampler_must_be_one():
    with pytest.raises(TypeError, match="sampler must be a PruningSampler, got int"):
        stprune.PrunedLoss(3)
