"""PrunedMean, and what PrunedLoss takes beside it: any loss, weights and scores of one's own; training and evaluation."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from loops import train_step
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import stprune

NAN, INF = float("nan"), float("inf")
FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def losses(shape=(5, 4, 3), dtype=torch.float32, seed=0):
    """Values of any sign that require a gradient."""
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype).requires_grad_()


def pruned(n=40, keep_ratio=0.5, **settings):
    """A sampler in an epoch with many different weights, and the first five ids of its order."""
    settings = {"num_epochs": 8, "schedule": "none", **settings}
    sampler = stprune.PruningSampler(n, keep_ratio=keep_ratio, **settings)
    sampler.update(torch.arange(n), torch.rand(n, generator=generator(3)) + 0.1)
    sampler.set_epoch(1)
    return sampler, sampler.plan.order(0, 5)


def state(sampler):
    return [column.clone() for column in sampler.table.columns if column is not None]


def assert_same(got, expected):
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one.nan_to_num(7.25), other.nan_to_num(7.25))


def gradient_of(value, *sources):
    return torch.autograd.grad(value, sources, retain_graph=True)


# --- the plain mean -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(5,), (1,), (5, 1), (5, 33), (5, 12, 40, 2), (5, 20_001)])
@pytest.mark.parametrize("masked", [None, "entries", "samples"])
@pytest.mark.parametrize("order", ["contiguous", "transposed"])
def test_weights_of_one_give_the_plain_mean_bit_for_bit(dtype, shape, masked, order):
    values = losses(shape, dtype)
    if order == "transposed":
        values = values.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_()
    wide = values if dtype == torch.float64 else values.float()
    sampler = stprune.PruningSampler(8, num_epochs=1, method="full")
    index = torch.randperm(8, generator=generator())[: shape[0]]
    mask = None
    if masked is not None:
        mask = torch.rand(shape if masked == "entries" else shape[:1], generator=generator(1)) < 0.7
        mask.view(-1)[0] = True
    whole = None if mask is None else mask.view(*mask.shape, *[1] * (len(shape) - mask.dim())).expand(shape)
    expected = wide.mean() if mask is None else wide[whole].mean()
    criterion = stprune.PrunedMean(sampler)
    ours = criterion(values, index, mask=mask)
    assert ours.dtype == wide.dtype
    assert torch.equal(ours, expected)
    assert_same(gradient_of(ours, values), gradient_of(expected, values))
    # Evaluation is the same, and needs no index.
    assert torch.equal(criterion.eval()(values, mask=mask), expected)
    # So are weights of one's own that are 1.
    ones = torch.ones(shape[0], dtype=dtype)
    own = criterion.train()(values, index, mask=mask, weight=ones)
    assert torch.equal(own, expected)
    assert_same(gradient_of(own, values), gradient_of(expected, values))


def test_weights_multiply_each_samples_share_whatever_its_sign():
    sampler, index = pruned()
    weight = sampler.weights_of(index)
    assert weight.unique().numel() > 1
    values = losses((5, 6))
    assert bool((values < 0).any())
    assert bool((values > 0).any())
    own = torch.randn(5, 6, generator=generator(4))
    criterion = stprune.PrunedMean(sampler)
    for given, factor in (
        (None, weight.view(5, 1)),
        (own, own * weight.view(5, 1)),
        (own[:, 0], (own[:, 0] * weight).view(5, 1)),
    ):
        ours, expected = criterion(values, index, weight=given), (values * factor).mean()
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(*(gradient_of(value, values)[0] for value in (ours, expected)))
    raw = stprune.PrunedMean(sampler, rescale="epoch_sum")(values, index)
    torch.testing.assert_close(raw, (values * sampler.weights_of(index, per_step=False).view(5, 1)).mean())


def test_a_negative_loss_is_lowered():
    """What own losses as predictions against zeros do not: there the gradient of a negative loss turns round."""
    x = torch.zeros(4, requires_grad=True)
    stprune.PrunedMean(stprune.PruningSampler(4, num_epochs=1))(-5.0 - x, torch.arange(4)).backward()
    assert torch.equal(x.grad, torch.full((4,), -0.25))


def test_the_score_is_the_unweighted_mean_of_the_sample():
    values, index = losses((3, 4)), torch.tensor([2, 0, 1])
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    sampler = stprune.PruningSampler(3, num_epochs=1)
    value = stprune.PrunedMean(sampler)(values, index, mask=mask, weight=torch.tensor([3.0, 1.0, 2.0]))
    assert sampler.table.scores.tolist() == [INF, values[2].mean().item(), values[0, :2].mean().item()]
    expected = (3.0 * values[0, :2].sum() + 2.0 * values[2].sum()) / 6
    torch.testing.assert_close(value, expected)
    assert sampler.table.num_trained == 3  # a sample without entries was trained on, too


@pytest.mark.parametrize("given", ["samples", "nothing"])
def test_a_sample_without_entries_keeps_its_score(given):
    sampler = stprune.PruningSampler(3, num_epochs=2, method="full")
    sampler.table.update(torch.arange(3), torch.tensor([1.0, 2.0, 3.0]))
    values = losses((3, 0) if given == "nothing" else (3, 2))
    mask = None if given == "nothing" else torch.zeros(3, dtype=torch.bool)
    for score in (None, torch.full((3,), 9.0)):
        value = stprune.PrunedMean(sampler)(values, torch.arange(3), mask=mask, score=score)
        assert value.item() == 0.0
        assert not gradient_of(value, values)[0].any()
    assert sampler.table.scores.tolist() == [1.0, 2.0, 3.0]
    assert stprune.PrunedMean(sampler).eval()(values, mask=mask).item() == 0.0


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("compiled", [False, True])
def test_masked_entries_leak_nowhere_and_others_are_not_hidden(bad, compiled):
    values = losses((3, 2)).detach()
    values[1, 0] = bad
    values.requires_grad_()
    own = torch.ones(3, 2)
    own[1, 0] = bad
    own.requires_grad_()
    mask = torch.tensor([[1, 1], [0, 1], [1, 1]]).bool()
    sampler = stprune.PruningSampler(3, num_epochs=1)
    sampler.set_epoch(0)
    criterion = stprune.PrunedMean(sampler)
    torch._dynamo.reset()
    call = torch.compile(criterion, backend="aot_eager") if compiled else criterion
    value = call(values, torch.arange(3), mask=mask, weight=own)
    for gradient in gradient_of(value, values, own):
        assert bool(torch.isfinite(gradient).all())
        assert gradient[1, 0] == 0.0
    assert math.isfinite(value.item())
    assert bool(torch.isfinite(sampler.table.scores).all())
    sampler = stprune.PruningSampler(3, num_epochs=1)
    value = stprune.PrunedMean(sampler)(values, torch.arange(3))
    assert str(value.item()) == str(bad)
    assert str(sampler.table.scores[1].item()) == str(bad)
    assert sampler.table.num_nonfinite() == 1


def test_a_gradient_flows_into_weights_and_not_into_scores():
    sampler, index = pruned()
    values, own, score = losses((5, 2)), losses((5,), seed=1), losses((5,), seed=2)
    value = stprune.PrunedMean(sampler)(values, index, weight=own, score=score)
    (found,) = gradient_of(value, own)
    torch.testing.assert_close(found, sampler.weights_of(index) * values.detach().mean(1) / 5)
    assert torch.autograd.grad(stprune.PrunedMean(sampler)(values, index, score=score), score, allow_unused=True) == (None,)
    twice = stprune.PrunedMean(sampler)(values.square(), index)
    (first,) = torch.autograd.grad(twice, values, create_graph=True)
    torch.testing.assert_close(*gradient_of(first.sum(), values), (2 * sampler.weights_of(index) / 10).view(5, 1).expand(5, 2))


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 4), (5, 1, 3), (5, 4, 1), (5, 4, 3)])
def test_masks_and_weights_have_the_first_dimensions_of_values(shape):
    values, index = losses((5, 4, 3)), torch.arange(5)
    criterion = stprune.PrunedMean(stprune.PruningSampler(5, num_epochs=1, method="full"))
    weight = torch.rand(shape, generator=generator(1))
    mask = torch.rand(shape, generator=generator(2)) < 0.6
    whole = [x.view(*shape, *[1] * (3 - len(shape))).expand(5, 4, 3) for x in (weight, mask)]
    value = criterion(values, index, weight=weight, mask=mask)
    torch.testing.assert_close(value, (values * whole[0])[whole[1]].sum() / whole[1].sum())
    torch.testing.assert_close(criterion.eval()(values, weight=weight, mask=mask), value)


# --- PrunedLoss is the special case -------------------------------------------------------------------------------------


def shaped(shape, seed, low=0.0):
    return torch.rand(shape, generator=generator(seed)) * 2 + low


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("nodes", [None, "uniform", "priority"])
@pytest.mark.parametrize("weighted", [None, "sample", "node", "entry"])
@pytest.mark.parametrize("scored", [None, "sample", "pair"])
def test_both_criteria_agree_on_absolute_errors(dtype, masked, nodes, weighted, scored):
    """In value, gradient, and what the tables store."""
    if scored == "pair" and nodes is None:
        pytest.skip("scores of pairs need nodes")
    settings = {} if nodes is None else {"num_nodes": 20, "node_ratio": 0.3, "node_sampler": nodes}
    results = []
    for kind in ("loss", "mean"):
        sampler = stprune.PruningSampler(12, num_epochs=3, keep_ratio=0.6, schedule="none", **settings)
        sampler.update(torch.arange(12), shaped((12,), 5))
        if nodes == "priority":
            sampler.node_sampler.table.update(torch.arange(12), torch.arange(20).expand(12, -1), shaped((12, 20), 6, 0.1))
        sampler.set_epoch(1)
        index = sampler.plan.order(0, 5)
        node = None if nodes is None else sampler.nodes(index)
        prediction = losses((5, 4, 6), dtype, 1)
        target = losses((5, 4, 6), dtype, 2).detach()
        mask = torch.rand(5, 4, 6, generator=generator(3)) < 0.7 if masked else None
        if masked:
            mask[1] = False
            mask[2, :, 3] = False
        weight = {None: None, "sample": shaped((5,), 7), "node": shaped((5, 1, 6), 8), "entry": shaped((5, 4, 6), 9)}[weighted]
        score = {None: None, "sample": shaped((5,), 10), "pair": shaped((5, 6), 11)}[scored]
        if kind == "loss":
            criterion = stprune.PrunedLoss(sampler, spatial=0.0, temporal=0.0)
            value = criterion(prediction, target, index, node, mask=mask, weight=weight, score=score)
            plain = criterion.eval()(prediction, target, mask=mask, weight=weight)
        else:
            criterion = stprune.PrunedMean(sampler)
            wide = (x if dtype == torch.float64 else x.float() for x in (prediction, target))
            # [B, node, step]
            values, mask, weight = (
                None if x is None else x.transpose(1, 2) if x.dim() == 3 else x
                for x in ((next(wide) - next(wide)).abs(), mask, weight)
            )
            value = criterion(values, index, node, mask=mask, weight=weight, score=score)
            plain = criterion.eval()(values, mask=mask, weight=weight)
        (gradient,) = gradient_of(value, prediction)
        results.append([value.detach(), plain.detach(), gradient, sampler.table.scores, sampler.table._count])
        sampler.set_epoch(2)  # which moves the scores of pairs into their table
        if nodes == "priority":
            results[-1].append(sampler.node_sampler.table.rows(torch.arange(12)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2 if one.dtype in FLOATS[2:] else 1e-5, atol=1e-6)


@pytest.mark.parametrize("dims", ["BTNC", "BCTN", "BNT", "BTHW", "BT", "BN", "B"])
@pytest.mark.parametrize("loss", ["mae", "mse", "huber", "mape", "quantile"])
def test_weights_of_pruned_loss_with_all_its_settings(dims, loss):
    """Of each entry, with a scaler, weights of steps, missing values and every order of dimensions."""
    sizes = {"B": 3, "T": 4, "N": 6, "C": 2, "H": 2, "W": 3}
    shape = [sizes[d] for d in dims]
    prediction = losses(shape, torch.float64)
    target = losses(shape, torch.float64, 1).detach()
    target.view(-1)[::5] = 9.0
    whole = torch.rand(shape, generator=generator(2), dtype=torch.float64)
    settings = {"loss": loss, "dims": dims, "null_value": 9.0, "mean": 0.5, "std": 2.0}
    if "T" in dims:
        settings["horizon_weights"] = [0.5, 1.0, 2.0, 0.0]
    criterion = stprune.PrunedLoss(stprune.PruningSampler(3, num_epochs=1, method="full"), **settings)
    weights = [whole]
    for letter in ("T", "C"):
        if letter in dims:
            weights.append(whole.amax(dims.index(letter), keepdim=True))
    weights.append(whole.flatten(1).amax(1) if len(shape) > 1 else whole)
    for weight in weights:
        value = criterion(prediction, target, torch.arange(3), weight=weight)
        wide = weight.view(*weight.shape, *[1] * (len(shape) - weight.dim())).expand(shape)
        # The derivative of the weighted loss in a weight is the loss of an entry: with entries one by one.
        flat = stprune.PrunedLoss(stprune.PruningSampler(1, num_epochs=1), **{**settings, "dims": dims}).eval()
        parts = []
        for at in range(whole.numel()):
            one = torch.zeros(whole.numel(), dtype=torch.bool)
            one[at] = True
            parts.append(flat(prediction.detach(), target, mask=one.view(shape)))
        there = (target != 9.0) & ~((loss == "mape") & (target.abs() < criterion.parameter))
        expected = (torch.stack(parts).view(shape) * wide)[there].sum() / there.sum()
        torch.testing.assert_close(value.detach(), expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(criterion.eval()(prediction, target, weight=weight), value)
        criterion.train()


def test_a_weight_in_pruned_loss_leaves_the_scores_alone():
    prediction, target, index = losses((5, 4, 3)), torch.zeros(5, 4, 3), torch.arange(5)
    samplers = [stprune.PruningSampler(5, num_epochs=1) for _ in range(3)]
    for sampler, weight in zip(samplers, (None, shaped((5,), 1), shaped((5, 4), 2)), strict=True):
        stprune.PrunedLoss(sampler)(prediction, target, index, weight=weight)
    for sampler in samplers[1:]:
        torch.testing.assert_close(sampler.table.scores, samplers[0].table.scores)


def test_scores_of_ones_own():
    """[B], or of pairs [B, m], whose mean is the window's; a second loss of the batch moves neither."""
    for kind in ("loss", "mean"):
        sampler = stprune.PruningSampler(4, num_epochs=2, num_nodes=6, node_ratio=0.5, node_sampler="priority")
        index = torch.tensor([1, 3])
        node = sampler.nodes(index)
        values = losses((2, 3, 5)).abs() if kind == "mean" else losses((2, 5, 3))
        score = torch.tensor([[1.0, 2.0, 6.0], [4.0, 5.0, 6.0]])
        criterion = stprune.PrunedMean(sampler) if kind == "mean" else stprune.PrunedLoss(sampler)
        arguments = (values,) if kind == "mean" else (values, torch.zeros(2, 5, 3))
        criterion(*arguments, index, node, score=score)
        criterion(*arguments, index, node, score=score + 1)
        assert sampler.table.scores.tolist() == [INF, 3.0, INF, 5.0]
        sampler.set_epoch(1)
        stored = sampler.node_sampler.table.rows(index).gather(1, node)
        assert torch.equal(stored, score)


