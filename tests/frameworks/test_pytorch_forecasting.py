"""pytorch-forecasting as its users use it: ids = plan, a validation in every epoch, its own losses and weights."""

import types

import numpy as np
import pytest
import torch

import stprune

reason = "pytorch-forecasting is missing: pip install stprune[frameworks]"
library = pytest.importorskip("pytorch_forecasting", reason=reason)
pd = pytest.importorskip("pandas", reason=reason)

import lightning.pytorch as L  # noqa: E402
import torchmetrics  # noqa: E402
from lightning_watch import QUIET, watching  # noqa: E402
from pytorch_forecasting import metrics  # noqa: E402
from readme import code_of  # noqa: E402

from stprune.integrations.pytorch_forecasting import Pruning  # noqa: E402

BATCH_SIZE, EPOCHS = 16, 4
TIME = np.arange(60)
DATA = pd.concat(
    [
        pd.DataFrame({"t": TIME, "group": str(k), "y": np.sin(TIME / 3 + k) * (1 + k) + 5, "weight": 1.0 + TIME % 3})
        for k in range(3)
    ],
    ignore_index=True,
)
NAMES = {"time_idx": "t", "target": "y", "group_ids": ["group"], "time_varying_unknown_reals": ["y"]}
pytestmark = pytest.mark.filterwarnings("ignore")


def made(**options):
    """Training and validation sets."""
    lengths = {"max_encoder_length": 8, "max_prediction_length": 4}
    train = library.TimeSeriesDataSet(DATA[DATA.t < 50], **NAMES, **lengths | options)
    return train, library.TimeSeriesDataSet.from_dataset(train, DATA, min_prediction_idx=50)


def network(train, loss=None, **options):
    torch.manual_seed(0)
    kinds = {"loss": loss} if loss is not None else {}
    return library.NBeats.from_dataset(train, widths=[8, 8], learning_rate=1e-2, backcast_loss_ratio=0.0, **kinds, **options)


def transformer(train, loss):
    torch.manual_seed(0)
    sizes = {"hidden_size": 4, "attention_head_size": 1, "hidden_continuous_size": 4, "dropout": 0.0}
    return library.TemporalFusionTransformer.from_dataset(train, loss=loss, learning_rate=1e-2, **sizes)


def fit(model, loader, val, *callbacks):
    trainer = L.Trainer(max_epochs=EPOCHS, callbacks=list(callbacks), **QUIET)
    trainer.fit(model, loader, val.to_dataloader(train=False, batch_size=64))
    return trainer


CASES = {
    "MASE, the default": (network, {}, None),
    "quantiles": (transformer, {}, metrics.QuantileLoss),
    "a distribution": (transformer, {"target_normalizer": library.GroupNormalizer()}, metrics.NormalDistributionLoss),
    "root of a mean, own weights": (transformer, {"weight": "weight"}, metrics.RMSE),
    "horizons of several lengths": (transformer, {"min_prediction_length": 2}, metrics.MAE),
}


@pytest.mark.parametrize("case", CASES)
def test_ids_validations_and_steps(case):
    model, options, loss = CASES[case]
    train, val = made(**options)
    sampler = stprune.PruningSampler(train, num_epochs=EPOCHS, keep_ratio=0.5)
    pruning = Pruning(sampler, batch_size=BATCH_SIZE)
    watch = watching(L, sampler, lambda batch: batch[0]["index"])
    fit(model(train, None if loss is None else loss()), pruning.loader(train), val, pruning, watch)
    watch.check(BATCH_SIZE, EPOCHS)


@pytest.mark.parametrize("case", CASES)
def test_with_nothing_pruned_it_is_the_librarys_own_run(case):
    model, options, loss = CASES[case]
    train, val = made(**options)
    results = []
    for pruned in (True, False):
        sampler = stprune.PruningSampler(train, num_epochs=EPOCHS, method="full")
        pruning = Pruning(sampler, batch_size=BATCH_SIZE)
        stock = train.to_dataloader(batch_size=BATCH_SIZE, sampler=sampler, shuffle=False, drop_last=False)
        module = model(train, None if loss is None else loss())
        fit(module, pruning.loader(train) if pruned else stock, val, *([pruning] if pruned else []))
        results.append(module.state_dict())
    for name, values in results[0].items():
        assert torch.equal(values, results[1][name]), name


def test_loss_and_scores_of_a_step():
    """The loss is the library's of weighted samples; a score is the sample's own mean, before its weights."""
    train, val = made(weight="weight")
    sampler = stprune.PruningSampler(train, num_epochs=EPOCHS, keep_ratio=0.5)
    pruning = Pruning(sampler, batch_size=BATCH_SIZE)
    model = transformer(train, metrics.MAE())
    differences = []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, _):
            x, (target, weight) = batch
            plan = sampler.weights_of(x["index"])
            with torch.no_grad():
                errors = module.loss.loss(module({key: x[key] for key in x if key != "index"})["prediction"], target)
            own = 1.0 + x["decoder_time_idx"] % 3
            assert torch.equal(weight, own * plan.unsqueeze(1))
            self.expected = float((errors * own * plan.unsqueeze(1)).sum() / errors.numel())
            self.scores = x["index"], errors.mean(1)
            differences.append(float(plan.max() - plan.min()))

        def on_train_batch_end(self, trainer, module, outputs, batch, _):
            assert float(outputs["loss"]) == pytest.approx(self.expected, rel=1e-5)
            index, scores = self.scores
            if sampler.epoch == 0:  # later ones are smoothed
                torch.testing.assert_close(sampler.table.scores[index], scores)

    fit(model, pruning.loader(train), val, pruning, Look())
    assert max(differences) > 0.1, "weights differ"


def test_a_loss_without_values_of_steps_is_refused():
    train, val = made()
    pruning = Pruning(stprune.PruningSampler(train, num_epochs=EPOCHS), batch_size=BATCH_SIZE)
    model = transformer(train, torchmetrics.MeanAbsoluteError())
    with pytest.raises(TypeError, match="the model's loss must give a value for each step, got TorchMetricWrapper"):
        fit(model, pruning.loader(train), val, pruning)


def test_after_a_run_that_failed_no_score_is_taken_twice():
    train, val = made()
    pruning = Pruning(stprune.PruningSampler(train, num_epochs=EPOCHS), batch_size=BATCH_SIZE)

    class Failing(L.Callback):
        def on_train_batch_end(self, *args):
            raise MemoryError

    model = network(train)
    with pytest.raises(MemoryError):
        fit(model, pruning.loader(train), val, pruning, Failing())
    assert not model._forward_hooks


def test_readme():
    train, val = made()
    names = {"stprune": stprune, "training": train, "val_loader": val.to_dataloader(train=False, batch_size=64)}
    trainers = types.SimpleNamespace(Trainer=lambda **given: L.Trainer(**QUIET | given))
    names |= {"L": trainers, "model": network(train)}
    exec(code_of("pytorch-forecasting"), names)
    assert names["trainer"].global_step == names["sampler"].total_steps(64)
    assert names["sampler"].table.scores.isfinite().all()
