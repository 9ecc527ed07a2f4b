"""Lightning with pruned windows: a callback and a sampler. On one process or two: --devices 2.

The run trains, then a second one goes on from a checkpoint in the middle of an epoch and must train on what was left.
"""

import argparse
import logging
import pathlib
import tempfile
import warnings

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader

import stprune
from stprune.integrations.lightning import Pruning


def series(steps, nodes):
    """[time, node, 1]: two waves a node, and noise that grows from node to node."""
    torch.manual_seed(0)
    time, node = torch.arange(steps).view(-1, 1), torch.arange(nodes).view(1, -1)
    waves = torch.sin(time / 5 + node) + 0.5 * torch.sin(time / 37)
    return (waves + 0.3 * node / nodes * torch.randn(steps, nodes)).unsqueeze(-1)


class Forecaster(L.LightningModule):
    """A small network for each node's window, which keeps the ids that it trained on."""

    def __init__(self, criterion):
        super().__init__()
        self.criterion = criterion
        self.net = torch.nn.Sequential(torch.nn.Linear(12, 32), torch.nn.ReLU(), torch.nn.Linear(32, 12))
        self.ids, self.planned, self.validations = [], 0, 0

    def forward(self, x):
        return self.net(x.transpose(1, 3)).transpose(1, 3)

    def on_train_epoch_start(self):
        self.planned += len(self.criterion.sampler)

    def training_step(self, batch, _):
        index, (x, y) = batch
        self.ids.append(index.tolist())
        return self.criterion(self(x), y, index)

    def validation_step(self, batch, _):
        x, y = batch
        self.log("val", self.criterion(self(x), y), sync_dist=True)

    def on_validation_epoch_end(self):
        self.validations += not self.trainer.sanity_checking

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters())
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Checkpoint(L.Callback):
    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def run(options, path, checkpoint=None):
    data = series(options.steps, nodes=8)
    cut = options.steps * 3 // 4
    train, val = (stprune.WindowDataset(part, history=12, horizon=12) for part in (data[:cut], data[cut:]))
    sampler = stprune.PruningSampler(train, num_epochs=options.epochs, keep_ratio=0.5)
    loader = DataLoader(stprune.IndexedDataset(train), batch_size=32, sampler=sampler)
    module = Forecaster(stprune.PrunedLoss(sampler))
    save = [] if checkpoint else [Checkpoint(options.save_at, path)]
    trainer = L.Trainer(
        accelerator="cpu",
        devices=options.devices,
        strategy="ddp" if options.devices > 1 else "auto",
        callbacks=[Pruning(sampler, batch_size=32), *save],
        max_epochs=options.epochs,
        **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
    )
    trainer.fit(module, loader, DataLoader(val, batch_size=256), ckpt_path=checkpoint)
    return trainer, module, sampler


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2000, help="length of the series")
    parser.add_argument("--save-at", type=int, default=5, help="step after which the checkpoint is written")
    parser.add_argument("--devices", type=int, default=1, help="processes")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    path = pathlib.Path(tempfile.gettempdir()) / f"stprune-lightning-{options.devices}.ckpt"
    trainer, module, sampler = run(options, path)
    again = run(options, path, checkpoint=path)[1]
    if trainer.is_global_zero:
        total = sampler.total_steps(32)
        print(f"ids delivered {sum(map(len, module.ids))}, planned {module.planned}")
        print(f"optimizer steps {trainer.global_step}, of OneCycleLR {total}; validations {module.validations}")
        print(f"validation error {trainer.callback_metrics['val']:.4f}")
        print(f"continued after step {options.save_at}: same batches {again.ids == module.ids[options.save_at :]}")
        path.unlink()


if __name__ == "__main__":
    main()