def test_two_criteria_on_one_batch():
    """Their values add up; the first one's score stays, and no sample counts twice."""
    sampler, index = pruned()
    before = sampler.table.scores[index].clone()
    prediction = losses((5, 4, 3))
    first = stprune.PrunedLoss(sampler)(prediction, torch.zeros(5, 4, 3), index)
    scores = sampler.table.scores.clone()
    second = stprune.PrunedMean(sampler)(prediction.square(), index)
    assert not torch.equal(scores[index], before)
    assert torch.equal(sampler.table.scores, scores)
    assert sampler.table.num_trained == 5
    weight = sampler.weights_of(index).view(5, 1, 1)
    torch.testing.assert_close(first + second, (weight * (prediction.abs() + prediction.square())).mean())


def test_a_batch_with_repeated_ids():
    """Padding: every copy counts in the loss; the last one's score stays."""
    sampler = stprune.PruningSampler(4, num_epochs=1)
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    value = stprune.PrunedMean(sampler)(values, torch.tensor([2, 0, 2]))
    assert value.item() == 2.0
    assert sampler.table.scores.tolist() == [2.0, INF, 3.0, INF]
    assert sampler.table.num_trained == 2


# --- terms that are added per sample --------------------------------------------------------------------------------------


def test_a_term_per_sample_goes_inside():
    """Frozen model, many plans: inside, the full gradient is expected; outside, the term has no weights and is biased."""
    n, everything = 200, torch.arange(200)
    g = generator(1)
    data = torch.empty(n).log_normal_(generator=g)
    term = data + torch.empty(n).log_normal_(generator=g)  # large where the loss is
    full = (data + term).mean()
    sampler = stprune.PruningSampler(n, num_epochs=402, keep_ratio=0.3, schedule="none")
    criterion = stprune.PrunedMean(sampler, rescale="epoch_sum")
    inside, outside = [], []
    for epoch in range(1, 401):
        sampler.table = stprune.ScoreTable(n)
        sampler.update(everything, data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # every sample was "trained on" above
            sampler.set_epoch(epoch)
        kept = sampler.plan.indices
        scale = torch.ones((), requires_grad=True)
        share = len(kept) / n  # a sum over the kept samples estimates the sum over all
        inside += gradient_of(share * criterion(scale * (data + term)[kept], kept), scale)
        outside += gradient_of(share * criterion(scale * data[kept], kept) + (scale * term[kept]).mean(), scale)
    errors = []
    for draws in (torch.stack(inside), torch.stack(outside)):
        errors.append(float((draws.mean() - full).abs() / (draws.std() / len(draws) ** 0.5)))
    assert errors[0] < 4
    assert errors[1] > 20


# --- training or evaluation ---------------------------------------------------------------------------------------------


def criteria(sampler, **settings):
    """Both, each as a function of a prediction [B, T, N] and the rest."""
    loss, mean = stprune.PrunedLoss(sampler, **settings), stprune.PrunedMean(sampler, **settings)
    return {
        "loss": (loss, lambda p, *rest, **more: loss(p, torch.zeros_like(p), *rest, **more)),
        "mean": (mean, lambda p, *rest, **more: mean(p.abs(), *rest, **more)),
    }


@pytest.mark.parametrize("kind", ["loss", "mean"])
@pytest.mark.parametrize("how", ["eval", "no_grad", "inference", "no gradient", "model"])
def test_evaluation_is_the_plain_mean_needs_no_index_and_touches_nothing(kind, how):
    sampler, index = pruned()
    model = torch.nn.Linear(2, 2)
    criterion, call = criteria(sampler, model=model)[kind]
    prediction = losses((5, 4, 3))
    before = state(sampler)
    for arguments in ((), (index,), (index + 1000,)):
        if how == "eval":
            value = criterion.eval() and call(prediction, *arguments)
        elif how == "model":
            model.eval()
            value = call(prediction, *arguments)
        elif how == "no gradient":
            value = call(prediction.detach(), *arguments)
        else:
            with torch.no_grad() if how == "no_grad" else torch.inference_mode():
                value = call(prediction, *arguments)
        torch.testing.assert_close(value.detach().clone(), prediction.abs().mean())
    assert_same(state(sampler), before)
    criterion.train(), model.train()
    assert not torch.equal(call(prediction, index), value)
    with pytest.raises(TypeError, match=f"{criterion.op}: index must be given in training"):
        call(prediction)


def test_loops_that_validate_with_gradients_on():
    """LargeST computes its validation loss of predictions that were made under no_grad, after it; Graph WaveNet under none."""
    sampler = stprune.PruningSampler(8, num_epochs=1)
    model = torch.nn.Linear(3, 3)
    x, index = torch.randn(8, 2, 3, generator=generator()), torch.arange(8)
    call = criteria(sampler, model=model)["loss"][1]
    call(model(x), index).backward()
    before = state(sampler)
    model.eval()
    with torch.no_grad():
        predictions = [model(x[:4]), model(x[4:])]
    assert torch.is_grad_enabled()
    call(torch.cat(predictions))  # LargeST
    call(model(x), index)  # Graph WaveNet
    assert_same(state(sampler), before)


def test_a_target_that_learns_is_training_too():
    sampler, index = pruned()
    prediction = losses((5, 4, 3))
    for pair in ((prediction, prediction.detach() + 1), (prediction.detach() + 1, prediction)):
        value = stprune.PrunedLoss(sampler)(*pair, index)
        torch.testing.assert_close(value, (sampler.weights_of(index).view(5, 1, 1) * (pair[0] - pair[1]).abs()).mean())
        with pytest.raises(TypeError, match="index must be given in training"):
            stprune.PrunedLoss(sampler)(*pair)


@pytest.mark.parametrize("kind", ["loss", "mean"])
def test_the_model_is_no_part_of_the_criterion(kind):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
    sampler, index = pruned()
    criterion, _ = criteria(sampler, model=model)[kind]
    assert criterion.state_dict() == {}
    assert list(criterion.parameters()) == list(criterion.children()) == []
    criterion.eval()
    assert model.training
    for copied in (copy.deepcopy(criterion.train()), pickle.loads(pickle.dumps(criterion))):
        arguments = (losses((5, 4, 3)), torch.zeros(5, 4, 3)) if kind == "loss" else (losses((5, 4, 3)),)
        torch.testing.assert_close(copied(*arguments, index), criterion(*arguments, index))
        assert copied.sampler.table.num_trained == 5
        assert sampler.table.num_trained == 5
        sampler.table.restart()
    with pytest.raises(TypeError, match="model must have the flag `training` of a module, got int"):
        criteria(sampler, model=3)


@pytest.mark.parametrize("kind", ["loss", "mean"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_losses_are_recomputed_without_a_second_score(kind, reentrant):
    sampler, index = pruned()
    _, call = criteria(sampler)[kind]
    prediction = losses((5, 4, 3))
    expected = gradient_of(call(prediction, index), prediction)
    sampler.table.restart()
    before = state(sampler)[0][index]
    value = checkpoint(lambda p: call(p * 2, index), prediction / 2, use_reentrant=reentrant)
    # Made with gradients off at first, it is the plain mean.
    torch.testing.assert_close(value, prediction.abs().mean() if reentrant else call(prediction, index))
    assert_same(gradient_of(value, prediction), expected) if not reentrant else value.backward()
    if reentrant:
        torch.testing.assert_close(prediction.grad, expected[0])
    assert sampler.table.num_trained == 5
    assert not torch.equal(state(sampler)[0][index], before)


# --- compiled, scaled, in half precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["loss", "mean"])
@pytest.mark.parametrize("more", ["nothing", "mask", "weight", "entries", "score"])
def test_a_training_step_is_one_graph_and_is_not_compiled_again_each_epoch(kind, more):
    results = []
    for compiled in (False, True):
        sampler = stprune.PruningSampler(40, num_epochs=5, keep_ratio=0.5, schedule="none")
        model = torch.nn.Linear(4, 4)
        _, call = criteria(sampler, model=model)[kind]
        weight = torch.randn(4, 4, generator=generator()).requires_grad_()
        x = torch.randn(40, 3, 4, generator=generator(1))
        keywords = {
            "nothing": lambda x: {},
            "mask": lambda x: {"mask": x > -0.5},
            "weight": lambda x: {"weight": x[:, 0, 0].exp()},
            "entries": lambda x: {"weight": x.exp()},
            "score": lambda x: {"score": x[:, 0, 0].abs()},
        }[more]

        def step(index, x=x, weight=weight, call=call, keywords=keywords):
            return call(x[index] @ weight, index, **keywords(x[index]))

        function, counter = train_step(sampler, weight, step, compiled=compiled, epochs=5)
        index = sampler.plan.order(10, 20)
        value = function(index)
        model.eval()
        before = state(sampler)
        evaluated = function(index)
        assert_same(state(sampler), before)
        torch.testing.assert_close(evaluated, step(index))
        results.append((weight.detach(), sampler.table.scores, value.detach(), evaluated.detach()))
        assert counter.frame_count <= 4
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_inductor_compiles_it():
    torch._dynamo.reset()
    sampler, index = pruned()
    values, criterion = losses((5, 7)), stprune.PrunedMean(sampler)
    mask = torch.rand(5, 7, generator=generator()) < 0.5
    expected = criterion(values, index, mask=mask)
    ours = torch.compile(criterion, fullgraph=True)(values, index, mask=mask)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradient_of(ours, values), gradient_of(expected, values))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    """300 values of 1,000 overflow float16; 4,097 ones end at 4,096 in bfloat16."""
    sampler = stprune.PruningSampler(2, num_epochs=1)
    values = torch.full((2, 4097), 1000.0, dtype=dtype, requires_grad=True)
    value = stprune.PrunedMean(sampler)(values, torch.arange(2))
    assert value.dtype == torch.float32
    assert value.item() == float(values[0, 0])
    assert sampler.table.scores.tolist() == [float(values[0, 0])] * 2
    assert values.dtype == dtype
    assert gradient_of(value, values)[0].dtype == dtype


def test_autocast_and_a_gradient_scaler():
    sampler, index = pruned()
    model = torch.nn.Linear(4, 3)
    x, y = torch.randn(5, 4, generator=generator()), torch.tensor([0, 1, 2, 0, 1])
    criterion = stprune.PrunedMean(sampler)
    plain = criterion(functional.cross_entropy(model(x), y, reduction="none"), index)
    plain.backward()
    expected = model.weight.grad.clone()
    for scale in (1.0, 2.0**16):
        model.zero_grad()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = criterion(functional.cross_entropy(model(x), y, reduction="none"), index)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.testing.assert_close(model.weight.grad, expected, rtol=0.05, atol=0.02)


# --- what is refused ----------------------------------------------------------------------------------------------------

VALUES, INDEX = torch.ones(5, 4, requires_grad=True), torch.arange(5)
WRONG = {
    "list": (([1.0],), {}, TypeError, "values must be a tensor, got list"),
    "whole": ((torch.ones(5).long(),), {}, TypeError, "values must be float32, float64, bfloat16 or float16, got torch.int64"),
    "reduced": ((VALUES.mean(), INDEX), {}, ValueError, r'values must be \[B\] or \[B, ...\], a loss with reduction="none"'),
    "no index": ((VALUES,), {}, TypeError, r"index must be given in training, got None; .* criterion\.eval\(\) .*model=model"),
    "target": (
        (VALUES, VALUES.detach(), INDEX),
        {},
        TypeError,
        r"index must be int64 ids \[B\], got torch.float32 \(5, 4\); .*, not prediction and target",
    ),
    "steps first": (
        (torch.ones(5, 3, 4, 1), INDEX, torch.zeros(5, 4).long()),
        {},
        ValueError,
        r"node must be int64 \[B, m\] matching values \(5, 3, 4, 1\), .* values must be laid out \[B, m, ...\]",
    ),
    "index": ((VALUES, INDEX.int()), {}, TypeError, "index must be int64, got torch.int32"),
    "number": ((VALUES, INDEX[:4]), {}, ValueError, "index must hold one id for each of 5 samples, got 4"),
    "matrix": ((VALUES, INDEX[:, None]), {}, ValueError, "index must have one dimension"),
    "pruned": ((VALUES, INDEX), {}, ValueError, "index must hold ids of the plan of epoch 1, got 0"),
    "beyond": ((VALUES, INDEX + 40), {}, ValueError, "index must hold ids of the plan of epoch 1, got 40"),
    "node": ((VALUES, INDEX, INDEX), {}, ValueError, r"node must be int64 \[B, m\] matching values \(5, 4\)"),
    "node's dtype": ((VALUES, INDEX, VALUES), {}, ValueError, r"node must be int64 \[B, m\] matching values \(5, 4\)"),
    "mask": ((VALUES, INDEX), {"mask": torch.ones(5)}, TypeError, "mask must be bool, got torch.float32"),
    "mask's shape": ((VALUES, INDEX), {"mask": torch.ones(4).bool()}, ValueError, r"mask must be \[5\] or have the first"),
    "weight": ((VALUES, INDEX), {"weight": 2.0}, TypeError, "weight must be a tensor, got float"),
    "whole weight": ((VALUES, INDEX), {"weight": INDEX}, TypeError, "weight must be float32"),
    "weight's shape": ((VALUES, INDEX), {"weight": torch.ones(5, 3)}, ValueError, r"weight must be \[5\] .* got \(5, 3\)"),
    "scalar weight": ((VALUES, INDEX), {"weight": torch.ones(())}, ValueError, r"weight must be \[5\] .* got \(\)"),
    "steps alone": ((VALUES, INDEX), {"weight": torch.ones(1, 4)}, ValueError, r"weight must be \[5\] .* got \(1, 4\)"),
    "long weight": ((VALUES, INDEX), {"weight": torch.ones(5, 4, 1)}, ValueError, "weight must be"),
    "score": ((VALUES, INDEX), {"score": torch.ones(5, 4)}, ValueError, r"score must be \[5\], got \(5, 4\)"),
    "whole score": ((VALUES, INDEX), {"score": INDEX}, TypeError, "score must be float32"),
    "node weight": ((VALUES, INDEX), {"node_weight": torch.ones(5, 4)}, ValueError, "node_weight must be None without node"),
    "other device": (
        (VALUES, INDEX),
        {"weight": torch.ones(5, device="meta")},
        ValueError,
        "weight must live on the device of",
    ),
    "score elsewhere": ((VALUES, INDEX), {"score": torch.ones(5, device="meta")}, ValueError, "score must live on the device"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_named_and_changes_nothing(name):
    arguments, keywords, error, message = WRONG[name]
    sampler = stprune.PruningSampler(40, num_epochs=4, keep_ratio=0.5, method="top-k")  # keeps the upper half
    sampler.update(torch.arange(40), torch.arange(40.0))
    sampler.set_epoch(1)
    before = state(sampler)
    with pytest.raises(error, match=f"^PrunedMean: {message}"):
        stprune.PrunedMean(sampler)(*arguments, **keywords)
    assert_same(state(sampler), before)


def test_a_target_is_refused_in_evaluation_too():
    criterion = stprune.PrunedMean(stprune.PruningSampler(40, num_epochs=4)).eval()
    with pytest.raises(TypeError, match="not prediction and target"):
        criterion(VALUES, VALUES.detach())


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"weight": torch.ones(5, 3)}, ValueError, r"weight must be \[5\] or have the first dimensions of prediction"),
        ({"weight": torch.ones(5, requires_grad=True)}, ValueError, "weight must not require a gradient"),
        ({"score": torch.ones(5, 4)}, ValueError, r"score must be \[5\], got \(5, 4\)"),
        ({"node_weight": torch.ones(5, 4)}, ValueError, "node_weight must be None without node"),
    ],
)
def test_pruned_loss_names_bad_weights_and_scores(keywords, error, message):
    sampler, _ = pruned()
    before = state(sampler)
    with pytest.raises(error, match=f"^PrunedLoss: {message}"):
        stprune.PrunedLoss(sampler)(VALUES, torch.zeros(5, 4), sampler.plan.order(0, 5), **keywords)
    assert_same(state(sampler), before)


