"""`stprune headroom`: what pruning can save on a series, with one of the demo's models."""

from __future__ import annotations

import importlib.util
import sys
import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

import stprune
from stprune.demo import machine
from stprune.demo.data import load
from stprune.demo.feeds import PlainFeed
from stprune.demo.options import DEFAULT_EPOCHS, MODELS, QUICK_DAYS, QUICK_NODES, choose_device
from stprune.demo.train import WEIGHT_DECAY, Trainer, TrainRun
from stprune.demo.windows import Problem, prepare

_WINDOWS = 128


@dataclass(frozen=True)
class HeadroomOptions:
    """Settings of `stprune headroom`; `resolve` checks them.

    Attributes:
        data: "simbench", "synthetic" or a path.
        model: one of `MODELS`.
        epochs: of full training before anything is measured, at least 0; the learning rate falls as in a run of full length.
        seconds: that the measurement may take, training not counted.
        device: "auto", "cpu", "cuda" or another torch device.
        batch_size: windows per step.
        seed: of weights, orders and draws.
        quick: cut the series, to see that it works.
        steps_per_day: of a series read from a path; None infers it.
        null_value: target value that means "missing", besides NaN; None for none.
    """

    data: str = "simbench"
    model: str = "stid"
    epochs: int = 1
    seconds: float = 60.0
    device: str = "auto"
    batch_size: int = 64
    seed: int = 0
    quick: bool = False
    steps_per_day: int | None = None
    null_value: float | None = None

    def resolve(self) -> HeadroomOptions:
        """Check every setting and settle the device.

        Raises:
            ValueError: a setting is outside its range, or the device cannot be used.
        """
        if self.model not in MODELS:
            raise ValueError(f"--model: must be one of {', '.join(MODELS)}, got {self.model}")
        counts = [("--epochs", self.epochs, 0), ("--batch-size", self.batch_size, 1), ("--seed", self.seed, 0)]
        if self.steps_per_day is not None:
            counts.append(("--steps-per-day", self.steps_per_day, 1))
        for name, count, least in counts:
            if count < least:
                raise ValueError(f"{name}: must be at least {least}, got {count}")
        if not self.seconds > 0:
            raise ValueError(f"--seconds: must be above 0, got {self.seconds:g}")
        return replace(self, device=str(choose_device(self.device)))


def run_headroom(options: HeadroomOptions) -> stprune.Headroom:
    """Load the series, train, measure, and print what was found.

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
    series = load(options.data, steps_per_day=options.steps_per_day)
    if options.quick:
        series = series.cut(QUICK_DAYS * series.steps_per_day, QUICK_NODES)
    problem = prepare(series, device=torch.device(options.device), null_value=options.null_value)
    print(
        f"{series.name}: {series.values.shape[0]:,} steps x {problem.num_nodes} nodes, {len(problem.split.train):,} training "
        f"windows.\n{options.model} on {machine.device_name(problem.device)}, {machine.cores()} cores, batch "
        f"{options.batch_size}, after {_epochs(options.epochs)} of training.",
        flush=True,
    )
    trainer = Trainer.of(problem, options.model, steps_per_day=series.steps_per_day)
    model = trained(trainer, epochs=options.epochs, batch_size=options.batch_size, seed=options.seed)
    started = time.perf_counter()
    found = stprune.headroom(
        model,
        sample(problem, batch_size=options.batch_size, num_windows=max(_WINDOWS, options.batch_size), seed=options.seed),
        optimizer=partial(torch.optim.Adam, lr=trainer.learning_rate, weight_decay=WEIGHT_DECAY, fused=True),
        num_windows=_WINDOWS,
        seconds=options.seconds,
        seed=options.seed,
        progress=True,
    )
    print(f"Measured in {time.perf_counter() - started:.0f} s.\n\n{found}", flush=True)
    return found


def _epochs(count: int) -> str:
    return f"{count} epoch{'' if count == 1 else 's'}"


def trained(trainer: Trainer, *, epochs: int, batch_size: int, seed: int) -> torch.nn.Module:
    """The model after the first epochs of a full training run.

    Args:
        trainer: series, split and model.
        epochs: how many; the run they begin has the demo's full length, or theirs if that is more.
        batch_size: windows per step.
        seed: of weights and orders.

    Returns:
        The model.
    """
    length = max(epochs, DEFAULT_EPOCHS[trainer.model])
    feed = PlainFeed(trainer.problem, batch_size=batch_size, num_epochs=length, seed=seed)
    run = TrainRun("full", trainer, feed, seed=seed)
    if epochs and importlib.util.find_spec("tqdm") is not None:
        from stprune.demo.progress import bar

        with bar("training", epochs, hidden=not sys.stderr.isatty()) as line:
            for _ in range(epochs):
                run.run_epoch()
                line.update()
    else:
        for _ in range(epochs):
            run.run_epoch()
    return run.model


def sample(problem: Problem, *, batch_size: int, num_windows: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Random training windows in batches, as the model takes them, targets in the model's unit.

    Args:
        problem: series and split.
        batch_size: windows per batch.
        num_windows: windows, or all of the training part if it has fewer.
        seed: of the choice.

    Returns:
        Pairs x [B, 12, N, 3], y [B, 12, N, 1]; the MAE of a normalised target is that of the plain one by a constant factor.
    """
    chosen = np.random.default_rng([seed, 4]).permutation(len(problem.split.train))[:num_windows].tolist()
    batches = problem.batches(problem.split.train, chosen, batch_size=batch_size)
    return [(batch.x, (batch.y - problem.mean) / problem.std) for batch in batches]
