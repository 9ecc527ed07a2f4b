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


@pytest.mark.parametrize("name", ["spatial", "temporal"])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (-0.5, ValueError, "must be finite and at least 0, got -0.5"),
        (math.nan, ValueError, "must be finite and at least 0, got nan"),
        (math.inf, ValueError, "must be finite and at least 0, got inf"),
        ("1", TypeError, "must be a number, got '1'"),
        (True, TypeError, "must be a number, got True"),
        (None, TypeError, "must be a number, got None"),
    ],
)
def test_bad_weights(name, value, error, message):
    with pytest.raises(error, match=f"^score: {name} {message}"):
        stprune.score(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), **{name: value})


def test_bad_tensors_are_reported_as_score():
    fine = torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match="^score: target must have the prediction's shape"):
        stprune.score(fine, fine[:, :1])
    with pytest.raises(ValueError, match="^score: loss must be one of"):
        stprune.score(fine, fine, loss="rmse")
    with pytest.raises(TypeError, match="^score: mask must be bool"):
        stprune.score(fine, fine, mask=fine)


def test_same_bits_for_any_number_of_threads(threads):
    prediction, target, mask = data((7, 12, 700))
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(stprune.score(prediction, target, mask=mask))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
