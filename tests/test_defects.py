"""Known defects of earlier dynamic pruners that the tests of no single file would find."""

import warnings

import numpy as np
import pytest
import torch

import stprune


def scored(n=1000, method="infobatch", seed=0, **kwargs):
    sampler = stprune.PruningSampler(n, num_epochs=100, method=method, seed=seed, **kwargs)
    sampler.update(torch.arange(n), torch.empty(n).log_normal_(generator=torch.Generator().manual_seed(7)))
    sampler.set_epoch(1)
    return sampler


@pytest.mark.parametrize("num_epochs", [100, 30])
def test_annealing_resets_every_weight(num_epochs):
    """Weights stayed at 2 where num_epochs * delta is not whole."""
    sampler = stprune.PruningSampler(1000, num_epochs=num_epochs, method="infobatch")
    sampler.update(torch.arange(1000), torch.rand(1000))
    first = int(num_epochs * 0.875)
    for epoch in range(1, num_epochs):
        sampler.set_epoch(epoch)
        weights = set(sampler.plan.weights.tolist())
        if epoch >= first:
            assert weights == {1.0}
            assert len(sampler) == 1000
        else:
            assert weights == {1.0, 2.0}


def test_the_callers_tensors_are_not_scaled_in_place():
    """The weights were multiplied into the caller's loss, which broke autograd of square roots."""
    sampler = scored(10, keep_ratio=0.5)
    index = sampler.plan.indices[:4]
    prediction = torch.rand(4, 3, 2, 1, requires_grad=True)
    target = torch.zeros(4, 3, 2, 1)
    per_sample = stprune.residual_stats(prediction, target, loss="mse").loss.sqrt()
    value = per_sample.detach().clone()
    sampler.update(index, per_sample)
    loss = stprune.PrunedLoss(sampler, loss="mse")(prediction, target, index).sqrt()
    (loss + per_sample.sum()).backward()
    assert torch.equal(per_sample.detach(), value)
    assert bool(torch.isfinite(prediction.grad).all())
    assert torch.equal(target, torch.zeros_like(target))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["infobatch", "st-prune"])
def test_one_bad_score_does_not_stop_or_poison_pruning(bad, method):
    """One NaN stopped all pruning; one infinity made every sample 'well learned'."""
    clean, dirty = scored(method=method), scored(method=method)
    clean.set_epoch(2)
    dirty.update(torch.tensor([5]), torch.tensor([bad]))
    with pytest.warns(RuntimeWarning, match="1 of 1000 samples were scored NaN or infinite"):
        dirty.set_epoch(2)
    assert 5 in dirty.plan.indices
    assert abs(len(clean) - len(dirty)) <= 20
    assert float(dirty.plan.weights[dirty.plan.indices == 5]) == 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # reported once
        dirty.set_epoch(3)


def test_global_random_state_is_neither_read_nor_written():
    """np.random.seed(epoch) on the global generator; no seed of one's own."""
    np.random.seed(1)
    torch.manual_seed(1)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    sampler = scored(method="st-prune")
    list(sampler)
    sampler.set_epoch(2)
    list(sampler.batches(10))
    assert np.array_equal(before[0], np.random.get_state()[1])
    assert torch.equal(before[1], torch.get_rng_state())
    torch.manual_seed(99)
    assert list(scored(method="st-prune")) == list(scored(method="st-prune"))
    assert list(scored(method="st-prune", seed=1)) != list(scored(method="st-prune", seed=2))


def test_small_pools_are_drawn_from():
    """int(0.1 * 9) is 0: none of nine well-learned samples was ever kept."""
    scores = torch.tensor([1.0] * 9 + [100.0])
    hits = 0
    for epoch in range(200):
        plan = stprune.plan_epoch(scores, method="infobatch", keep_ratio=0.1, epoch=epoch, seed=0)
        assert 9 in plan.indices
        hits += len(plan) - 1
    # 200 * 9 * 0.1 = 180 expected, one Bernoulli(0.9) each epoch: standard deviation 4.2
    assert 160 <= hits <= 198
