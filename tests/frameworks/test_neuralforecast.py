"""NeuralForecast's NHITS on the sampler's plans: own epochs, own loss, and what is refused."""

import logging

import numpy as np
import pytest
from example_checks import example
from lightning_watch import QUIET
from readme import code_of

pytest.importorskip("neuralforecast", reason="neuralforecast is missing: pip install stprune[frameworks]")
pandas = pytest.importorskip("pandas")

from neuralforecast import NeuralForecast  # noqa: E402
from neuralforecast.common._base_model import BaseModel  # noqa: E402
from neuralforecast.losses.pytorch import MSE, DistributionLoss  # noqa: E402
from neuralforecast.models import LSTM, NHITS  # noqa: E402

from stprune.integrations.neuralforecast import PruningModel  # noqa: E402

NUM_WINDOWS, STEPS = 319, (10, 5, 10)
OPTIONS = {"h": 6, "input_size": 12, "windows_batch_size": 32, "batch_size": 4, "max_steps": sum(STEPS)}
EPOCHS = {"num_epochs": 3}


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


def frame():
    """Four series of 100 steps, of which the later ones are noisier; the third begins late."""
    steps = np.arange(100)
    noise = np.random.default_rng(0).normal(size=(4, 100))
    parts = [pandas.DataFrame({"unique_id": i, "ds": steps, "y": np.sin(steps / 5 + i) + 0.1 * i * noise[i]}) for i in range(4)]
    parts[2] = parts[2][20:]
    return pandas.concat(parts)


class Pruned(PruningModel, NHITS):
    pruning = EPOCHS

    def _next_ids(self, num_windows):
        index = super()._next_ids(num_windows)
        self.ids = [*getattr(self, "ids", ()), index.tolist()]
        self.plans = {**getattr(self, "plans", {}), self.sampler.epoch: self.sampler.plan.indices.tolist()}
        return index

    def validation_step(self, *values):
        self.validations = getattr(self, "validations", 0) + 1
        return super().validation_step(*values)


def fitted(cls=Pruned, **options):
    small = {"mlp_units": 3 * [[8, 8]]} if issubclass(cls, NHITS) else {"encoder_hidden_size": 8, "decoder_hidden_size": 8}
    model = cls(**OPTIONS | QUIET | small | {"val_check_steps": 7} | options)
    forecast = NeuralForecast([model], freq=1)
    forecast.fit(frame(), val_size=6)
    return forecast


def test_ids_are_the_plan_over_the_runs_own_epochs():
    forecast = fitted()
    model = forecast.models[0]
    assert sorted(model.plans) == [0, 1, 2]
    for epoch, plan in model.plans.items():
        begin = sum(STEPS[:epoch])
        batches = model.ids[begin : begin + STEPS[epoch]]
        assert sorted(index for batch in batches for index in batch) == plan
    assert len(model.ids) == model.trainer_kwargs["max_steps"] == sum(STEPS)
    # Two before the run, and one after every seventh step: none reached a score.
    assert model.validations == 1 + sum(STEPS) // 7
    assert model.sampler.table.num_losses == model.sampler.table.num_samples == NUM_WINDOWS
    assert len(forecast.predict()) == 4 * OPTIONS["h"]
    forecast.fit(frame(), val_size=6)  # models are copied; a second run begins anew
    assert forecast.models[0].sampler.epoch == 2


@pytest.mark.parametrize("loss", [None, MSE()])
@pytest.mark.parametrize("model", [NHITS, LSTM])
def test_with_nothing_pruned_it_is_the_models_own_run(model, loss):
    class Full(PruningModel, model):
        pruning = EPOCHS | {"method": "full"}

    options = {"windows_batch_size": None, "max_steps": 3, "val_check_steps": 3} | ({} if loss is None else {"loss": loss})
    losses = [[value for _, value in fitted(cls, **options).models[0].train_trajectories] for cls in (Full, model)]
    assert len(losses[0]) == 3
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"max_steps": 24}, ValueError, "max_steps must be the total_steps 25 of 319 windows, got 24"),
        ({"batch_size": 3}, ValueError, "batch_size must be at least the number of series 4, got 3"),
        ({"loss": DistributionLoss("Normal")}, TypeError, "loss must be a point loss, got DistributionLoss"),
    ],
)
def test_what_does_not_fit_is_refused(options, error, said):
    with pytest.raises(error, match=f"PruningModel: {said}"):
        fitted(**options)


@pytest.mark.parametrize("name", ["_fit", "_create_windows", "_sample_windows", "_normalization", "_parse_windows"])
def test_a_version_without_what_is_needed_is_refused(name, monkeypatch):
    monkeypatch.setattr(BaseModel, name, lambda self, other: None)
    with pytest.raises(RuntimeError, match=f"PruningModel: BaseModel must have {name}, as in neuralforecast 3.3, got 3"):
        fitted()


def test_readmes_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Lightning's logger writes there
    names = {"NHITS": NHITS, "NeuralForecast": NeuralForecast, "frame": frame()}
    exec(code_of("NeuralForecast"), names)
    assert names["model"].sampler is None  # NeuralForecast trains a copy
    assert names["forecast"].models[0].sampler.epoch == 2


def test_the_example(capsys):
    example("forecast_nhits").main(["--epochs", "3", "--steps", "150"])
    said = capsys.readouterr().out
    assert "delivered = planned: True" in said
