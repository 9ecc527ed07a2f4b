"""The trainer: one run, from its spec to its row."""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from stprune.study import machine
from stprune.study.families import Draw, make
from stprune.study.networks import build
from stprune.study.optimizers import make_optimizer
from stprune.study.problem import Part, Problem
from stprune.study.rows import Point, Row
from stprune.study.spec import Spec

GRADIENT_CLIP = 5.0
FINAL_RATE = 0.01
HARD_SHARE = 0.05
# Validations of a run, as shares of its budget: more of them early, where the error falls fast.
VALIDATE_AT = (0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0)
# Evaluation holds no gradients, so that larger batches than in training cost no memory to speak of.
_EVALUATION_PAIRS = 16_384


def rate_at(progress: float, schedule: str = "cosine") -> float:
    """Factor of the learning rate after a share of the run's budget.

    Args:
        progress: in [0, 1].
        schedule: "cosine", from 1 to 0.01, or "constant".

    Example:
        >>> rate_at(0.0), rate_at(1.0), rate_at(0.7, "constant")
        (1.0, 0.01, 1.0)
    """
    if schedule == "constant":
        return 1.0
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def train(spec: Spec, problem: Problem, *, tick: Callable[[float], None] = lambda share: None) -> Row:
    """Train one run to the end of its budget, and test the weights of its best validation.

    Args:
        spec: of the run.
        problem: the series that `spec.data` names, prepared.
        tick: called with the share of the budget done, now and then.

    Returns:
        The row.

    Raises:
        ValueError: the spec asks for what its family, model or series cannot do, or for another device than the problem's.
    """
    if spec.device != (device := machine.device_name(problem.device)):
        raise ValueError(f"train: device of the spec must be {device!r}, where the problem is, got {spec.device!r}")
    run = _Run(spec, problem)
    run.train(tick)
    return run.row()


def begun(spec: Spec, problem: Problem, *, share: float) -> nn.Module:
    """The model of a run after a share of its budget; not validated.

    Args:
        spec, problem: as for `train`.
        share: in [0, 1].

    Returns:
        The model, in training mode.
    """
    run = _Run(spec, problem)
    budget = spec.cost * problem.pairs
    draws = iter(run.family.draws())
    while run.pairs < share * budget and not run.diverged:
        run._step(draws, rate_at(run.pairs / budget, spec.rate_schedule))
    return run.model


class _Run:
    def __init__(self, spec: Spec, problem: Problem) -> None:
        self.spec, self.problem = spec, problem
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(spec.seed)
            self.model = build(spec, problem).to(problem.device)
        self.optimizer = make_optimizer(spec, self.model)
        self.clock = Clock(problem.device)
        self.plan_seconds = self.loss_seconds = 0.0
        with self.clock:
            started = time.perf_counter()
            self.family = make(spec, problem)  # strata, groups and tables are part of what a family costs
            self.plan_seconds += time.perf_counter() - started
        self.pairs = self.windows = self.steps = self.num_bytes = 0
        self.curve: list[Point] = []
        self.best = self._weights()
        self.diverged = False

    def train(self, tick: Callable[[float], None]) -> None:
        spec = self.spec
        budget = spec.cost * self.problem.pairs
        waiting = list(VALIDATE_AT)
        draws = iter(self.family.draws())
        while self.pairs < budget and not self.diverged:
            with self.clock:
                self._step(draws, rate_at(self.pairs / budget, spec.rate_schedule))
            if self.pairs >= waiting[0] * budget or self.diverged:
                while len(waiting) > 1 and self.pairs >= waiting[0] * budget:
                    waiting.pop(0)
                self._validate()
                tick(min(1.0, self.pairs / budget))

    def _step(self, draws: object, rate: float) -> None:
        started = time.perf_counter()
        draw: Draw = next(draws)  # type: ignore[call-overload]
        planned = time.perf_counter()
        x, y = self.problem.cut(self.problem.split.train, draw.index, draw.node)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
        prediction = forecast(self.model, self.problem, x, draw.node)
        computed = y.shape[2]
        if draw.num_targets is not None:
            prediction, y = prediction[:, :, : draw.num_targets], y[:, :, : draw.num_targets]
        scored = time.perf_counter()
        loss = self.family.loss(prediction, y, draw)
        self.loss_seconds += time.perf_counter() - scored
        self.plan_seconds += planned - started
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_CLIP)
        self.optimizer.step()
        self.steps += 1
        self.windows += len(draw.index)
        self.pairs += len(draw.index) * computed
        self.num_bytes += x.numel() * x.element_size() + y.numel() * y.element_size()
        self.diverged = not math.isfinite(float(norm))

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def _validate(self) -> None:
        mae = math.nan if self.diverged else evaluate(self.model, self.problem, self.problem.split.validation).mae
        if not math.isfinite(mae):
            self.diverged = True
        elif mae < min((point.validation_mae for point in self.curve), default=math.inf):
            self.best = self._weights()
        self.curve.append(Point(self.pairs / self.problem.pairs, self.steps, self.clock.seconds, self.clock.cpu_seconds, mae))

    def row(self) -> Row:
        self.model.load_state_dict(self.best)
        test = evaluate(self.model, self.problem, self.problem.split.test)
        finite = [point.validation_mae for point in self.curve if math.isfinite(point.validation_mae)]
        return Row(
            spec=self.spec,
            num_nodes=self.problem.num_nodes,
            num_windows=len(self.problem.split.train),
            cost=self.pairs / self.problem.pairs,
            pairs=self.pairs,
            windows=self.windows,
            steps=self.steps,
            seconds=self.clock.seconds,
            cpu_seconds=self.clock.cpu_seconds,
            plan_seconds=self.plan_seconds,
            loss_seconds=self.loss_seconds,
            num_bytes=self.num_bytes,
            best_mae=min(finite, default=math.inf),
            mae=test.mae,
            rmse=test.rmse,
            mape=test.mape,
            horizon_mae=test.horizon_mae,
            hard_windows_mae=test.hard_windows_mae,
            hard_nodes_mae=test.hard_nodes_mae,
            curve=tuple(self.curve),
            diverged=self.diverged,
            machine=machine.describe(self.problem.device),
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )


class Clock:
    """Wall and processor time of the parts of a run that count.

    Attributes:
        seconds, cpu_seconds: of all blocks so far.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = self.cpu_seconds = 0.0

    def __enter__(self) -> Clock:
        self._wait()
        self._started = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self._wait()
        self.seconds += time.perf_counter() - self._started[0]
        self.cpu_seconds += time.process_time() - self._started[1]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def forecast(model: nn.Module, problem: Problem, x: Tensor, node: Tensor | None = None) -> Tensor:
    """The model's forecast in the series' unit."""
    result: Tensor = model(x, node=node) * problem.std + problem.mean
    return result


class Errors:
    """Errors of a model on a part, over all targets that are not missing; NaN where there is none.

    Attributes:
        mae, rmse: in the series' unit.
        mape: in %, over targets of at least the problem's `mape_floor`.
        horizon_mae: of every predicted step.
        hard_windows_mae, hard_nodes_mae: mean MAE of the 5% of the windows (nodes) whose MAE is largest, at least one.
    """

    def __init__(self, absolute: Tensor, squared: Tensor, seen: Tensor, ratio: Tensor, counted: Tensor) -> None:
        # Sums over channels, [window, step, node] float64 and counts alike.
        count = seen.sum()
        self.mae = float(absolute.sum() / count)
        self.rmse = math.sqrt(float(squared.sum() / count)) if count else math.nan
        self.mape = 100 * float(ratio.sum() / counted.sum())
        self.horizon_mae = tuple((absolute.sum((0, 2)) / seen.sum((0, 2))).tolist())
        self.hard_windows_mae = _hardest(absolute.sum((1, 2)) / seen.sum((1, 2)))
        self.hard_nodes_mae = _hardest(absolute.sum((0, 1)) / seen.sum((0, 1)))


def _hardest(mae: Tensor) -> float:
    mae = mae[torch.isfinite(mae)]
    count = max(1, round(HARD_SHARE * len(mae)))
    return float(mae.sort(descending=True).values[:count].mean()) if len(mae) else math.nan


@torch.no_grad()
def evaluate(model: nn.Module, problem: Problem, part: Part) -> Errors:
    """Errors on all nodes of a part's windows.

    Args:
        model: not modified; its mode is put back.
        problem: the series.
        part: of its split.

    Returns:
        The errors.
    """
    was_training = model.training
    model.eval()
    found: list[list[Tensor]] = []
    for index in torch.arange(len(part)).split(max(1, _EVALUATION_PAIRS // problem.num_nodes)):
        x, y = problem.cut(part, index)
        error = forecast(model, problem, x).sub_(y)
        size = y.abs()
        seen = torch.isfinite(y)
        counted = size >= problem.mape_floor  # false for NaN
        error = torch.where(seen, error, 0.0)
        ratio = torch.where(counted, error.abs() / size, 0.0)
        found.append([each.double().sum(3).cpu() for each in (error.abs(), error.square(), seen, ratio, counted)])
    model.train(was_training)
    return Errors(*(torch.cat(each) for each in zip(*found, strict=True)))
