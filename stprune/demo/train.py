"""One training run: an epoch at a time, on a clock of its own."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stprune.demo.feeds import Feed, PrunedFeed, synchronize
from stprune.demo.options import MODEL_DIM
from stprune.demo.records import EpochRecord, Metrics, RunRecord
from stprune.demo.windows import HISTORY, HORIZON, Part, Problem
from stprune.models import STID, STAEformer

WEIGHT_DECAY = 1e-4
GRADIENT_CLIP = 5.0
LEARNING_RATE = {"stid": 2e-3, "staeformer": 1e-3}
_FINAL_RATE = 0.01
# Evaluation holds no gradients, so that larger batches than in training cost no memory to speak of.
_EVALUATION_BATCH = 256


class Evaluation(NamedTuple):
    """Errors of a model on a part of the series.

    Attributes:
        metrics: over everything.
        node_mae: [node] float32, mean absolute error of each node; NaN where no target counts.
    """

    metrics: Metrics
    node_mae: NDArray[np.float32]


@dataclass(frozen=True)
class Trainer:
    """What all runs of a demo share.

    Attributes:
        problem: series and split.
        model: "stid" or "staeformer".
        dim: embedding width of the model.
        steps_per_day: of the series.
        learning_rate: at the start; falls along a cosine of the optimizer steps to a hundredth of itself.
    """

    problem: Problem
    model: str
    dim: int
    steps_per_day: int
    learning_rate: float

    @classmethod
    def of(cls, problem: Problem, model: str, *, steps_per_day: int) -> Trainer:
        """The trainer of one of the demo's models, at the demo's width and learning rate."""
        return cls(problem, model, MODEL_DIM[model], steps_per_day, LEARNING_RATE[model])

    def build(self, seed: int) -> nn.Module:
        """A model with initial weights that depend on the seed alone; the global random state is put back."""
        kind = {"stid": STID, "staeformer": STAEformer}[self.model]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = kind(
                self.problem.num_nodes,
                history=HISTORY,
                horizon=HORIZON,
                steps_per_day=self.steps_per_day,
                dim=self.dim,
            )
        return model.to(self.problem.device)

    def forecast(self, model: nn.Module, x: Tensor, node: Tensor | None = None) -> Tensor:
        """The model's forecast in the series' unit."""
        forecast: Tensor = model(x, node=node) * self.problem.std + self.problem.mean
        return forecast

    def evaluate(self, model: nn.Module, part: Part) -> Evaluation:
        """Errors on all nodes of a part's windows.

        Args:
            model: not modified.
            part: of the problem's split.

        Returns:
            The errors; NaN where no target counts.
        """
        problem = self.problem
        # Rows: absolute and squared error, targets seen, relative error, targets that count for it.
        totals = torch.zeros((5, problem.num_nodes), dtype=torch.float64, device=problem.device)
        with torch.no_grad():
            for batch in problem.batches(part, batch_size=_EVALUATION_BATCH):
                error = self.forecast(model, batch.x).sub_(batch.y)
                size = batch.y.abs()
                seen = torch.isfinite(batch.y)
                counted = size >= problem.mape_floor  # false for NaN
                error = torch.where(seen, error, 0.0)
                ratio = torch.where(counted, error.abs() / size, 0.0)
                parts = (error.abs(), error.square(), seen, ratio, counted)
                totals += torch.stack([each.sum((0, 1, 3)).double() for each in parts])
        absolute, squared, count, ratios, counted_in = totals.sum(1).tolist()
        metrics = Metrics(
            mae=absolute / count if count else math.nan,
            rmse=math.sqrt(squared / count) if count else math.nan,
            mape=100 * ratios / counted_in if counted_in else math.nan,
        )
        return Evaluation(metrics, (totals[0] / totals[2]).float().cpu().numpy())


def rate_at(progress: float) -> float:
    """Factor of the learning rate after a share of the run's optimizer steps: a cosine from 1 to 0.01.

    Args:
        progress: in [0, 1].

    Returns:
        The factor.

    Example:
        >>> rate_at(0.0), rate_at(1.0)
        (1.0, 0.01)
    """
    return _FINAL_RATE + (1 - _FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress))


class TrainRun:
    """A training run that does one epoch per call, so that several runs can take turns on one machine.

    Args:
        name: name of the run.
        trainer: what all runs share.
        feed: where batches come from.
        seed: of the initial weights.
        setup_seconds: time already spent on preparing the feed; counted as planning.
    """

    def __init__(self, name: str, trainer: Trainer, feed: Feed, *, seed: int, setup_seconds: float = 0.0) -> None:
        self.name = name
        self.seed = seed
        self.trainer = trainer
        self.feed = feed
        self.seconds = setup_seconds
        self.cpu_seconds = setup_seconds
        self.setup_seconds = setup_seconds
        self.records: list[EpochRecord] = []
        self._model = trainer.build(seed)
        self._best = {key: value.clone() for key, value in self._model.state_dict().items()}
        # Fused: one kernel instead of several per tensor, as the fixed cost of a step is what drawing nodes cannot save.
        self._optimizer = torch.optim.Adam(
            self._model.parameters(), lr=trainer.learning_rate, weight_decay=WEIGHT_DECAY, fused=True
        )
        self._rate_progress = 0.0
        self._windows = 0
        self._pairs = 0
        self._scores: list[NDArray[np.float32]] = []
        self._kept = np.zeros(len(trainer.problem.split.train), dtype=np.int64)
        self._pruned_epochs = 0
        self._node_mae: list[NDArray[np.float32]] = []
        self._drawn = np.zeros(trainer.problem.num_nodes, dtype=np.int64)

    @property
    def model(self) -> nn.Module:
        """The model as it is now."""
        return self._model

    @property
    def progress(self) -> float:
        """Share of the epochs done."""
        return len(self.records) / self.feed.num_epochs

    def run_epoch(self) -> EpochRecord:
        """Train one epoch, then evaluate; only the training runs on the run's clock.

        Returns:
            What the epoch gave; also kept in `records`.
        """
        epoch = len(self.records)
        problem = self.trainer.problem
        train = problem.split.train
        synchronize(problem.device)
        wall, cpu = time.perf_counter(), time.process_time()
        num_steps = self.feed.start(epoch)
        rate_step = (1 - self._rate_progress) / (num_steps + self.feed.steps_after(epoch))
        losses = torch.zeros((), dtype=torch.float64, device=problem.device)
        windows = pairs = 0
        off_clock = off_cpu = 0.0
        drawn: list[Tensor] = []
        for step, batch in enumerate(self.feed.batches()):
            self._set_rate(self._rate_progress + step * rate_step)
            prediction = self.trainer.forecast(self._model, batch.x, batch.node)
            loss = self.feed.loss(prediction, batch)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self._model.parameters(), GRADIENT_CLIP)
            self._optimizer.step()
            losses += loss.detach()
            windows += len(batch.index)
            pairs += len(batch.index) * batch.y.shape[2]
            if batch.node is not None:
                drawn.append(batch.node)
            if step == num_steps // 2 and isinstance(self.feed, PrunedFeed):
                stopped, stopped_cpu = time.perf_counter(), time.process_time()
                self.feed.probe_loss(prediction, batch)
                off_clock, off_cpu = time.perf_counter() - stopped, time.process_time() - stopped_cpu
        synchronize(problem.device)
        self.seconds += time.perf_counter() - wall - off_clock
        self.cpu_seconds += time.process_time() - cpu - off_cpu
        self._rate_progress += num_steps * rate_step
        self._windows += windows
        self._pairs += pairs
        if isinstance(self.feed, PrunedFeed):
            self.feed.replay_draws()
        self._remember(windows, drawn)
        steps = num_steps + (self.records[-1].steps if self.records else 0)
        metrics, node_mae = self.trainer.evaluate(self._model, problem.split.validation)
        validation = metrics.mae
        self._node_mae.append(node_mae)
        if not self.records or validation < min(record.validation_mae for record in self.records):
            self._best = {key: value.clone() for key, value in self._model.state_dict().items()}
        self.records.append(
            EpochRecord(
                epoch=epoch,
                seconds=self.seconds,
                steps=steps,
                window_share=windows / len(train),
                pair_share=pairs / (len(train) * problem.num_nodes),
                train_loss=float(losses) / num_steps,
                validation_mae=validation,
            )
        )
        return self.records[-1]

    def finish(self) -> RunRecord:
        """Evaluate the best-validation weights on the test part.

        Returns:
            The outcome of the run.
        """
        self._model.load_state_dict(self._best)
        scores = np.stack(self._scores) if self._scores else np.zeros((0, len(self._kept)), dtype=np.float32)
        extra = 0.0
        if isinstance(self.feed, PrunedFeed):
            extra = float(np.median(self.feed.extra_loss_seconds)) * self.records[-1].steps
        return RunRecord(
            name=self.name,
            seed=self.seed,
            epochs=tuple(self.records),
            test=self.trainer.evaluate(self._model, self.trainer.problem.split.test).metrics,
            windows=self._windows,
            pairs=self._pairs,
            seconds=self.seconds,
            cpu_seconds=self.cpu_seconds,
            plan_seconds=self.setup_seconds + self.feed.plan_seconds,
            score_seconds=extra,
            scores=scores,
            kept=self._kept,
            pruned_epochs=self._pruned_epochs,
            node_mae=np.stack(self._node_mae),
            drawn=self._drawn,
        )

    def _set_rate(self, progress: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self.trainer.learning_rate * rate_at(min(progress, 1.0))

    def _remember(self, windows: int, drawn: list[Tensor]) -> None:
        # After the clock has stopped: what the report shows of the sampler.
        if not isinstance(self.feed, PrunedFeed):
            return
        sampler = self.feed.sampler
        self._scores.append(sampler.table.scores.detach().to("cpu", torch.float32).numpy().copy())
        if windows < len(self._kept):
            self._pruned_epochs += 1
            self._kept[sampler.plan.indices.cpu().numpy()] += 1
        if drawn:
            self._drawn += torch.cat(drawn).view(-1).bincount(minlength=len(self._drawn)).cpu().numpy()
