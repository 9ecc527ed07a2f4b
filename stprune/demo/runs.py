"""Which runs there are, and how they take turns."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

import stprune
from stprune.demo.feeds import Feed, PlainFeed, PrunedFeed
from stprune.demo.options import PRUNERS, DemoOptions
from stprune.demo.records import EpochRecord, RunRecord
from stprune.demo.train import Trainer, TrainRun
from stprune.demo.windows import HISTORY, HORIZON

NUM_STRATA = 8


def label(name: str, *, keep_ratio: float, node_ratio: float) -> str:
    """A run's name for people.

    Args:
        name: name on the command line.
        keep_ratio: share of the windows that pruned epochs keep.
        node_ratio: share of the nodes that are drawn.

    Returns:
        The label.

    Example:
        >>> label("nodes", keep_ratio=0.5, node_ratio=0.3)
        'ST-Prune, 30% of nodes'
    """
    labels = {
        "full": "full training",
        "full-short": "full, equal steps",
        "soft-random": "soft random",
        "infobatch": "InfoBatch",
        "st-prune": f"ST-Prune, {keep_ratio:.0%} of windows",
        "nodes": f"ST-Prune, {node_ratio:.0%} of nodes",
        "nodes-priority": f"ST-Prune, {node_ratio:.0%} of nodes by error",
        "nodes-long": f"ST-Prune, {node_ratio:.0%} of nodes, long",
        "rs2": "RS2",
        "epsilon-greedy": "epsilon-greedy",
        "ucb": "UCB",
        "seta": "SeTa",
        "top-k": "top-k",
    }
    return labels[name]


@dataclass
class Group:
    """All runs of one seed, which take turns on the machine.

    Attributes:
        options: resolved options of the demo.
        trainer: what the runs share.
        seed: of weights, orders and plans.
    """

    options: DemoOptions
    trainer: Trainer
    seed: int
    _runs: dict[str, TrainRun] = field(default_factory=dict)

    def start(self) -> None:
        """Create the runs; "nodes-long" follows when it is known how many epochs fit."""
        for name in self.options.runs:
            if name != "nodes-long":
                self._runs[name] = self._create(name)

    @property
    def planned(self) -> dict[str, int]:
        """Number of epochs of every run that exists."""
        return {name: run.feed.num_epochs for name, run in self._runs.items()}

    def turns(self) -> Iterator[tuple[str, EpochRecord, int]]:
        """Train: whichever run is furthest behind does its next epoch, until all are done.

        So a drift of the machine's speed hits all runs alike.

        Yields:
            Name of the run, what its epoch gave, and the run's number of epochs.
        """
        while True:
            if "nodes-long" in self.options.runs and "nodes-long" not in self._runs and self._paced():
                self._runs["nodes-long"] = self._create("nodes-long")
            open_runs = [run for run in self._runs.values() if run.progress < 1]
            if not open_runs:
                return
            run = min(open_runs, key=lambda candidate: candidate.progress)
            yield run.name, run.run_epoch(), run.feed.num_epochs

    def finish(self) -> list[RunRecord]:
        """Test every run; in the order of the options."""
        return [self._runs[name].finish() for name in self.options.runs]

    @property
    def _epochs(self) -> int:
        if self.options.epochs is None:
            raise ValueError("Group: options must be resolved, got epochs None")
        return self.options.epochs

    def _create(self, name: str) -> TrainRun:
        started = time.perf_counter()
        feed = self._feed(name)
        # Measuring stationarity and making the strata is part of what pruning costs.
        setup = time.perf_counter() - started if isinstance(feed, PrunedFeed) else 0.0
        return TrainRun(name, self.trainer, feed, seed=self.seed, setup_seconds=setup)

    def _feed(self, name: str) -> Feed:
        problem, options = self.trainer.problem, self.options
        if name == "full":
            return PlainFeed(problem, batch_size=options.batch_size, num_epochs=self._epochs, seed=self.seed)
        if name == "full-short":
            steps = self._pruned("st-prune", strata=None).sampler.total_steps(options.batch_size)
            return PlainFeed(problem, batch_size=options.batch_size, max_steps=steps, seed=self.seed)
        if name in PRUNERS:
            return self._pruned(name, strata=self._strata() if name == "st-prune" else None)
        epochs = self._fitting_epochs() if name == "nodes-long" else self._epochs
        nodes = {"node_ratio": options.node_ratio, "node_sampler": "priority" if name == "nodes-priority" else "uniform"}
        return self._pruned("st-prune", strata=None, epochs=epochs, keep_ratio=1.0, **nodes)

    def _pruned(
        self,
        method: str,
        *,
        strata: torch.Tensor | None,
        epochs: int | None = None,
        keep_ratio: float | None = None,
        node_ratio: float = 1.0,
        node_sampler: str = "uniform",
    ) -> PrunedFeed:
        options = self.options
        return PrunedFeed(
            self.trainer.problem,
            method=method,
            num_epochs=self._epochs if epochs is None else epochs,
            keep_ratio=options.keep_ratio if keep_ratio is None else keep_ratio,
            node_ratio=node_ratio,
            node_sampler=node_sampler,
            batch_size=options.batch_size,
            seed=self.seed,
            strata=strata,
        )

    def _strata(self) -> torch.Tensor:
        """Strata of the training windows by how far the horizon drifts from the history (eq. 9)."""
        problem = self.trainer.problem
        drift = stprune.stationarity(
            problem.values.cpu(),
            history=HISTORY,
            horizon=HORIZON,
            stride=problem.split.train.stride,
            stop=problem.split.train.stop,
        )
        return stprune.stratify(drift, num_strata=NUM_STRATA)

    def _paced(self) -> bool:
        """Whether enough epochs are done to tell how fast full and node-pruned training are."""
        # A quarter of the run, so that a neighbour's burst does not decide it; the long run then catches up.
        enough = max(2, math.ceil(self._epochs / 4))
        return all(len(self._runs[name].records) >= min(enough, self._epochs) for name in ("full", "nodes"))

    def _fitting_epochs(self) -> int:
        """Epochs of the node-pruned run that fit into the wall time of the full run, from the epochs done so far."""
        pace = {}
        for name in ("full", "nodes"):
            seconds = [0.0, *(record.seconds for record in self._runs[name].records)]
            durations = [after - before for before, after in itertools.pairwise(seconds)]
            # The first epoch pays for warming up, so where there is a choice it does not enter the estimate.
            pace[name] = statistics.median(durations[1:] or durations)
        return max(1, math.floor(self._epochs * pace["full"] / pace["nodes"]))
