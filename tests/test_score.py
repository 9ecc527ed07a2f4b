"""score: eq. 4 on top of residual_stats."""

import math

import pytest
import torch

import stprune
from stprune.ops.pruned_loss import LOSSES
from stprune.reference import residual_stats as reference


def data(shape=(5, 12, 30), dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    target = torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + 10
    prediction = target + torch.randn(shape, generator=generator, dtype=torch.float64)
    target = target.masked_fill(torch.rand(shape, generator=generator) < 0.2, 0.0)
    return prediction.to(dtype), target.to(dtype), torch.rand(shape, generator=generator) < 0.7


@pytest.mark.parametrize("loss", ["mae", "mse", "huber"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_matches_reference(dtype, loss):
    prediction, target, mask = data(dtype=dtype)
    mu, spatial, temporal, _ = reference.residual_stats(
        prediction.double(), target.double(), mask, 0.0, 0.0, LOSSES.index(loss), 1.0
    )
    for a, b in ((0.5, 0.5), (0.0, 0.0), (2.0, 0.0), (0.0, 0.25)):
        scores = stprune.score(prediction, target, spatial=a, temporal=b, mask=mask, null_value=0.0, loss=loss)
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores.double(), mu + a * spatial + b * temporal, rtol=1e-6, atol=0)
    default = stprune.score(prediction, target)
    assert torch.equal(default, stprune.score(prediction, target, spatial=0.5, temporal=0.5, loss="mae"))


def test_weights_of_zero_give_the_loss_itself():
    prediction, target, _ = data()
    prediction[2, 3, 4] = math.inf  # its spreads are NaN: 0 * NaN must not reach the score
    scores = stprune.score(prediction, target, spatial=0, temporal=0)
    assert torch.equal(scores, stprune.residual_stats(prediction, target).loss)
    assert scores[2] == math.inf


def test_homogeneous_of_degree_one():
    """In the target's unit: errors eight times as large score exactly eight times as much."""
    prediction, target, mask = data()
    small = stprune.score(prediction, target, mask=mask)
    assert torch.equal(stprune.score(prediction * 8, target * 8, mask=mask), small * 8)


def test_uneven_error_scores_higher_at_the_same_loss():
    even = torch.ones(1, 4, 4)
    spatial, temporal = even.clone(), even.clone()
    spatial[:, :, :2], spatial[:, :, 2:] = 2.0, 0.0
    temporal[:, :2], temporal[:, 2:] = 2.0, 0.0
    scores = stprune.score(torch.cat([even, spatial, temporal]), torch.zeros(3, 4, 4), spatial=0.5, temporal=0.25)
    assert scores.tolist() == [1.0, 1.5, 1.25]


def test_samples_without_entries_score_zero_and_nan_stays():
    prediction, target, mask = data()
    mask[0] = False
    prediction[3, 0, 0] = math.nan
    mask[3, 0, 0] = True
    scores = stprune.score(prediction, target, mask=mask)
    assert scores[0] == 0.0
    assert math.isnan(scores[3])
    assert bool((scores[[1, 2, 4]] > 0).all())


def test_no_gradient_and_nothing_written():
    prediction, target, _ = data()
    before = prediction.clone()
    prediction.requires_grad_()
    assert not stprune.score(prediction, target).requires_grad
    assert torch.equal(prediction.detach(), before)


def test_empty_batch():
    assert torch.equal(stprune.score(torch.empty(0, 12, 5), torch.empty(0, 12, 5)), torch.empty(0))
