"""NeuralForecast: NHITS on pruned windows, beside the same model without pruning for as many steps, and for as many epochs."""

import argparse
import logging
import time
import warnings

import numpy as np
import pandas as pd
from neuralforecast import NeuralForecast
from neuralforecast.models import NHITS

import stprune
from stprune.integrations.neuralforecast import PruningModel

HISTORY, HORIZON, NODES, BATCH = 24, 6, 8, 64


def frame(steps):
    """Waves of eight series, of which the later ones are noisier."""
    noise, time = np.random.default_rng(0).normal(size=(NODES, steps)), np.arange(steps)
    return pd.concat(
        pd.DataFrame({"unique_id": i, "ds": time, "y": np.sin(time / 6 + i) + 0.05 * i * noise[i]}) for i in range(NODES)
    )


class PrunedNHITS(PruningModel, NHITS):
    """NHITS, with a note of the ids, which a user has no need of."""

    def _next_ids(self, num_windows):
        index = super()._next_ids(num_windows)
        self.delivered = getattr(self, "delivered", 0) + len(index)
        self.planned = getattr(self, "planned", {}) | {self.sampler.epoch: set(self.sampler.plan.indices.tolist())}
        self.ids = getattr(self, "ids", {})
        self.ids.setdefault(self.sampler.epoch, set()).update(index.tolist())
        return index


def run(name, cls, data, test, max_steps):
    model = cls(
        h=HORIZON, input_size=HISTORY, max_steps=max_steps, windows_batch_size=BATCH, batch_size=NODES, val_check_steps=20,
        mlp_units=3 * [[32, 32]], accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, logger=False,
        enable_checkpointing=False,
    )  # fmt: skip
    begin = time.perf_counter()
    forecast = NeuralForecast([model], freq=1)
    forecast.fit(data, val_size=2 * HORIZON)
    seconds = time.perf_counter() - begin
    error = np.abs(forecast.predict()[cls.__name__].to_numpy() - test["y"].to_numpy()).mean()
    model = forecast.models[0]
    print(f"{name}: {max_steps} steps, {len(model.valid_trajectories)} validations, {seconds:.1f} s, MAE {error:.4f}")
    return model


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=400, help="time steps of each series")
    parser.add_argument("--keep-ratio", type=float, default=0.5)
    options = parser.parse_args(arguments)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")

    PrunedNHITS.pruning = {"num_epochs": options.epochs, "keep_ratio": options.keep_ratio}
    data = frame(options.steps)
    test, data = data[data["ds"] >= options.steps - HORIZON], data[data["ds"] < options.steps - HORIZON]
    # Of each series: a window begins at every step that leaves one step to predict before the validation.
    windows = NODES * (options.steps - 3 * HORIZON - HISTORY)
    total = stprune.PruningSampler(windows, **PrunedNHITS.pruning).total_steps(BATCH)
    model = run("pruned", PrunedNHITS, data, test, total)
    print(f"{model.delivered} ids in {options.epochs} epochs, delivered = planned: {model.ids == model.planned}")
    run("full, equal steps", NHITS, data, test, total)
    run("full, equal epochs", NHITS, data, test, options.epochs * -(-windows // BATCH))


if __name__ == "__main__":
    main()
