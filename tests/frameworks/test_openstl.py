"""OpenSTL's experiment with SimVP: ids = plan, validations = epochs, OneCycleLR ends at its last step.

CI runs a small engine that makes the same calls. The real code is in no registry: with STPRUNE_EXTERNAL, a folder that holds
`chengtan9907+OpenSTL` (c74deb5), the same tests run on it.
"""

import itertools
import os
import pathlib
import sys
import types

import pytest
import torch

import stprune

pl = pytest.importorskip("pytorch_lightning", reason="pytorch-lightning is missing: pip install stprune[frameworks]")

from lightning_watch import QUIET, watching  # noqa: E402
from readme import code_of  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

from stprune.integrations.openstl import Pruning  # noqa: E402

BATCH_SIZE, EPOCHS, CLIPS = 8, 4, 36
pytestmark = pytest.mark.filterwarnings("ignore")


class Moving(Dataset):
    """Clips [4, 1, 8, 8] of a square that moves, some brighter than others; the first 4 frames of 8, and the last 4."""

    mean, std, data_name = 0.0, 1.0, "moving"

    def __init__(self, clips=CLIPS):
        self.clips = clips

    def __len__(self):
        return self.clips

    def __getitem__(self, index):
        frames = torch.zeros(8, 1, 8, 8)
        for time in range(8):
            row, column = (index + time) % 7, (index // 7 + 2 * time) % 7
            frames[time, :, row : row + 2, column : column + 2] = 1.0 + index % 5
        return frames[:4], frames[4:]


class Method(pl.LightningModule):
    """As SimVP of OpenSTL, with a smaller net."""

    def __init__(self, **args):
        super().__init__()
        self.save_hyperparameters()
        self.model = torch.nn.Conv2d(4, 4, 3, padding=1)
        self.criterion = torch.nn.MSELoss()

    def forward(self, batch_x, batch_y=None):
        return self.model(batch_x.squeeze(2)).unsqueeze(2)

    def training_step(self, batch, batch_idx):
        batch_x, batch_y = batch
        loss = self.criterion(self(batch_x), batch_y)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        batch_x, batch_y = batch
        loss = self.criterion(self(batch_x, batch_y), batch_y)
        self.log("val_loss", loss, on_step=True, on_epoch=True, prog_bar=False)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.model.parameters(), lr=self.hparams.lr)
        total = self.hparams.epoch * self.hparams.steps_per_epoch
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.hparams.lr, total_steps=total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Data(pl.LightningDataModule):
    def __init__(self, train, val, test):
        super().__init__()
        self.train_dataloader, self.val_dataloader, self.test_dataloader = lambda: train, lambda: val, lambda: test


class SmallExperiment:
    def __init__(self, args, dataloaders):
        pl.seed_everything(args.seed)
        self.data = Data(*dataloaders)
        self.method = Method(steps_per_epoch=len(dataloaders[0]), **vars(args))
        self.trainer = pl.Trainer(max_epochs=args.epoch, callbacks=[], **QUIET)

    def train(self):
        self.trainer.fit(self.method, self.data)


def real_experiment():
    folder = pathlib.Path(os.environ.get("STPRUNE_EXTERNAL", "/nowhere")) / "chengtan9907+OpenSTL"
    if not folder.is_dir():
        pytest.skip("OpenSTL's code is not there: set STPRUNE_EXTERNAL")
    sys.path.insert(0, str(folder))
    try:
        from openstl.api import BaseExperiment
    finally:
        sys.path.remove(str(folder))

    class OnCPU(BaseExperiment):
        def _init_trainer(self, args, callbacks, strategy):
            return pl.Trainer(
                max_epochs=args.epoch, callbacks=callbacks, **QUIET | {"enable_checkpointing": True, "logger": True}
            )

    return OnCPU


def args_of(experiment, epochs):
    args = {"epoch": epochs, "lr": 1e-2, "seed": 0}
    if experiment is not SmallExperiment:
        from openstl.utils import create_parser, default_parser

        sizes = {"in_shape": (4, 1, 8, 8), "pre_seq_length": 4, "aft_seq_length": 4, "total_length": 8, "hid_S": 4, "hid_T": 8}
        sizes |= {"N_S": 2, "N_T": 2, "model_type": "gSTA", "method": "simvp", "device": "cpu", "sched": "onecycle"}
        sizes |= {"metrics": ["mse"], "no_display_method_info": True, "gpus": [0]}
        args = vars(create_parser().parse_args([])) | default_parser() | sizes | args
    return types.SimpleNamespace(**args)