def test_pruned_loss_sends_other_losses_to_pruned_mean():
    sampler, index = pruned()
    logits = losses((5, 3))
    with pytest.raises(
        TypeError, match=r"PrunedLoss: target must be float32.*, got torch.int64; losses of classes .* PrunedMean"
    ):
        stprune.PrunedLoss(sampler)(logits, torch.zeros(5, dtype=torch.int64), index)
    with pytest.raises(
        ValueError, match=r"PrunedLoss: prediction must be \[B, T.*got shape \(5,\); losses of samples go through"
    ):
        stprune.PrunedLoss(sampler)(logits.mean(1), torch.zeros(5), index)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"sampler": 3}, TypeError, "sampler must be a PruningSampler, got int"),
        ({"rescale": "none"}, ValueError, "rescale must be one of per_step, epoch_sum, got 'none'"),
        ({"model": "x"}, TypeError, "model must have the flag `training` of a module, got str"),
    ],
)
def test_bad_settings(kwargs, error, message):
    with pytest.raises(error, match="^PrunedMean: " + message):
        stprune.PrunedMean(**{"sampler": stprune.PruningSampler(3, num_epochs=1), **kwargs})


def test_empty_batches_and_ids_elsewhere():
    sampler, index = pruned()
    values = torch.zeros(0, 3, requires_grad=True)
    value = stprune.PrunedMean(sampler)(values, index[:0])
    value.backward()
    assert value.item() == 0.0
    assert repr(stprune.PrunedMean(sampler)) == "PrunedMean(rescale='per_step')"


