"""What is timed of windows: statistics, gathering, and delivery of an epoch."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from cases import Call, Case
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import stprune

TIMES, NODES, FEW_NODES, MOST_NODES = 35_040, 716, 170, 8600
"""A year of quarter hours; nodes of the usual series, of PEMS08, where not the bytes but the windows cost, and of CA."""
LENGTHS = (12, 288)
BATCH, HISTORY, HORIZON = 64, 12, 12
SLICE = 1152
"""Rows that rivals get which would take minutes on all of them; ours is timed on as many beside them."""
EPOCH_STRIDE = 4
"""Rows between the windows of the timed epoch: 8,755 of them."""


def windows(device: torch.device, *, small: bool) -> Iterator[Case]:
    """All cases of this suite; about four minutes on two cores."""
    times, nodes, few = (400, 20, 5) if small else (TIMES, NODES, FEW_NODES)
    series = days(times, nodes, device)
    yield from epochs(series)
    yield from epochs(series[:, :few].contiguous())
    yield from gathering(series)
    for number in (nodes, 10 * few if small else MOST_NODES):
        yield from drawing(number, device)
    for length in LENGTHS:
        yield from statistics(series, length)
    if device.type == "cuda":
        yield from statistics(days(times, MOST_NODES, device), HISTORY + HORIZON)


def days(times: int, nodes: int, device: torch.device) -> Tensor:
    """[times, nodes] float32 with days of 96 steps in it."""
    day = torch.sin(torch.arange(times, device=device) * (2 * torch.pi / 96))
    return day[:, None] + 0.3 * torch.randn(times, nodes, generator=torch.Generator(device).manual_seed(0), device=device)


def statistics(series: Tensor, length: int) -> Iterator[Case]:
    """Six statistics of every window against one statistic (or two, or six) by others."""
    history = length // 2

    def ours(some: Tensor) -> Call:
        return lambda: stprune.window_stats(some, history=history, horizon=length - history)

    job = f"window_stats W={length}"
    yield Case("window_stats", job, series.numel(), _bytes(series), ours(series), _moving_rivals(series, length))
    some = series[:SLICE].contiguous()
    rivals: dict[str, Call] = {
        "torch unfold, the same six": lambda: unfold_stats(some, length, history),
        "torch unfold, mean": lambda: some.unfold(0, length, 1).mean(-1),
    }
    if series.device.type == "cpu":
        array = some.numpy()
        view = np.lib.stride_tricks.sliding_window_view
        rivals["np.sliding_window_view, mean"] = lambda: view(array, length, axis=0).mean(-1)
        rivals["np.sliding_window_view, variance"] = lambda: view(array, length, axis=0).var(-1)
        rivals |= _moving_rivals(some, length)
    yield Case("window_stats", f"{job}, {SLICE} rows", some.numel(), _bytes(some), ours(some), rivals)


def _moving_rivals(series: Tensor, length: int) -> dict[str, Call]:
    """One moving statistic each, by libraries that may not be installed."""
    if series.device.type != "cpu":
        return {}
    array = series.numpy()
    rivals: dict[str, Call] = {}
    bottleneck, pandas = _optional("bottleneck"), _optional("pandas")
    if bottleneck is not None:
        rivals["bottleneck.move_mean"] = lambda: bottleneck.move_mean(array, length, axis=0)
        rivals["bottleneck.move_var"] = lambda: bottleneck.move_var(array, length, axis=0)
    if pandas is not None:
        frame = pandas.DataFrame(array)
        rivals["pandas rolling mean"] = lambda: frame.rolling(length).mean()
    return rivals


def unfold_stats(series: Tensor, length: int, history: int) -> tuple[Tensor, ...]:
    """The six statistics as a user would write them in torch, each window laid out."""
    window = series.unfold(0, length, 1)  # [windows, nodes, length]
    missing = window.isnan().float().mean((1, 2))
    mean = window.mean(-1, keepdim=True)
    deviation = window - mean
    variance = deviation.square().mean(-1)
    step = torch.arange(length, device=series.device, dtype=series.dtype)
    step -= step.mean()
    trend = (deviation * step).sum(-1) / step.square().sum()
    autocorrelation = (deviation[..., 1:] * deviation[..., :-1]).sum(-1) / deviation.square().sum(-1)
    drift = (window[..., history:].mean(-1) - window[..., :history].mean(-1)).abs() / series.std(0)
    means = [each.mean(1) for each in (mean[..., 0], variance, trend, autocorrelation, drift)]
    return (*means, missing)


def gathering(series: Tensor) -> Iterator[Case]:
    """A batch of windows, and of 30% of their nodes, against indexing."""
    generator = torch.Generator().manual_seed(0)
    times, nodes = series.shape
    last = times - HISTORY - HORIZON
    start = torch.randint(last + 1, (BATCH,), generator=generator).to(series.device)
    span = torch.arange(HISTORY + HORIZON, device=series.device)
    length = {"history": HISTORY, "horizon": HORIZON}
    out = stprune.gather_windows(series, start, **length)

    def indexed() -> tuple[Tensor, Tensor]:
        rows = start[:, None] + span
        return series[rows[:, :HISTORY]], series[rows[:, HISTORY:]]

    def stacked() -> tuple[Tensor, Tensor]:
        first = start.tolist()
        return (
            torch.stack([series[row : row + HISTORY] for row in first]),
            torch.stack([series[row + HISTORY : row + HISTORY + HORIZON] for row in first]),
        )

    read = BATCH * (HISTORY + HORIZON) * nodes * series.element_size()
    yield Case(
        "gather_windows",
        f"gather_windows B={BATCH}",
        BATCH,
        read,
        lambda: stprune.gather_windows(series, start, **length, out=out),
        {"series[rows]": indexed, "torch.stack of slices": stacked},
    )
    count = round(0.3 * nodes)
    node = stprune.draw_nodes(torch.arange(BATCH, device=series.device), num_nodes=nodes, count=count, seed=0, epoch=0)
    few = stprune.gather_windows(series, start, node=node, **length)

    def indexed_nodes() -> tuple[Tensor, Tensor]:
        both = series[(start[:, None] + span)[:, :, None], node[:, None, :]]
        return both[:, :HISTORY], both[:, HISTORY:]

    yield Case(
        "gather_windows",
        f"gather_windows B={BATCH}, 30% of nodes",
        BATCH,
        read * count // nodes,
        lambda: stprune.gather_windows(series, start, node=node, **length, out=few),
        {"series[rows, node]": indexed_nodes},
    )


def drawing(nodes: int, device: torch.device) -> Iterator[Case]:
    """A tenth of the nodes of a batch's windows, uniformly and by their last errors, against draws of torch."""
    windows, count = 1024, max(1, nodes // 10)
    index = torch.randperm(windows, generator=torch.Generator().manual_seed(0))[:BATCH].to(device)
    everywhere = torch.ones(BATCH, nodes, device=device)
    yield Case(
        "draw_nodes",
        f"draw_nodes B={BATCH}, a tenth of {nodes:,}",
        BATCH,
        8 * BATCH * count,
        lambda: stprune.draw_nodes(index, num_nodes=nodes, count=count, seed=0, epoch=0),
        {
            "torch.rand + topk": lambda: torch.rand(BATCH, nodes, device=device).topk(count, sorted=False).indices,
            "torch.multinomial": lambda: torch.multinomial(everywhere, count),
        },
    )
    for storage in ("bfloat16", "int8"):
        by_error = stprune.Priority(storage=storage).bind(num_windows=windows, num_nodes=nodes, count=count, seed=0)
        errors = torch.randn(windows, nodes, generator=torch.Generator().manual_seed(1)).exp()
        by_error.table.update(torch.arange(windows), torch.arange(nodes).expand(windows, -1), errors)
        by_error.to(device)
        held = errors.to(device, torch.bfloat16)

        def chances(held: Tensor = held) -> Tensor:
            row = held[index].float()
            return 0.25 + 0.75 * row / row.mean(1, keepdim=True)

        yield Case(
            "draw_nodes",
            f"draw by error B={BATCH}, a tenth of {nodes:,}, {storage}",
            BATCH,
            by_error.table.nbytes * BATCH // windows,
            lambda by_error=by_error: by_error.draw(index, 1),
            {
                "exponential race + topk": lambda: (
                    torch.rand(BATCH, nodes, device=device).log_().div_(chances()).topk(count, sorted=False).indices
                ),
                "torch.multinomial": lambda: torch.multinomial(chances(), count),
            }
            if storage == "bfloat16"
            else {},
        )


class UsualWindows(Dataset[Any]):
    """The window data set of the field's repositories: two slices of an array for each item, stacked by the default collate."""

    def __init__(self, series: Any) -> None:
        self.series = series

    def __len__(self) -> int:
        return (len(self.series) - HISTORY - HORIZON) // EPOCH_STRIDE + 1

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        row = EPOCH_STRIDE * index
        return self.series[row : row + HISTORY], self.series[row + HISTORY : row + HISTORY + HORIZON]


def epochs(series: Tensor) -> Iterator[Case]:
    """All batches of an epoch in random order: `size` is the number of windows, so size / time is windows per second."""
    device, nodes = series.device, series.shape[1]
    tensors = UsualWindows(series.cpu())
    arrays = UsualWindows(series.cpu().numpy())
    count = len(tensors)
    ids = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    pinned = device.type == "cuda"

    def deliver(batches: Any) -> Call:
        def epoch() -> None:
            for *_, x, y in batches:
                x.to(device, non_blocking=True)
                y.to(device, non_blocking=True)

        return epoch

    def ours(prefetch: int | None) -> Call:
        return deliver(
            stprune.WindowLoader(
                series,
                ids,
                batch_size=BATCH,
                history=HISTORY,
                horizon=HORIZON,
                stride=EPOCH_STRIDE,
                layout="BTN",
                prefetch=prefetch,
            )
        )

    def usual(windows_: UsualWindows, workers: int) -> Call:
        # The workers live on between epochs, which is kinder to them than the default.
        loader: DataLoader[Any] = DataLoader(
            windows_, BATCH, sampler=ids, num_workers=workers, persistent_workers=workers > 0, pin_memory=pinned
        )
        return deliver(loader)

    def by_hand() -> None:
        # What nobody publishes and everybody could write: the ids of the epoch and the series where the model is.
        span = torch.arange(HISTORY + HORIZON, device=device)
        for start in (EPOCH_STRIDE * torch.tensor(ids, device=device)).split(BATCH):
            rows = start[:, None] + span
            series[rows[:, :HISTORY]], series[rows[:, HISTORY:]]

    rivals = {f"DataLoader, {workers} workers": usual(arrays, workers) for workers in ((0, 2, 8) if pinned else (0, 2))}
    rivals |= {"DataLoader, 0 workers, tensor slices": usual(tensors, 0), "series[rows], by hand": by_hand}
    yield Case(
        "window_loader",
        f"epoch of {count} windows, {nodes} nodes",
        count,
        count * (HISTORY + HORIZON) * nodes * series.element_size(),
        ours(None),
        rivals,
        variants={"prefetch=2": ours(2)},
    )


def _bytes(series: Tensor) -> int:
    return series.numel() * series.element_size()


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
