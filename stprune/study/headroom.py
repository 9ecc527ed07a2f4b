"""`stprune headroom`: what a smaller batch and drawing nodes can save on a series, with one of the study's models."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

import stprune
from stprune.study import machine
from stprune.study.grid import base_rate
from stprune.study.prediction import predict
from stprune.study.presets import cut
from stprune.study.problem import prepare
from stprune.study.series import load
from stprune.study.spec import MODELS, Spec


@dataclass(frozen=True)
class HeadroomOptions:
    """Settings of `stprune headroom`; `resolve` checks them.

    Attributes:
        data: series, as `stprune.study.series.load` reads it.
        model: one of `MODELS`.
        dim: width of the model.
        epochs: passes over the training windows that full training is to make.
        seconds: that the measurement may take, training not counted.
        device: "auto", "cpu", "cuda" or another torch device.
        batch_size: windows per step in use.
        seed: of weights, orders and draws.
        quick: cut the series, to see that it works.
    """

    data: str = "simbench"
    model: str = "stid"
    dim: int = 16
    epochs: int = 6
    seconds: float = 60.0
    device: str = "auto"
    batch_size: int = 64
    seed: int = 0
    quick: bool = False

    def resolve(self) -> HeadroomOptions:
        """Check every setting and settle the device.

        Raises:
            ValueError: a setting is outside its range, or the device cannot be used.
        """
        if self.model not in MODELS:
            raise ValueError(f"--model: must be one of {', '.join(MODELS)}, got {self.model}")
        for name, count, least in (
            ("--dim", self.dim, 1),
            ("--epochs", self.epochs, 1),
            ("--batch-size", self.batch_size, 1),
            ("--seed", self.seed, 0),
        ):
            if count < least:
                raise ValueError(f"{name}: must be at least {least}, got {count}")
        if not self.seconds > 0:
            raise ValueError(f"--seconds: must be above 0, got {self.seconds:g}")
        return replace(self, device=str(machine.choose_device(self.device)))


def run_headroom(options: HeadroomOptions) -> stprune.Headroom:
    """Load the series, train a little, measure, and print what was found.

    Args:
        options: settings; resolved here.

    Returns:
        The result.

    Raises:
        ValueError: a setting or the data is not usable.
        OSError: the data cannot be read.
        ModuleNotFoundError: the data's package is not installed.
    """
    options = options.resolve()
    data = cut(options.data) if options.quick else options.data
    series = load(data)
    problem = prepare(series, device=torch.device(options.device))
    print(
        f"{series.name}: {series.values.shape[0]:,} steps x {problem.num_nodes} nodes, {len(problem.split.train):,} training "
        f"windows, {options.epochs} passes.\n{options.model} on {machine.device_name(problem.device)}, {machine.cores()} "
        f"cores, batch {options.batch_size}.",
        flush=True,
    )
    rate = base_rate(options.model, "adam")
    started = time.perf_counter()
    found = predict(
        Spec(data, options.model, "full", options.batch_size, rate, float(options.epochs), dim=options.dim, seed=options.seed),
        problem,
        batch_in_use=options.batch_size,
        seconds=options.seconds,
        progress=True,
    )
    print(f"Trained a little and measured in {time.perf_counter() - started:.0f} s.\n\n{found}", flush=True)
    return found