@pytest.mark.parametrize("kind", ["loss", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_on_another_device_asks_it_nothing_and_makes_no_float64(kind, dtype):
    """On the meta device, whose tensors nobody can read: the table moves there, ids come over, no size depends on data."""
    sampler = stprune.PruningSampler(40, num_epochs=2, keep_ratio=0.5, num_nodes=6, node_ratio=0.5, node_sampler="priority")
    sampler.set_epoch(0)
    index = sampler.plan.order(0, 5)
    node = sampler.nodes(index)
    _, call = criteria(sampler)[kind]
    shape = (5, 3, 4) if kind == "mean" else (5, 4, 3)
    on = {"dtype": torch.float32, "device": "meta"}
    for more in (
        {},
        {"mask": torch.ones(shape, dtype=torch.bool, device="meta")},
        {"weight": torch.ones(5, **on), "score": torch.ones(5, **on)},
        {"weight": torch.ones(shape, **on), "score": torch.ones(5, 3, **on), "node_weight": torch.ones(5, 3, **on)},
    ):
        prediction = torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)
        with NoFloat64():
            value = call(prediction, index, node.to("meta"), **{"node_weight": torch.ones(5, 3, **on)} | more)
            value.backward()
        assert (value.device.type, value.dtype, prediction.grad.dtype) == ("meta", torch.float32, dtype)
        assert sampler.table.device.type == "meta"
    with pytest.raises(ValueError, match=r"index must lie in \[0, 39\], got 40"):
        call(prediction, torch.full((5,), 40), node.to("meta"), node_weight=torch.ones(5, 3, **on))


class NoFloat64(TorchDispatchMode):
    """Some devices have none."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor) and x.device.type == "meta"]
        assert all(x.dtype != torch.float64 for x in made), function
        return result


class NaNWeights(stprune.methods.base.Method):
    name = "nan-weights"
    needs_scores = False

    def inclusion(self, scores, *, keep_ratio, seed, epoch):
        return torch.full_like(scores, keep_ratio)

    def weights(self, probability):
        return torch.full_like(probability, torch.nan)


@pytest.mark.parametrize("kind", [stprune.PrunedLoss, stprune.PrunedMean])
def test_a_methods_nan_weights_are_not_called_wrong_ids(kind):
    sampler = stprune.PruningSampler(64, num_epochs=9, keep_ratio=0.5, method=NaNWeights())
    sampler.set_epoch(0)
    index = next(iter(sampler.batches(8)))
    values = torch.rand(8, 2, 3, requires_grad=True)
    call = (values, torch.zeros(8, 2, 3)) if kind is stprune.PrunedLoss else (values,)
    assert kind(sampler)(*call, torch.as_tensor(index)).isnan()
