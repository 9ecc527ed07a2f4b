"""BasicTS with a pruned sampler: one callback in the config.

python examples/basicts_stid.py trains BasicTS's STID on half of the windows of a made series, in BasicTS's file format.
"""

import argparse
import pathlib
import tempfile

import numpy as np
from basicts import BasicTSLauncher
from basicts.configs import BasicTSForecastingConfig
from basicts.models.STID import STID, STIDConfig
from basicts.runners.callback import BasicTSCallback
from basicts.utils import RunnerStatus

from stprune.integrations.basicts import Pruning

NUM_NODES, SIZES = 20, {"input_len": 12, "output_len": 12}


class Report(BasicTSCallback):
    """Counts what a run did."""

    def __init__(self, pruning):
        self.of, self.steps, self.validations = pruning, 0, 0

    def on_compute_loss(self, runner, **kwargs):
        self.steps += runner.status == RunnerStatus.TRAINING

    def on_validate_end(self, runner, **kwargs):
        self.validations += 1
        sampler = self.of.sampler
        self.line = (
            f"epoch {sampler.epoch}: {sampler.table.num_trained} of {len(sampler.plan)} planned windows, {self.steps} steps, "
            f"{self.validations} validations, validation MAE {runner.meter_pool.get_value('val/MAE'):.3f}"
        )
        print(self.line)


def write_data(folder, rows):
    """Flows [row, node] with a channel-free day and night, and the time of day as the only timestamp."""
    generator = np.random.default_rng(0)
    day = np.arange(rows) % 96 / 96
    flow = 100 + np.sin(2 * np.pi * (day[:, None] - 0.3)) * generator.uniform(20, 80, NUM_NODES)
    flow = (flow + generator.normal(0, 5, flow.shape)).astype(np.float32)
    bounds = {"train": (0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}
    for mode, (first, last) in bounds.items():
        part = slice(int(first * rows), int(last * rows))
        np.save(folder / f"{mode}_data.npy", flow[part])
        np.save(folder / f"{mode}_timestamps.npy", day[part, None].astype(np.float32))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--keep-ratio", type=float, default=0.5)
    parser.add_argument("--rows", type=int, default=3000, help="of the series")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        write_data(pathlib.Path(folder), args.rows)
        pruning = Pruning(keep_ratio=args.keep_ratio)
        config = BasicTSForecastingConfig(
            model=STID,
            model_config=STIDConfig(num_features=NUM_NODES, if_time_in_day=True, num_time_in_day=96, **SIZES),
            dataset_name="made",
            dataset_params={"data_file_path": folder},
            use_timestamps=True,
            batch_size=64,
            lr=2e-3,
            num_epochs=args.epochs,
            callbacks=[pruning, Report(pruning)],
            ckpt_save_dir=f"{folder}/checkpoints",
            **SIZES,
        )
        BasicTSLauncher.launch_training(config)


if __name__ == "__main__":
    main()
