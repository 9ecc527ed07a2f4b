"""TSMixer: its forecast against the paper's blocks written out, and what it does not read."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stprune.models import TSMixer

NODES = 5


@pytest.fixture
def model():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return TSMixer(history=12, horizon=4, patch_length=4, dim=6, num_layers=2, expansion=3)


@pytest.fixture
def x():
    return torch.randn(2, 12, NODES, 3, generator=torch.Generator().manual_seed(1))


def gated(mixing, rows):
    """The gated MLP on [rows, features]."""
    hidden = F.linear(F.gelu(F.linear(rows, mixing.inner.weight, mixing.inner.bias)), mixing.outer.weight, mixing.outer.bias)
    weights = (hidden @ mixing.gate.weight.T + mixing.gate.bias).exp()
    return hidden * weights / weights.sum(dim=1, keepdim=True)


def written_out(model, history):
    """Forecast of one node from its [T] values."""
    mean, scale = history.mean(), (history.var(correction=0) + 1e-5).sqrt()
    patches = torch.stack([(history[k : k + 4] - mean) / scale for k in range(0, 12, 4)])
    hidden = patches @ model.input_map.weight.T + model.input_map.bias
    for layer in model.layers:
        hidden = hidden + gated(layer.patch_mixing, layer.patch_norm(hidden).T).T
        hidden = hidden + gated(layer.feature_mixing, layer.feature_norm(hidden))
    return (model.head.weight @ hidden.reshape(-1) + model.head.bias) * scale + mean


def test_forecast_is_the_papers_blocks_written_out(model, x):
    found = model(x)
    for window in range(len(x)):
        for node in range(NODES):
            expected = written_out(model, x[window, :, node, 0])
            torch.testing.assert_close(found[window, :, node, 0], expected, rtol=1e-4, atol=1e-5)


def test_forecast_moves_and_scales_with_the_history(model, x):
    moved = x.clone()
    moved[..., 0] = 3 * x[..., 0] + 7
    torch.testing.assert_close(model(moved), 3 * model(x) + 7, rtol=1e-3, atol=1e-3)


def test_neither_time_nor_ids_nor_number_of_nodes_matter(model, x):
    later = x.clone()
    later[..., 1:] += 0.3
    assert torch.equal(model(later), model(x))
    assert torch.equal(model(x, node=torch.full((2, NODES), 1_000_000)), model(x))
    torch.testing.assert_close(model(x[:, :, :2]), model(x)[:, :, :2])


def test_a_constant_history_has_a_finite_forecast_and_gradient(model):
    x = torch.full((1, 12, 2, 3), 5.0, requires_grad=True)
    forecast = model(x)
    torch.testing.assert_close(forecast, torch.full_like(forecast, 5.0), rtol=0, atol=0.05)
    forecast.sum().backward()
    assert bool(torch.isfinite(x.grad).all())
