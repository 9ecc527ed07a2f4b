"""The models and optimizers of a study: widths, one seed one model, and what each optimizer updates."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from stprune.study.networks import build
from stprune.study.optimizers import hidden_weights, make_optimizer
from stprune.study.problem import prepare
from stprune.study.series import load
from stprune.study.spec import MODELS, OPTIMIZERS, Spec

NODES = 6


@pytest.fixture(scope="module")
def problem():
    return prepare(load(f"demand?nodes={NODES}&days=3"), device=torch.device("cpu"))


def spec(**settings):
    usual = {"data": "demand", "model": "stid", "family": "full", "batch_size": 2, "learning_rate": 0.01, "cost": 1.0}
    return Spec(**{**usual, **settings})


def seeded(problem, **settings):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.get("seed", 0))
        return build(spec(**settings), problem)


def gradients(model, problem, node=None):
    x, y = problem.cut(problem.split.train, torch.tensor([0, 5]), node)
    (model(x, node=node) - y).abs().mean().backward()


@pytest.mark.parametrize("dim", [8, 16, 12])
@pytest.mark.parametrize("name", MODELS)
def test_models_forecast_windows_of_a_problem(name, dim, problem, capsys):
    model = seeded(problem, model=name, dim=dim)
    node = torch.tensor([[0, 4], [3, 1]])
    x, y = problem.cut(problem.split.train, torch.tensor([0, 5]))
    assert model(x).shape == y.shape == (2, 12, NODES, 1)
    x, y = problem.cut(problem.split.train, torch.tensor([0, 5]), node)
    assert model(x, node=node).shape == y.shape == (2, 12, 2, 1)
    gradients(model, problem, node)
    assert all(bool(parameter.grad.abs().sum() > 0) for parameter in model.parameters())
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", MODELS)
def test_initial_weights_are_the_seeds(name, problem):
    one, same, other = (seeded(problem, model=name, dim=8, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", MODELS)
def test_no_state_but_the_weights_changes_in_training(name, problem):
    # Nothing is normalised by what else is in the batch: a small batch loses nothing by it.
    model = seeded(problem, model=name, dim=8)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    gradients(model, problem)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_widths_are_as_described(problem):
    d = 8
    stid, tsmixer, wavenet, former = (seeded(problem, model=name, dim=d) for name in MODELS)
    assert stid.head.in_features == 4 * d
    assert len(stid.layers) == 3
    assert tsmixer.input_map.out_features == d
    assert len(tsmixer.layers) == 2
    assert (wavenet.input_map.out_features, wavenet.end_map.in_features, wavenet.head.in_features) == (d, 4 * d, 8 * d)
    assert len(wavenet.layers) == 4
    assert wavenet.receptive_field >= 12
    assert torch.equal(wavenet.adjacency, problem.adjacency + torch.eye(NODES))  # a loop where there is none
    assert former.head.in_features == 12 * 2 * d
    assert former.time_layers[0].inner.out_features == 4 * d
    assert [len(former.time_layers), len(former.node_layers)] == [1, 1]
    heads = {dim: seeded(problem, model="staeformer", dim=dim).time_layers[0].num_heads for dim in (8, 12, 16, 32)}
    assert heads == {8: 1, 12: 1, 16: 2, 32: 4}


def test_unknown_names_and_widths_are_refused(problem):
    with pytest.raises(ValueError, match=r"^build: model must be one of stid, .*, got lstm"):
        build(spec(model="lstm"), problem)
    with pytest.raises(ValueError, match="^build: dim must be even with staeformer, got 7"):
        build(spec(model="staeformer", dim=7), problem)
    with pytest.raises(ValueError, match="^STID: dim must be at least 1, got 0"):
        build(spec(dim=0), problem)
    with pytest.raises(ValueError, match=r"^make_optimizer: optimizer must be one of adam, .*, got lion"):
        make_optimizer(spec(optimizer="lion"), nn.Linear(1, 1))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_in_one_group_that_can_be_slowed(name, optimizer, problem):
    model = seeded(problem, model=name, dim=8)
    made = make_optimizer(spec(optimizer=optimizer), model)
    assert all(group["lr"] == group["initial_lr"] == 0.01 for group in made.param_groups)
    ids = [id(parameter) for group in made.param_groups for parameter in group["params"]]
    assert sorted(ids) == sorted(id(parameter) for parameter in model.parameters())
    gradients(model, problem)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for group in made.param_groups:
        group["lr"] = 0.0
    made.step()
    assert all(torch.equal(parameter, old) for parameter, old in zip(model.parameters(), before, strict=True))
    for group in made.param_groups:
        group["lr"] = group["initial_lr"]
    made.step()
    assert not any(torch.equal(parameter, old) for parameter, old in zip(model.parameters(), before, strict=True))
    made.zero_grad(set_to_none=True)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("optimizer", "rate"), [("adam", 0.01), ("sgd", 0.1), ("muon", 0.01)])
def test_training_lowers_the_loss(optimizer, rate, problem):
    model = seeded(problem, dim=8)
    made = make_optimizer(spec(optimizer=optimizer, learning_rate=rate), model)
    x, y = problem.cut(problem.split.train, torch.arange(8))
    losses = []
    for _ in range(30):
        loss = (model(x) - y).abs().mean()
        made.zero_grad(set_to_none=True)
        loss.backward()
        made.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_sgd_is_the_textbooks():
    layer = nn.Linear(1, 1, bias=False)
    made = make_optimizer(spec(optimizer="sgd"), layer)
    weight, momentum = float(layer.weight.detach()), 0.0
    for gradient in (2.0, -1.0, 0.5):
        layer.weight.grad = torch.full((1, 1), gradient)
        made.step()
        momentum = 0.9 * momentum + gradient + 1e-4 * weight
        weight -= 0.01 * momentum
        assert float(layer.weight.detach()) == pytest.approx(weight, rel=1e-5)


def test_muon_turns_hidden_matrices_and_adam_the_rest(problem):
    expected = {
        "stid": [f"layers.{k}.{part}.weight" for k in range(3) for part in ("inner", "outer")],
        "staeformer": [
            f"{axis}_layers.0.{part}.weight"
            for axis in ("time", "node")
            for part in ("to_query_key_value", "to_output", "inner", "outer")
        ],
    }
    for name, matrices in expected.items():
        model = seeded(problem, model=name, dim=8)
        names = {id(parameter): key for key, parameter in model.named_parameters()}
        assert [names[id(weight)] for weight in hidden_weights(model)] == matrices
        muon, adam = make_optimizer(spec(optimizer="muon"), model).parts
        assert [type(muon), type(adam)] == [torch.optim.Muon, torch.optim.Adam]
        assert [names[id(weight)] for weight in muon.param_groups[0]["params"]] == matrices


def test_steps_of_muon_are_orthogonal_and_of_adams_size():
    model = nn.Sequential(nn.Linear(32, 32, bias=False), nn.Linear(32, 32))
    weight = model[0].weight
    before = weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    make_optimizer(spec(optimizer="muon"), model).step()
    step = (weight.detach() - before) / 0.01
    # Singular values of Muon's step lie about 1; times 0.2 sqrt(width), its root mean square is 0.2, about that of Adam's.
    values = torch.linalg.svdvals(step) / (0.2 * math.sqrt(32))
    assert 0.6 < float(values.median()) < 1.2
    assert float(values.max()) < 1.4
    assert float(step.square().mean().sqrt()) == pytest.approx(0.2, rel=0.2)
