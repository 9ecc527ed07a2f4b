"""What a family is to the trainer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stprune.study.problem import Problem
from stprune.study.spec import Spec

# Streams of random numbers of a run.
ORDER, NODES, GROUPS = 0, 1, 2


class Draw(NamedTuple):
    """What one optimizer step trains on.

    Attributes:
        index: [B] int64, numbers of training windows; for "pairs" window by window, repeats allowed.
        node: [B, m] int64, the nodes that are computed; None for all nodes in order.
        num_targets: the first so many of the m nodes enter the loss, the others are their neighbours; None for all m.
    """

    index: Tensor  # type: ignore[assignment]  # a tuple has a method of that name
    node: Tensor | None = None
    num_targets: int | None = None


class Family:
    """A rule: an endless stream of draws, and the loss of a step. The trainer stops when the budget of pairs is used up.

    Args:
        spec: of the run. Families read batch_size, num_drawn, keep_ratio, cost and seed.
        problem: series and split.

    Attributes:
        label: name for people.
        kind: what the rule decides: "all" nothing, every window with all nodes; "windows", "nodes" or "both".
        source: where the rule stands; empty where it is ours.
        drops_windows: an epoch leaves windows out, a share `keep_ratio` of them is kept.
    """

    label: ClassVar[str]
    kind: ClassVar[str]
    source: ClassVar[str] = ""
    drops_windows: ClassVar[bool] = False

    def __init__(self, spec: Spec, problem: Problem) -> None:
        self.spec = spec
        self.problem = problem
        self.num_windows = len(problem.split.train)
        self.num_nodes = problem.num_nodes
        self.num_drawn = spec.num_drawn or problem.num_nodes

    @classmethod
    def check(cls, spec: Spec, problem: Problem) -> None:
        """Refuse a spec that does not fit the rule.

        Raises:
            ValueError: batch_size or cost is not positive, nodes are drawn where the rule takes all, none or all are drawn
                where it draws some, or keep_ratio is not 1.0 for a rule that drops no windows or not below it for one that
                does.
        """
        require(spec, "batch_size", spec.batch_size >= 1, "at least 1")
        require(spec, "cost", spec.cost > 0, "above 0")
        if cls.kind in ("all", "windows"):
            require(spec, "num_drawn", spec.num_drawn == 0, "0: all nodes are trained on")
        else:
            cls.check_drawn(spec, problem.num_nodes)
        if cls.drops_windows:
            require(spec, "keep_ratio", 0 < spec.keep_ratio < 1, "in (0, 1)")
        else:
            require(spec, "keep_ratio", spec.keep_ratio == 1, "1.0: no window is dropped")

    @classmethod
    def check_drawn(cls, spec: Spec, num_nodes: int) -> None:
        """Refuse a number of drawn nodes that does not fit the rule; called where nodes are drawn."""
        require(spec, "num_drawn", 1 <= spec.num_drawn < num_nodes, f"in [1, {num_nodes})")

    @classmethod
    def fits(cls, spec: Spec, num_nodes: int) -> bool:
        """Whether so many nodes can be drawn of a series with `num_nodes`."""
        try:
            cls.check_drawn(spec, num_nodes)
        except ValueError:
            return False
        return True

    def draws(self) -> Iterator[Draw]:
        """Draws without end; what an iteration decides may depend on the losses of the draws before."""
        raise NotImplementedError

    def loss(self, prediction: Tensor, target: Tensor, draw: Draw) -> Tensor:
        """Training loss of a step: the masked mean absolute error, unless the family weighs or scores.

        Args:
            prediction: [B, 12, m, 1] in the series' unit, of the target nodes.
            target: the same shape; NaN where missing.
            draw: of the step.

        Returns:
            Scalar.
        """
        return masked_mae(prediction, target, complete=self.problem.complete)

    def random(self, stream: int, number: int) -> np.random.Generator:
        """Random numbers of the run's seed: of a stream of their own, for an epoch or a step."""
        return np.random.default_rng([self.spec.seed, stream, number])

    def shuffled(self) -> Iterator[tuple[int, Tensor]]:
        """Epoch and windows [B] int64 without end: a fresh permutation an epoch, whose last batch is short."""
        for epoch in itertools.count():
            order = torch.from_numpy(self.random(ORDER, epoch).permutation(self.num_windows))
            yield from ((epoch, index) for index in order.to(self.problem.device).split(self.spec.batch_size))


def masked_mae(prediction: Tensor, target: Tensor, *, complete: bool) -> Tensor:
    """The usual loss of the field: mean absolute error over the targets that are not missing; 0 where all are.

    `complete` says that no target is missing, which saves the mask.
    """
    if complete:
        return (prediction - target).abs().mean()
    valid = torch.isfinite(target)
    return torch.where(valid, prediction - target, 0.0).abs().sum() / valid.sum().clamp_min(1)


def require(spec: Spec, name: str, fits: bool, rule: str) -> None:
    """Raise a ValueError that names a setting of the spec and its rule unless it fits."""
    if not fits:
        raise ValueError(f"{spec.family}: {name} must be {rule}, got {getattr(spec, name)!r}")
