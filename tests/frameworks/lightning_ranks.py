"""A script of two DDP processes, started by test_lightning.py: it trains, then continues from checkpoints of every kind.

Usage: python lightning_ranks.py FOLDER. Each rank writes what it trained on to FOLDER/RANK.json.
"""

import json
import logging
import pathlib
import sys
import warnings

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from loops import BATCH_SIZE, DATA, NUM_EPOCHS, Run

from stprune.integrations.lightning import Pruning

FILES = ("step 2", "validation 4", "epoch 4", "step 8")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.simplefilter("ignore")


class Module(pl.LightningModule):
    def __init__(self, run):
        super().__init__()
        self.run, self.weight, self.validations = run, torch.nn.Parameter(torch.ones(1)), []

    def training_step(self, batch, _):
        return self.run.loss(batch, self.weight)

    def validation_step(self, batch, _):
        self.validations.append(len(self.run.ids))

    def configure_optimizers(self):
        self.estimate = self.trainer.estimated_stepping_batches
        return torch.optim.SGD(self.parameters(), 0.0)


class Save(pl.Callback):
    def save(self, trainer, kind):
        name = f"{kind} {len(trainer.lightning_module.run.ids)}"
        if name in FILES:
            trainer.save_checkpoint(folder / name)

    def on_train_batch_end(self, trainer, *_):
        self.save(trainer, "step")

    def on_validation_end(self, trainer, *_):
        self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer, *_):
        self.save(trainer, "epoch")


def fit(kind, checkpoint=None):
    run = Run(kind)
    module = Module(run)
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=2,
        callbacks=[Pruning(run.sampler, batch_size=BATCH_SIZE)] + ([Save()] if checkpoint is None else []),
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=False,
        max_epochs=NUM_EPOCHS,
        num_sanity_val_steps=0,
        use_distributed_sampler=kind != "batches",
    )
    trainer.fit(module, run.loader, DataLoader(DATA, batch_size=64), ckpt_path=checkpoint)
    return {"ids": run.ids, "validations": module.validations, "estimate": module.estimate, "rank": trainer.global_rank}


folder = pathlib.Path(sys.argv[1])
outcome = {}
for kind in ("sampler", "windows", "batches"):
    outcome[kind] = {"whole": fit(kind)} | {name: fit(kind, folder / name) for name in FILES}
rank = outcome["sampler"]["whole"]["rank"]
(folder / f"{rank}.json").write_text(json.dumps(outcome))
