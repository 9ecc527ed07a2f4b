"""What the loader is worth: the same epochs of full training, delivered by a DataLoader and by WindowLoader."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import stprune
from stprune.demo.feeds import Delivery, PlainFeed, Shuffle, by_window_loader, synchronize
from stprune.demo.train import Trainer, TrainRun
from stprune.demo.windows import HISTORY, HORIZON, Batch, Problem

ROUNDS = 3
"""Measured epochs of each way, after one that warms up."""


@dataclass(frozen=True)
class DeliveryTimes:
    """Seconds of one epoch over all training windows, medians.

    Attributes:
        training: a whole epoch of full training, delivery included.
        alone: the same batches made and thrown away.
        validation_mae: after the measured epochs; both ways see the same batches, so it is the same up to rounding.
    """

    training: float
    alone: float
    validation_mae: float


def usual_series(problem: Problem) -> Tensor:
    """The array that the field's repositories cut windows from: normalised values and the clock as further channels.

    Args:
        problem: not modified.

    Returns:
        [time, node, 3] float32 on the CPU; NaN where missing.
    """
    values = ((problem.values - problem.mean) / problem.std).cpu()
    clock = problem.calendar.cpu()[:, None].expand(-1, problem.num_nodes, -1)
    return torch.cat([values[..., None], clock], dim=-1)


def by_data_loader(series: Tensor) -> Delivery:
    """The usual way to the same batches: a DataLoader over a data set that slices one window at a time.

    Args:
        series: from `usual_series`.

    Returns:
        A `Delivery`; no worker processes, as they only cost more on windows in memory.
    """

    def deliver(problem: Problem, order: Shuffle, batch_size: int) -> Iterator[Batch]:
        part = problem.split.train
        windows = stprune.WindowDataset(
            series,
            history=HISTORY,
            horizon=HORIZON,
            stride=part.stride,
            start=part.start,
            stop=part.stop,
            target_channels=0,
        )
        loader = DataLoader(stprune.IndexedDataset(windows), batch_size=batch_size, sampler=order)
        for index, (x, y) in loader:
            index, x, y = (each.to(problem.device) for each in (index, x, y))
            if not problem.complete:
                x = torch.nan_to_num(x, nan=0.0)
            yield Batch(index, None, x, y * problem.std + problem.mean)

    return deliver


def compare_deliveries(
    trainer: Trainer, *, batch_size: int, seed: int, tick: Callable[[], None] = lambda: None
) -> dict[str, DeliveryTimes]:
    """Train fresh models by both ways, epoch by epoch in turns, then deliver without training, in turns as well.

    Args:
        trainer: as for the runs.
        batch_size: windows per step.
        seed: of weights and order, the same for both.
        tick: called after every epoch of training: 2 * (1 + `ROUNDS`) times.

    Returns:
        Times of "DataLoader" and "WindowLoader".
    """
    problem = trainer.problem
    ways: dict[str, Delivery] = {"DataLoader": by_data_loader(usual_series(problem)), "WindowLoader": by_window_loader}
    runs = {
        name: TrainRun(
            name,
            trainer,
            PlainFeed(problem, batch_size=batch_size, num_epochs=1 + ROUNDS, seed=seed, delivery=way),
            seed=seed,
        )
        for name, way in ways.items()
    }
    training: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + ROUNDS):
        for name, run in runs.items():
            before = run.seconds
            training[name].append(run.run_epoch().seconds - before)
            tick()
    alone: dict[str, list[float]] = {name: [] for name in ways}
    order = Shuffle(len(problem.split.train), seed)
    for _ in range(1 + ROUNDS):
        for name, way in ways.items():
            started = time.perf_counter()
            for _batch in way(problem, order, batch_size):
                pass
            synchronize(problem.device)
            alone[name].append(time.perf_counter() - started)
    return {
        name: DeliveryTimes(
            training=statistics.median(training[name][1:]),
            alone=statistics.median(alone[name][1:]),
            validation_mae=run.records[-1].validation_mae,
        )
        for name, run in runs.items()
    }
