"""GluonTS as its users use it: windows of series as samples, ids = plan, a validation in every epoch, its own likelihoods."""

import numpy as np
import pytest
import torch

import stprune

pytest.importorskip("gluonts", reason="GluonTS is missing: pip install stprune[frameworks]")

import gluonts.torch as library
import lightning.pytorch as L
from gluonts.dataset.common import ListDataset
from gluonts.transform import ExpectedNumInstanceSampler
from lightning_watch import QUIET, watching
from readme import code_of

from stprune.integrations.gluonts import num_windows, pruned

BATCH_SIZE, EPOCHS, LENGTHS = 16, 4, (40, 45, 50, 3)
SERIES = [{"start": "2024-01-01", "target": np.sin(np.arange(length) / 3 + k) + k} for k, length in enumerate(LENGTHS)]
DATA = ListDataset(SERIES, freq="h")
FIRST = [0, 37, 79, 126]  # a window may have all of its history padded, and must have its 4 steps of future
CHECKPOINTING = QUIET | {"enable_checkpointing": True}  # its own best weights
pytestmark = pytest.mark.filterwarnings("ignore")

MODELS = {
    library.SimpleFeedForwardEstimator: {"hidden_dimensions": [8]},
    library.DeepAREstimator: {"freq": "h", "hidden_size": 8, "num_layers": 1, "dropout_rate": 0.0},
    library.TemporalFusionTransformerEstimator: {"freq": "h", "hidden_dim": 4, "num_heads": 1},
    library.PatchTSTEstimator: {"patch_len": 4, "d_model": 8, "nhead": 2},
    library.DLinearEstimator: {},
    library.TiDEEstimator: {"freq": "h"},
}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # GluonTS writes its checkpoints into the current folder


def made(model=library.SimpleFeedForwardEstimator, *callbacks, **options):
    settings = {"prediction_length": 4, "context_length": 8, "batch_size": BATCH_SIZE} | MODELS[model] | options
    return model(trainer_kwargs={"max_epochs": EPOCHS, "callbacks": list(callbacks), **CHECKPOINTING}, **settings)


def sampler_of(**options):
    return stprune.PruningSampler(num_windows(made(), DATA), num_epochs=EPOCHS, **options)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_ids_validations_steps_and_the_librarys_own_loss(model):
    torch.manual_seed(0)
    sampler = sampler_of(keep_ratio=0.5)
    watch = watching(L, sampler, lambda batch: batch["index"])
    look = Look(sampler)
    predictor = pruned(made(model, watch, look), sampler).train(DATA, DATA)
    watch.check(BATCH_SIZE, EPOCHS)
    assert look.different, "weights differ"
    # Its own class again, so that it can be saved by name.
    assert type(predictor.prediction_net).__module__.startswith("gluonts.")
    assert len(list(predictor.predict(DATA))) == len(SERIES)


class Look(L.Callback):
    """Compares each loss with the library's values per window; where the net draws nothing at random."""

    def __init__(self, sampler):
        self.sampler, self.different = sampler, False

    def on_train_batch_start(self, trainer, module, batch, _):
        weights = self.sampler.weights_of(batch["index"])
        self.different |= float(weights.max() - weights.min()) > 0.1
        loss, self.values = module.model.loss, []
        with torch.no_grad():
            training = {kind: layer.training for kind, layer in module.named_modules()}
            state = torch.get_rng_state()
            names = {"future_target", "future_observed_values", *module.inputs.keys()} & batch.keys()
            values = loss(**{name: batch[name] for name in names})
            torch.set_rng_state(state)  # the step draws the same dropout
            assert training == {kind: layer.training for kind, layer in module.named_modules()}
        self.expected = float((values * weights).mean())

    def on_train_batch_end(self, trainer, module, outputs, *_):
        assert float(outputs["loss"]) == pytest.approx(self.expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    "model", [library.SimpleFeedForwardEstimator, library.DeepAREstimator], ids=lambda model: model.__name__
)
def test_with_nothing_pruned_it_is_the_librarys_own_step(model):
    results = []
    for own in (True, False):
        torch.manual_seed(0)
        estimator = pruned(made(model), sampler_of(method="full"))
        data = list(estimator.create_transformation().apply(DATA, is_train=True))
        module = made(model).create_lightning_module() if own else estimator.create_lightning_module()
        loader = estimator.create_training_data_loader(data, module)
        L.Trainer(max_epochs=EPOCHS, **QUIET).fit(module, loader)
        results.append(module.state_dict())
    for name, values in results[0].items():
        assert torch.equal(values, results[1][name]), name


def test_an_id_is_its_window():
    estimator = pruned(made(), sampler_of())
    data = list(estimator.create_transformation().apply(DATA, is_train=True))
    loader = estimator.create_training_data_loader(data, estimator.create_lightning_module())
    seen = []
    for batch in loader:
        for at, index in enumerate(batch["index"].tolist()):
            series = np.searchsorted(FIRST, index, side="right") - 1
            place = index - FIRST[series]
            target = SERIES[series]["target"]
            np.testing.assert_allclose(batch["future_target"][at], target[place : place + 4], rtol=1e-6)
            past = target[max(0, place - 8) : place]
            np.testing.assert_allclose(batch["past_target"][at][8 - len(past) :], past, rtol=1e-6)
            seen.append(index)
    assert sorted(seen) == list(range(126))


def test_windows_are_counted_by_the_estimators_sampler():
    cut = ExpectedNumInstanceSampler(num_instances=1.0, min_past=8, min_future=4)
    assert num_windows(made(), DATA) == 126
    assert num_windows(made(train_sampler=cut), DATA) == 126 - 3 * 8
    estimator = pruned(made(train_sampler=cut), stprune.PruningSampler(102, num_epochs=EPOCHS))
    module = estimator.create_lightning_module()
    data = list(estimator.create_transformation().apply(DATA, is_train=True))
    assert all(not batch["past_target"].isnan().any() for batch in estimator.create_training_data_loader(data, module))


def test_refusals():
    with pytest.raises(ValueError, match=r"gluonts\.pruned: sampler must have the data's 126 windows, got 100"):
        pruned(made(), stprune.PruningSampler(100, num_epochs=EPOCHS)).train(DATA)
    with pytest.raises(ValueError, match=r"trainer\.max_epochs must be at most the sampler's 2 epochs, got 4"):
        pruned(made(), stprune.PruningSampler(126, num_epochs=2)).train(DATA)
    wavenet = library.WaveNetEstimator(freq="h", prediction_length=4, trainer_kwargs={"max_epochs": EPOCHS, **CHECKPOINTING})
    sampler = stprune.PruningSampler(num_windows(wavenet, DATA), num_epochs=EPOCHS)
    with pytest.raises(TypeError, match="the estimator's module must describe its inputs, got WaveNetLightningModule"):
        pruned(wavenet, sampler).train(DATA)


def test_readme():
    names = {"stprune": stprune, "dataset": DATA, "validation": DATA}
    names["estimator"] = made()
    names["estimator"].trainer_kwargs["max_epochs"] = 30
    exec(code_of("GluonTS"), names)
    assert names["sampler"].table.scores.isfinite().all()
    assert names["sampler"].epoch == 29
