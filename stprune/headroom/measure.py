"""headroom: measure what pruning can save."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stprune.headroom import batches as windows
from stprune.headroom.cost import MakeOptimizer, fit_cost, fit_error, time_steps
from stprune.headroom.gradients import drawn_bias, measure_gradients, measured_parameters
from stprune.headroom.law import Candidate, Law, choose
from stprune.headroom.losses import Loss, resolve
from stprune.headroom.progress import bar
from stprune.headroom.report import pays, sentences
from stprune.headroom.result import Headroom
from stprune.headroom.variance import least_by_windows, moments
from stprune.ops import _check, draw_nodes, gather_nodes

_OP = "headroom"
# Share of the time that gradients may take: the timed steps need less to be sure.
_GRADIENT_SHARE = 0.6
# Share of the time behind which no new round of all sizes is begun: the rest is for the two steps that were chosen.
_TIMES_SHARE = 0.85
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
    budget: int | None = None,
    sampler: Any = None,
    candidates: tuple[Sequence[int], Sequence[Candidate]] | None = None,
) -> Headroom:
    """Predict the best batch of full training, the best batch and number of nodes of node draws, and their ratio of times.

    Gradients: those of `num_windows` windows and of `num_pairs` random nodes of each, exact, give the intraclass
    correlation r of a window's nodes, the noise of a step of B windows with m nodes, v = s^2 (r + (1 - r) / m) / B, and the
    squared length G^2 of the mean gradient. Steps: whole training steps of several sizes, taking turns, give a step's time
    t(B, m). Training takes t(B, m) (1 + v / G^2)^gamma, up to a factor that all steps share, each at its best learning rate;
    gamma is 1 for SGD and 1/2 for Adam and the like.
    Full training takes whole windows, and so at least one; where that is still more noise than its pairs need have, drawing
    nodes pays. Where it is not, a smaller batch does the same, and the first sentence of the verdict says so.

    The gradients are a function of model, batches and seed; the timings are not. The model itself is neither trained nor
    changed: copies of it are, in evaluation mode for gradients, in training mode for timings. Global random state is put back.

    Call it on a model after some training: at the start all gradients look alike. With `sampler=`, call it again every few
    epochs with few windows and seconds, on batches of a loader of its own, with all nodes: the gradients change while the
    model learns, and with them the best number of nodes.

    How far to trust it: the verdict says by what factor `time_ratio` was off beside the runs of a study, where a gain was also
    predicted for series in which node draws never reached full training's error (benchmarks/results/headroom.jsonl).
    `interval` holds what the measurement itself varies by, and not that.

    Args:
        model: takes x [B, T, N, C] and, by name, node [B, m] int64 or None, as `stprune.models.STID` does.
        batches: a loader or a list of (x, y), (index, x, y) or (index, (x, y)) with all nodes, in random order: neighbouring
            windows resemble each other, and would make windows look more alike than they are. Not modified; only as many
            are taken as hold `num_windows` windows. Steps are timed with the first batch.
        loss: "mae", "mse", "huber", or a function of (prediction, target) that returns the loss of every entry, unreduced.
        null_value: target value that means missing (0.0 in traffic data), in the unit of y; NaN always does.
        null_tolerance: how far from null_value a target is still missing, >= 0, as in `stprune.residual_stats`.
        optimizer: makes the optimizer whose step is timed, from the parameters. `torch.optim.SGD` has gamma 1, others 1/2.
        layers: parameters whose gradients are measured: "all", "last" for those of the last layer, or "auto" for all where
            they fit in 512 MiB.
        num_windows: windows whose gradients are measured, at least 8.
        num_pairs: nodes of each whose own gradients are measured, at least 2.
        device: where to measure; None is the model's.
        seconds: at most about so long: time that runs out leaves out windows (never below 8) and rounds of timing (never
            below 3).
        seed: in [0, 2^63), of drawn nodes, orders and bootstrap.
        progress: show progress bars, where tqdm is installed.
        budget: windows that full training is to train on, repeats counted: epochs times windows. In training so long that
            more of it would not help, drawing nodes gains less (`share_of_run`). None: not so long.
        sampler: a `PruningSampler` with node_ratio="auto", which draws the best number of nodes for the loader's batch from
            its next epoch on: `nodes_for(batch_in_use)` where `time_ratio` pays, else all. Or None.
        candidates: batches of full training, and (windows, nodes) of node draws, to choose from; None for all sensible ones.

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
        Eq. 12-15: Cochran, Sampling Techniques (1977), chapter 10 (variance of two-stage draws); McCandlish et al., An
        Empirical Model of Large-Batch Training (2018) (steps needed by noise).
    """
    number = _check.integer(_OP, "num_windows", num_windows, windows.FEWEST)
    pairs = _check.integer(_OP, "num_pairs", num_pairs, 2)
    seed, _ = _check.seed_and_epoch(_OP, seed, 0)
    null_value, null_tolerance = _check.null(_OP, null_value, null_tolerance)
    limit = _check.real(_OP, "seconds", seconds, 0.0, math.inf, low_open=True)
    _check.choice(_OP, "layers", layers, ("auto", "all", "last"))
    budget = None if budget is None else _check.integer(_OP, "budget", budget, 1)
    if sampler is not None and not hasattr(sampler, "auto_nodes"):
        raise TypeError(f"{_OP}: sampler must be a PruningSampler, got {type(sampler).__name__}")
    if sampler is not None and not sampler.auto_nodes:
        raise ValueError(f'{_OP}: sampler must have node_ratio="auto", got {sampler.node_ratio}')
    losses = resolve(loss)
    if not isinstance(model, nn.Module):
        raise TypeError(f"{_OP}: model must be a torch.nn.Module, got {type(model).__name__}")
    where = torch.device(device) if device is not None else next((p.device for p in model.parameters()), torch.device("cpu"))
    windows.warn_of_order(batches, number)
    started = time.perf_counter()
    found = windows.collect(batches, number, where)
    if sampler is not None and sampler.num_nodes != found[0][0].shape[2]:
        raise ValueError(f"{_OP}: batches must have the sampler's {sampler.num_nodes} nodes, got {found[0][0].shape[2]}")
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
        timed = partial(
            time_steps,
            batches=found,
            loss=losses,
            null_value=null_value,
            null_tolerance=null_tolerance,
            optimizer=optimizer,
            seed=seed,
        )
        with bar("rounds of timed steps", 80, shown=progress) as advance:
            trained = copy.deepcopy(model).to(where).train()
            times = timed(trained, deadline=started + _TIMES_SHARE * limit, progress=advance)
            in_use = len(found[0][0])
            gamma = 1.0 if isinstance(optimizer([nn.Parameter(torch.zeros(1))]), torch.optim.SGD) else 0.5
            full, drawn = candidates or (None, None)
            choice = choose(
                stats,
                times,
                batch_size=in_use,
                gamma=gamma,
                seed=seed,
                budget=budget,
                full=full,
                drawn=drawn,
                time_again=lambda sizes: timed(trained, deadline=started + limit, progress=advance, sizes=sizes),
            )
        law = Law(moments(stats), fit_cost(times), gamma)
        bias_share = None
        if interacts:
            moved = drawn_bias(
                still,
                found,
                parameters,
                num_drawn=choice.drawn[1],
                loss=losses,
                null_value=null_value,
                null_tolerance=null_tolerance,
                seed=seed,
            )
            bias_share = max(moved, 0.0) / law.gradient.signal if law.gradient.signal > 0 else math.inf
    stopped_early = len(stats.gram) < number
    # A choice of windows divides the noise, and nothing else, of the best full training.
    noise = float(law.gradient.noise(choice.full, stats.num_nodes))
    window_bound = ((1 + least_by_windows(stats) * noise) / (1 + noise)) ** gamma
    windows_a_step, num_drawn = choice.drawn if pays(choice) else (choice.full, stats.num_nodes)
    result = Headroom(
        batch_size=windows_a_step,
        num_drawn=num_drawn,
        best_full_batch=choice.full,
        best_drawn=choice.drawn,
        time_ratio=choice.ratio,
        interval=choice.interval,
        smaller_batch=choice.smaller_batch,
        window_bound=window_bound,
        batch_in_use=in_use,
        num_nodes=stats.num_nodes,
        num_windows=len(stats.gram),
        law=law,
        r_interval=choice.r_interval,
        times=times,
        best_times=choice.times,
        interacts=interacts,
        bias_share=0.0 if bias_share is None else bias_share,
        stopped_early=stopped_early,
        verdict=tuple(
            sentences(
                choice,
                batch_size=in_use,
                num_nodes=stats.num_nodes,
                window_bound=window_bound,
                bias_share=bias_share,
                stopped_early=stopped_early,
                error=fit_error(times, law.cost),
                budget=budget,
            )
        ),
    )
    if sampler is not None:
        best = max(result.nodes_for(in_use), sampler.node_sampler.fewest)
        sampler.draw_next(best if pays(choice) else result.num_nodes)
    return result


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
