"""headroom: measure what pruning can save."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stprune.headroom import batches as windows
from stprune.headroom.choices import choose
from stprune.headroom.cost import MakeOptimizer, fit_cost, time_steps, typical
from stprune.headroom.gradients import GradientStats, drawn_bias, measure_gradients, measured_parameters
from stprune.headroom.losses import Loss, resolve
from stprune.headroom.progress import bar
from stprune.headroom.report import fit_error, sentences
from stprune.headroom.result import Headroom
from stprune.headroom.variance import moments
from stprune.ops import _check, draw_nodes, gather_nodes

_OP = "headroom"
# Share of the time that gradients may take: the timed steps need less to be sure.
_GRADIENT_SHARE = 0.7
# Forecasts of drawn nodes differ by rounding where nodes are computed apart; by more than this share of their spread, and
# the model mixes nodes.
_SAME = 1e-3


def headroom(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    loss: str | Loss = "mae",
    null_value: float | None = None,
    null_tolerance: float = 0.0,
    optimizer: MakeOptimizer = torch.optim.Adam,
    layers: str = "auto",
    num_windows: int = 128,
    num_pairs: int = 4,
    device: torch.device | str | None = None,
    seconds: float = 60.0,
    seed: int = 0,
    progress: bool = False,
) -> Headroom:
    """Estimate, before a run, what drawing nodes or windows would save on this model and data.

    Gradients: those of `num_windows` windows and of `num_pairs` random nodes of each, exact, give the intraclass
    correlation r of a window's nodes and the spread of the windows' gradient lengths. Steps: whole training steps with N,
    N / 2, ... N / 32 nodes, taking turns, give the cost c0 + c1 m (+ c2 m^2 where it shows) of a window. Both together give
    the number of nodes, and of windows, at which a given gradient variance is cheapest.

    The gradients are a function of model, batches and seed; the timings are not. The model itself is neither trained nor
    changed: copies of it are, in evaluation mode for gradients, in training mode for timings. Global random state is put back.

    Call it on a model after an epoch or so of training: at the start all gradients look alike.

    Args:
        model: takes x [B, T, N, C] and, by name, node [B, m] int64 or None, as `stprune.models.STID` does.
        batches: a loader or a list of (x, y), (index, x, y) or (index, (x, y)) with all nodes, in random order: neighbouring
            windows resemble each other, and would make windows look more alike than they are. Not modified; only as many
            are taken as hold `num_windows` windows. Steps are timed with the first batch.
        loss: "mae", "mse", "huber", or a function of (prediction, target) that returns the loss of every entry, unreduced.
        null_value: target value that means missing (0.0 in traffic data), in the unit of y; NaN always does.
        null_tolerance: how far from null_value a target is still missing, >= 0, as in `stprune.residual_stats`.
        optimizer: makes the optimizer whose step is timed, from the parameters.
        layers: parameters whose gradients are measured: "all", "last" for those of the last layer, or "auto" for all where
            they fit in 512 MiB.
        num_windows: windows whose gradients are measured, at least 8.
        num_pairs: nodes of each whose own gradients are measured, at least 2.
        device: where to measure; None is the model's.
        seconds: at most about so long: time that runs out leaves out windows (never below 8) and rounds of timing (never
            below 3).
        seed: in [0, 2^63), of drawn nodes, orders and bootstrap.
        progress: show progress bars, where tqdm is installed.

    Returns:
        A `Headroom`; print it.

    Raises:
        TypeError: an argument, or a batch, is of the wrong kind, or the model does not take `node`.
        ValueError: an argument, a batch's shape or the model's forecast breaks its rule; there are fewer than 8 windows; the
            gradients are not finite, or the same in every window.

    Example:
        >>> import torch, stprune
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.rand(32, 12, 10, 3, generator=generator)
        >>> model = stprune.models.STID(10, dim=4)
        >>> found = stprune.headroom(model, [(x, x[..., :1])], seconds=1.0)
        >>> found.num_windows, 1 / found.num_nodes <= found.node_ratio <= 1, len(found.verdict) >= 3
        (32, True, True)

    Source:
        Eq. 12-14; Cochran, Sampling Techniques (1977), chapters 10 and 5.7 (optimum for two-stage draws). Deviations: the
        optimum is searched over integers, so that any cost may enter; windows' bound as variance, not second moment.
    """
    number = _check.integer(_OP, "num_windows", num_windows, windows.FEWEST)
    pairs = _check.integer(_OP, "num_pairs", num_pairs, 2)
    seed, _ = _check.seed_and_epoch(_OP, seed, 0)
    null_value, null_tolerance = _check.null(_OP, null_value, null_tolerance)
    limit = _check.real(_OP, "seconds", seconds, 0.0, math.inf, low_open=True)
    _check.choice(_OP, "layers", layers, ("auto", "all", "last"))
    losses = resolve(loss)
    if not isinstance(model, nn.Module):
        raise TypeError(f"{_OP}: model must be a torch.nn.Module, got {type(model).__name__}")
    where = torch.device(device) if device is not None else next((p.device for p in model.parameters()), torch.device("cpu"))
    started = time.perf_counter()
    found = windows.collect(batches, number, where)
    number = sum(len(x) for x, _ in found)
    forked = [where] if where.type == "cuda" else []
    with torch.random.fork_rng(devices=forked):
        still = copy.deepcopy(model).to(where).eval()
        interacts = _nodes_interact(still, found[0][0], seed)
        parameters = measured_parameters(still, layers, number)
        with bar("gradients of windows", number, shown=progress) as advance:
            stats = measure_gradients(
                still,
                found,
                parameters,
                loss=losses,
                null_value=null_value,
                null_tolerance=null_tolerance,
                num_pairs=pairs,
                seed=seed,
                deadline=started + _GRADIENT_SHARE * limit,
                progress=advance,
            )
        gradient = moments(stats)
        with bar("rounds of timed steps", 40, shown=progress) as advance:
            times = time_steps(
                copy.deepcopy(model).to(where).train(),
                found,
                loss=losses,
                null_value=null_value,
                null_tolerance=null_tolerance,
                optimizer=optimizer,
                seed=seed,
                deadline=started + limit,
                progress=advance,
            )
        choices = choose(stats, times, seed=seed)
        bias_share = None
        if interacts:
            moved = drawn_bias(
                still,
                found,
                parameters,
                num_drawn=choices.nodes.num_drawn,
                loss=losses,
                null_value=null_value,
                null_tolerance=null_tolerance,
                seed=seed,
            )
            bias_share = max(moved, 0.0) / gradient.signal if gradient.signal > 0 else math.inf
    cost = fit_cost(times.sizes, typical(times.seconds))
    stopped_early = len(stats.gram) < number
    noise = float(gradient.variance(gradient.num_nodes)) / len(found[0][0])
    noise_share = noise / (noise + max(gradient.signal, 0.0))
    return Headroom(
        num_nodes=stats.num_nodes,
        num_windows=len(stats.gram),
        batch_size=len(found[0][0]),
        gradient=gradient,
        r_interval=choices.r_interval,
        window_spread=window_spread(stats),
        noise_share=noise_share,
        step_cost=cost,
        times=times,
        interacts=interacts,
        bias_share=0.0 if bias_share is None else bias_share,
        stopped_early=stopped_early,
        nodes=choices.nodes,
        windows=choices.windows,
        score=choices.score,
        both=choices.both,
        node_ratio=choices.nodes.node_ratio if choices.nodes.pays else 1.0,
        keep_ratio=choices.windows.keep_ratio if choices.windows.pays and choices.score.pays else 1.0,
        verdict=tuple(
            sentences(
                choices,
                gradient,
                cost,
                noise_share=noise_share,
                bias_share=bias_share,
                stopped_early=stopped_early,
                error=fit_error(times, cost),
            )
        ),
    )


def window_spread(stats: GradientStats) -> float:
    """(mean g)^2 / mean(g^2) of the windows' gradient lengths, in (0, 1]."""
    squares = np.diagonal(stats.gram)
    return float(np.sqrt(squares).mean() ** 2 / squares.mean())


def _nodes_interact(model: nn.Module, x: Tensor, seed: int) -> bool:
    """Whether a node's forecast changes with the other nodes given; also finds a model that takes no `node`."""
    x = x[:2]
    num_nodes = x.shape[2]
    index = torch.arange(len(x), device=x.device)
    node = draw_nodes(index, num_nodes=num_nodes, count=max(1, num_nodes // 2), seed=seed, epoch=0)
    with torch.no_grad():
        full = model(x)
        try:
            few = model(gather_nodes(x, node), node=node)
        except TypeError as error:
            raise TypeError(f"{_OP}: model must take drawn nodes as model(x, node=node), got {error}") from error
    if full.dim() != 4 or full.shape[2] != num_nodes or few.shape[2] != node.shape[1]:
        raise ValueError(
            f"{_OP}: model must return [B, T, N, C] of the nodes given, got {list(full.shape)} for {num_nodes} nodes and "
            f"{list(few.shape)} for {node.shape[1]}"
        )
    gap = (few - gather_nodes(full, node)).abs().max()
    return bool(gap > _SAME * full.std().clamp_min(1e-12))
