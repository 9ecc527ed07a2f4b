"""tsl as its users use it: ids = plan, a validation in every epoch, its own masked losses."""

import copy
import types

import numpy as np
import pytest
import torch
from sparse_stand_ins import importable

import stprune

reason = "tsl is missing: make frameworks installs it"
pytest.importorskip("torch_geometric", reason=reason)
with importable():
    pytest.importorskip("tsl", reason=reason)
    from tsl.engines import Predictor

import pytorch_lightning as pl  # noqa: E402
from lightning_watch import QUIET, watching  # noqa: E402
from readme import code_of  # noqa: E402
from torch.utils.data import Subset  # noqa: E402
from tsl.data import SpatioTemporalDataset  # noqa: E402
from tsl.data.loader import StaticGraphLoader  # noqa: E402
from tsl.metrics.torch import MaskedMAE, MaskedMSE  # noqa: E402

from stprune.integrations.tsl import Pruning  # noqa: E402

BATCH_SIZE, EPOCHS = 16, 4
RANDOM = np.random.default_rng(0)
SERIES = np.sin(np.arange(120)[:, None] / 5 + np.arange(4)).astype("float32")
MASK = RANDOM.random(SERIES.shape) < 0.8
pytestmark = pytest.mark.filterwarnings("ignore")


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x.transpose(1, 3)).transpose(1, 3)


def sets(mask):
    data = SpatioTemporalDataset(SERIES, mask=MASK if mask else None, window=6, horizon=3)
    return Subset(data, list(range(10, 90))), Subset(data, list(range(90, len(data))))


def predictor_of(loss):
    torch.manual_seed(0)
    options = {"optim_class": torch.optim.Adam, "optim_kwargs": {"lr": 1e-2}, "metrics": {"mae": MaskedMAE()}}
    return Predictor(Model(), loss_fn=loss, **options)


def fit(predictor, loader, val, *callbacks):
    pl.Trainer(max_epochs=EPOCHS, callbacks=list(callbacks), **QUIET).fit(
        predictor, loader, StaticGraphLoader(val, batch_size=64)
    )
    return predictor


class Look(pl.Callback):
    """Compares each loss with the library's values, and the first epoch's scores."""

    def __init__(self, sampler, power):
        self.sampler, self.power, self.different = sampler, power, False

    def on_train_batch_start(self, trainer, module, batch, _):
        mask = batch.get("mask")
        mask = torch.ones_like(batch.y) if mask is None else mask.float()
        weights = self.sampler.weights_of(batch.sample).view(-1, 1, 1, 1)
        self.different |= float(weights.max() - weights.min()) > 0.1
        with torch.no_grad():
            errors = (module(**batch.input) - batch.y).abs() ** self.power * mask
        self.expected = float((errors * weights).sum() / mask.sum())
        self.scores = errors.sum((1, 2, 3)) / mask.sum((1, 2, 3))

    def on_train_batch_end(self, trainer, module, outputs, batch, _):
        assert float(outputs["loss"]) == pytest.approx(self.expected, rel=1e-5)
        if self.sampler.epoch == 0:
            torch.testing.assert_close(self.sampler.table.scores[batch.sample], self.scores)


@pytest.mark.parametrize(("metric", "power"), [(MaskedMAE, 1), (MaskedMSE, 2)])
@pytest.mark.parametrize("mask", [False, True])
def test_ids_validations_steps_and_the_librarys_own_loss(metric, power, mask):
    train, val = sets(mask)
    sampler = stprune.PruningSampler(train, num_epochs=EPOCHS, keep_ratio=0.5)
    pruning = Pruning(sampler, batch_size=BATCH_SIZE)
    watch, look = watching(pl, sampler, lambda batch: batch.sample), Look(sampler, power)
    fit(predictor_of(pruning.loss(metric())), pruning.loader(train), val, pruning, watch, look)
    watch.check(BATCH_SIZE, EPOCHS)
    assert look.different, "weights differ"


@pytest.mark.parametrize("mask", [False, True])
def test_with_nothing_pruned_it_is_the_librarys_own_run(mask):
    train, val = sets(mask)
    results = []
    for pruned in (True, False):
        sampler = stprune.PruningSampler(train, num_epochs=EPOCHS, method="full")
        pruning = Pruning(sampler, batch_size=BATCH_SIZE)
        if pruned:
            predictor = fit(predictor_of(pruning.loss(MaskedMAE())), pruning.loader(train), val, pruning)
        else:
            stock = StaticGraphLoader(train, batch_size=BATCH_SIZE, sampler=sampler)
            predictor = fit(predictor_of(MaskedMAE()), stock, val)
        results.append(predictor.state_dict())
    for name, values in results[0].items():
        assert torch.equal(values, results[1][name]), name


def test_an_id_is_its_window():
    train, _ = sets(True)
    sampler = stprune.PruningSampler(train, num_epochs=EPOCHS)
    batch = next(iter(Pruning(sampler, batch_size=BATCH_SIZE).loader(train)))
    for at, index in enumerate(batch.sample.tolist()):
        assert torch.equal(batch.y[at], train[index].y)


def test_copies_of_the_loss_share_the_sampler():
    train, _ = sets(False)
    sampler = stprune.PruningSampler(train, num_epochs=EPOCHS)
    pruning = Pruning(sampler, batch_size=BATCH_SIZE)
    metric = copy.deepcopy(pruning.loss(MaskedMAE()))
    batch = next(iter(pruning.loader(train)))
    pruning.on_train_batch_start(None, None, batch, 0)
    metric(batch.y.clone().requires_grad_(), batch.y).backward()
    assert sampler.table.scores[batch.sample].isfinite().all()


def test_readme():
    train, val = sets(False)
    trainers = types.SimpleNamespace(Trainer=lambda **given: pl.Trainer(**QUIET | given))
    names = {"stprune": stprune, "torch": torch, "pl": trainers, "Predictor": Predictor, "MaskedMAE": MaskedMAE}
    options = {"optim_class": torch.optim.Adam, "optim_kwargs": {"lr": 1e-2}}
    names |= {"train_set": train, "val_loader": StaticGraphLoader(val, batch_size=64), "model": Model(), "options": options}
    exec(code_of("tsl"), names)
    assert names["trainer"].global_step == names["sampler"].total_steps(32)
