"""What a demo run leaves behind: plain values, ready for the table, the figures and JSON."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Metrics:
    """Errors over all targets that are not missing.

    Attributes:
        mae: mean absolute error, in the series' unit.
        rmse: root of the mean squared error, in the series' unit.
        mape: mean absolute percentage error in %, over targets of at least the problem's `mape_floor`.
    """

    mae: float
    rmse: float
    mape: float


@dataclass(frozen=True)
class EpochRecord:
    """State of a run after one epoch.

    Attributes:
        epoch: the epoch, from 0.
        seconds: wall time of training so far, evaluation not counted.
        steps: optimizer steps so far.
        window_share: windows used in this epoch, as a share of the training windows.
        pair_share: (window, node) pairs used in this epoch, as a share of all pairs.
        train_loss: mean training loss of the epoch; weighted where the method weighs.
        validation_mae: on the fixed validation windows, all nodes.
    """

    epoch: int
    seconds: float
    steps: int
    window_share: float
    pair_share: float
    train_loss: float
    validation_mae: float


@dataclass(frozen=True)
class RunRecord:
    """Outcome of one run.

    Attributes:
        name: name on the command line.
        seed: seed of initial weights, order and plans.
        epochs: one record per epoch.
        test: errors of the best-validation weights on the whole test part.
        windows: windows used in training, repeats counted.
        pairs: (window, node) pairs used.
        seconds: wall time of training, planning and scoring included, evaluation not.
        cpu_seconds: processor time of the same, over all threads.
        plan_seconds: of `seconds`, deciding what to train on (and measuring stationarity).
        score_seconds: of `seconds`, what the pruned loss costs beyond the plain one: measured difference x steps.
        scores: [epochs, windows] float32 score table after each epoch; empty for runs without one.
        kept: [windows] int64, pruned epochs in which each window was kept; empty for runs without a sampler.
        pruned_epochs: epochs with a keep ratio below 1.
        node_mae: [epochs, node] float32 validation MAE of each node after each epoch.
        drawn: [node] int64, in how many windows each node was drawn, over all epochs; 0 for runs on all nodes.
    """

    name: str
    seed: int
    epochs: tuple[EpochRecord, ...]
    test: Metrics
    windows: int
    pairs: int
    seconds: float
    cpu_seconds: float
    plan_seconds: float
    score_seconds: float
    scores: NDArray[np.float32] = field(repr=False, compare=False)
    kept: NDArray[np.int64] = field(repr=False, compare=False)
    node_mae: NDArray[np.float32] = field(repr=False, compare=False)
    drawn: NDArray[np.int64] = field(repr=False, compare=False)
    pruned_epochs: int = 0

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return self.epochs[-1].steps

    @property
    def best(self) -> EpochRecord:
        """The epoch of the lowest validation MAE, the earliest among equals."""
        return min(self.epochs, key=lambda record: record.validation_mae)

    @property
    def overhead_seconds(self) -> float:
        """Seconds that pruning itself cost."""
        return self.plan_seconds + self.score_seconds

    def seconds_to(self, validation_mae: float) -> float | None:
        """Training time until the validation MAE first was at most the given one; None when it never was."""
        return next((e.seconds for e in self.epochs if e.validation_mae <= validation_mae), None)

    def as_json(self) -> dict[str, Any]:
        """Everything but the arrays per window and node, in types that JSON has."""
        return {
            "name": self.name,
            "seed": self.seed,
            "test": vars(self.test),
            "best_epoch": self.best.epoch,
            "best_validation_mae": self.best.validation_mae,
            "windows": self.windows,
            "pairs": self.pairs,
            "steps": self.steps,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "plan_seconds": self.plan_seconds,
            "score_seconds": self.score_seconds,
            "epochs": [vars(record) for record in self.epochs],
        }


@dataclass(frozen=True)
class Row:
    """One line of the table: a run over its seeds, compared with the full run of the same seed.

    Attributes:
        name: the run.
        mae, rmse, mape: test errors; mean and sample standard deviation over the seeds (0 for one seed).
        mae_change: test MAE against the full run's in %, mean and standard deviation.
        epochs, steps, windows, pairs: means over the seeds.
        seconds: wall time of training, mean and standard deviation.
        speedup: wall time of the full run by this run's, mean and standard deviation.
        overhead: cost of pruning in % of the run's own wall time, mean.
        overhead_of_full: the same in % of the full run's wall time, mean.
        target_share: time until the full run's best validation MAE was reached, as a share of the full run's wall
            time; mean over the seeds, None when a seed never reached it.
    """

    name: str
    mae: tuple[float, float]
    rmse: tuple[float, float]
    mape: tuple[float, float]
    mae_change: tuple[float, float]
    epochs: float
    steps: float
    windows: float
    pairs: float
    seconds: tuple[float, float]
    speedup: tuple[float, float]
    overhead: float
    overhead_of_full: float
    target_share: float | None


def summarize(records: list[RunRecord]) -> list[Row]:
    """Average the runs over their seeds and compare them with the full run.

    Args:
        records: all runs of all seeds; every seed holds a run named "full".

    Returns:
        One row per run name, in the order of first appearance.

    Raises:
        ValueError: a seed has no full run.
    """
    full = {record.seed: record for record in records if record.name == "full"}
    missing = {record.seed for record in records} - set(full)
    if missing:
        raise ValueError(f"summarize: every seed must have a full run, got none for {sorted(missing)}")
    names = list(dict.fromkeys(record.name for record in records))
    return [_row(name, [r for r in records if r.name == name], full) for name in names]


def _row(name: str, runs: list[RunRecord], full: dict[int, RunRecord]) -> Row:
    reached = [run.seconds_to(full[run.seed].best.validation_mae) for run in runs]
    shares = [t / full[run.seed].seconds for t, run in zip(reached, runs, strict=True) if t is not None]
    return Row(
        name=name,
        mae=_spread([run.test.mae for run in runs]),
        rmse=_spread([run.test.rmse for run in runs]),
        mape=_spread([run.test.mape for run in runs]),
        mae_change=_spread([100 * (run.test.mae / full[run.seed].test.mae - 1) for run in runs]),
        epochs=statistics.fmean(len(run.epochs) for run in runs),
        steps=statistics.fmean(run.steps for run in runs),
        windows=statistics.fmean(run.windows for run in runs),
        pairs=statistics.fmean(run.pairs for run in runs),
        seconds=_spread([run.seconds for run in runs]),
        speedup=_spread([full[run.seed].seconds / run.seconds for run in runs]),
        overhead=statistics.fmean(100 * run.overhead_seconds / run.seconds for run in runs),
        overhead_of_full=statistics.fmean(100 * run.overhead_seconds / full[run.seed].seconds for run in runs),
        target_share=statistics.fmean(shares) if len(shares) == len(runs) else None,
    )


def _spread(values: list[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