@pytest.fixture(params=["small", "real"])
def experiment(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = SmallExperiment if request.param == "small" else real_experiment()

    def build(loader, epochs=EPOCHS):
        stock = DataLoader(Moving(16), batch_size=BATCH_SIZE)
        return made(args_of(made, epochs), dataloaders=(loader, stock, stock))

    return build


def sampler_of(**options):
    return stprune.PruningSampler(CLIPS, num_epochs=EPOCHS, fixed_length=True, **options)


class Look(pl.Callback):
    """Compares each loss with the plain one per clip, and keeps the rates."""

    def __init__(self, sampler):
        self.sampler, self.rates, self.different = sampler, [], False

    def on_train_batch_start(self, trainer, module, batch, _):
        x, y = batch
        weights = self.sampler.weights_of(batch.index)
        self.different |= float(weights.max() - weights.min()) > 0.1
        with torch.no_grad(), torch.random.fork_rng():  # the step drops the same paths
            errors = ((module(x) - y) ** 2).flatten(1).mean(1)
        self.expected = float((errors * weights).mean())
        self.rates.append(module.optimizers().param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, module, outputs, *_):
        assert float(outputs["loss"]) == pytest.approx(self.expected, rel=1e-4)


def test_ids_validations_steps_and_the_schedule(experiment):
    sampler = sampler_of(keep_ratio=0.5)
    pruning = Pruning(sampler, batch_size=BATCH_SIZE)
    exp = experiment(pruning.loader(Moving()))
    exp.method.criterion = pruning.criterion(exp.method.criterion)
    watch, look = watching(pl, sampler, lambda batch: batch.index), Look(sampler)
    exp.trainer.callbacks.extend([pruning, watch, look])
    exp.train()
    steps = [len(batches) for batches in watch.batches[:-1]]
    assert steps == [3] * EPOCHS  # 18 clips of 36
    assert watch.validations == [3, 6, 9, 12]
    assert [sorted(itertools.chain(*batches)) for batches in watch.batches[:-1]] == watch.plans
    assert len(look.rates) == sampler.total_steps(BATCH_SIZE) == 12
    assert look.rates[-1] == min(look.rates) < 1e-6, "OneCycleLR came to its end"
    assert look.different, "weights differ"


def test_with_nothing_pruned_it_is_openstls_own_run(experiment):
    results = []
    for pruned in (True, False):
        sampler = sampler_of(method="full", keep_ratio=1.0)
        pruning = Pruning(sampler, batch_size=BATCH_SIZE)
        exp = experiment(pruning.loader(Moving()) if pruned else DataLoader(Moving(), BATCH_SIZE, sampler=sampler))
        if pruned:
            exp.method.criterion = pruning.criterion(exp.method.criterion)
            exp.trainer.callbacks.append(pruning)
        exp.train()
        results.append(exp.method.state_dict())
    assert results[0].keys() == results[1].keys()
    for name, values in results[0].items():
        assert torch.equal(values, results[1][name]), name


def test_an_id_is_its_clip():
    loader = Pruning(sampler_of(), batch_size=BATCH_SIZE).loader(Moving())
    for batch in loader:
        x, y = batch
        for at, index in enumerate(batch.index.tolist()):
            assert torch.equal(x[at], Moving()[index][0])
            assert torch.equal(y[at], Moving()[index][1])


def test_epochs_of_changing_length_are_refused():
    sampler = stprune.PruningSampler(CLIPS, num_epochs=EPOCHS)
    with pytest.raises(ValueError, match=r"Pruning: sampler must have fixed_length=True, as OpenSTL builds its schedule"):
        Pruning(sampler, batch_size=BATCH_SIZE)


def test_readme(experiment):
    loader = DataLoader(Moving(16), batch_size=BATCH_SIZE)
    names = {"train_set": Moving(), "val_loader": loader, "test_loader": loader, "args": types.SimpleNamespace()}
    names |= {"sampler": sampler_of(), "BaseExperiment": lambda args, dataloaders: experiment(dataloaders[0])}
    exec(code_of("OpenSTL"), names)
    assert names["exp"].trainer.global_step == names["sampler"].total_steps(16)
    assert names["sampler"].table.num_trained > 0
