"""What a family is to the trainer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from stprune.study.problem import Problem
from stprune.study.spec import Spec


class Draw(NamedTuple):
    """What one optimizer step trains on.

    Attributes:
        index: [B] int64, numbers of training windows; for "pairs" window by window, repeats allowed.
        node: [B, m] int64, the nodes that are computed; None for all nodes in order.
        num_targets: the first so many of the m nodes enter the loss, the others are their neighbours; None for all m.
    """

    index: Tensor
    node: Tensor | None = None
    num_targets: int | None = None


class Family:
    """A rule: an endless stream of draws, and the loss of a step. The trainer stops when the budget of pairs is used up.

    Args:
        spec: of the run. Families read batch_size, num_drawn, keep_ratio, cost and seed.
        problem: series and split.
    """

    def __init__(self, spec: Spec, problem: Problem) -> None:
        self.spec = spec
        self.problem = problem
        self.num_windows = len(problem.split.train)
        self.num_nodes = problem.num_nodes
        self.num_drawn = spec.num_drawn or problem.num_nodes

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


def masked_mae(prediction: Tensor, target: Tensor, *, complete: bool) -> Tensor:
    """The usual loss of the field: mean absolute error over the targets that are not missing; 0 where all are.

    `complete` says that no target is missing, which saves the mask.
    """
    if complete:
        return (prediction - target).abs().mean()
    valid = torch.isfinite(target)
    return torch.where(valid, prediction - target, 0.0).abs().sum() / valid.sum().clamp_min(1)


def epochs_for(spec: Spec) -> int:
    """Passes over the data that the budget allows with all windows and the drawn nodes, rounded up."""
    return max(1, math.ceil(spec.cost))
