"""Headroom of a study's series and models: what it predicts for the runs of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

import stprune
from stprune.study.problem import Problem
from stprune.study.spec import Spec
from stprune.study.train import begun

WINDOWS = 128
SHARE = 0.2
"""Share of the run's budget that is trained before anything is measured: at the start all gradients look alike."""


def predict(
    spec: Spec,
    problem: Problem,
    *,
    candidates: tuple[Sequence[int], Sequence[tuple[int, int]]] | None = None,
    share: float = SHARE,
    batch_in_use: int = 64,
    seconds: float = 60.0,
    progress: bool = False,
) -> stprune.Headroom:
    """Train a little, and measure headroom on the model there.

    Args:
        spec: model, width, optimizer, learning rate, budget and seed are read.
        problem: series and split.
        candidates: as for `stprune.headroom`.
        share: of the budget that is trained first, in [0, 1].
        batch_in_use: windows of the batches that headroom sees.
        seconds: that the measurement may take, training not counted.
        progress: show bars.

    Returns:
        The prediction, for training of the spec's budget: `time_ratio` stands beside a study's measured ratio.
    """
    # Begun by drawing nodes, which gets farthest in the same time: as many pairs a step as one window has.
    model = begun(
        replace(spec, family="nodes-uniform", batch_size=64, num_drawn=max(1, problem.num_nodes // 64), keep_ratio=1.0),
        problem,
        share=share,
    )

    return stprune.headroom(
        model,
        sample(problem, batch_size=batch_in_use, num_windows=max(WINDOWS, batch_in_use), seed=spec.seed),
        # Muon's updates have Adam's size.
        optimizer=partial(torch.optim.SGD if spec.optimizer == "sgd" else torch.optim.Adam, lr=spec.learning_rate, fused=True),
        num_windows=WINDOWS,
        seconds=seconds,
        seed=spec.seed,
        progress=progress,
        budget=round(spec.cost * len(problem.split.train)),
        candidates=candidates,
    )


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
    chosen = np.random.default_rng([seed, 4]).permutation(len(problem.split.train))[:num_windows]
    parts = torch.from_numpy(chosen).split(batch_size)
    batches = (problem.cut(problem.split.train, index) for index in parts)
    return [(x, (y - problem.mean) / problem.std) for x, y in batches]
