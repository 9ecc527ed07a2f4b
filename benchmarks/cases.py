"""What is timed: inputs by name, our call, the rivals' calls, and the bytes one pass over the input reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

import stprune

Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One job on one input.

    Attributes:
        op: the op's name; its tests must be green before it is timed.
        job: what is asked, as the table prints it.
        size: number of elements of the input.
        bytes_read: bytes of one pass over the input.
        ours: our call.
        rivals: other calls for the same job, by name.
    """

    op: str
    job: str
    size: int
    bytes_read: int
    ours: Call
    rivals: dict[str, Call] = field(default_factory=dict)


def scores(n: int, name: str, device: torch.device) -> torch.Tensor:
    """[n] float32 keys of the kind `name`."""
    generator = torch.Generator().manual_seed(n)
    normal = torch.randn(n, generator=generator)
    made = {
        "lognormal": lambda: normal.exp(),
        "all_equal": lambda: torch.full((n,), 3.0),
        "two_values": lambda: (normal > 0).float(),
        "sorted": lambda: normal.sort().values,
    }[name]()
    return made.to(device)


def selection(n: int, device: torch.device, *, name: str = "lognormal", slow: bool = True) -> Iterator[Case]:
    """select, topk, draws and shuffle on n keys. `slow` rivals take seconds from 10^7 on."""
    keys = scores(n, name, device)
    host = keys.cpu().numpy()
    on_host = device.type == "cpu"
    read = keys.numel() * keys.element_size()
    for share, k in (("n/2", n // 2), ("n/10", n // 10)):
        rivals: dict[str, Call] = {"torch.topk(sorted=False)": lambda k=k: torch.topk(keys, k, sorted=False)}
        if on_host:
            rivals["np.argpartition"] = lambda k=k: np.argpartition(host, n - k)[n - k :]
            rivals["np.partition + flatnonzero"] = lambda k=k: np.flatnonzero(host >= np.partition(host, n - k)[n - k])
        if slow:
            rivals["torch.sort"] = lambda: torch.sort(keys)
        yield Case("select", f"select k={share} {name}", n, read, lambda k=k: stprune.select(keys, k), rivals)
    if name != "lognormal":
        return
    k = min(10_000, n // 10)
    yield Case(
        "topk",
        f"topk sorted k={k}",
        n,
        read,
        lambda: stprune.topk(keys, k),
        {"torch.topk": lambda: torch.topk(keys, k)},
    )
    probability = (keys / keys.max()).sqrt().clamp(0.05, 1.0)
    yield Case(
        "draw",
        "draw Bernoulli",
        n,
        read,
        lambda: stprune.draw(probability, seed=1, epoch=1),
        {
            "torch rand < p, nonzero": lambda: (torch.rand(n, device=device) < probability).nonzero(),
            **({"np random < p, flatnonzero": _numpy_bernoulli(probability)} if on_host else {}),
        },
    )
    count = round(float(probability.double().sum()))
    yield Case("draw", "draw exact count", n, read, lambda: stprune.draw(probability, seed=1, epoch=1, count=count))
    rivals = {
        "exponential race + topk": lambda: torch.topk(torch.rand(n, device=device).log_().div_(keys), n // 2, sorted=False)
    }
    if n <= 1 << 24 and slow:
        rivals["torch.multinomial"] = lambda: torch.multinomial(keys, n // 2)
    if on_host:
        rivals["exponential race + argpartition"] = _numpy_race(host, n // 2)
        if slow and n <= 10**6:
            rivals["Generator.choice(p)"] = _numpy_choice(host, n // 2)
    yield Case(
        "draw_weighted",
        "draw_weighted k=n/2",
        n,
        read,
        lambda: stprune.draw_weighted(keys, n // 2, seed=1, epoch=1),
        rivals,
    )
    ids = torch.arange(n // 2, device=device)
    rivals = {"torch idx[randperm]": lambda: ids[torch.randperm(n // 2, device=device)]}
    if on_host:
        mutable = ids.numpy().copy()
        generator = np.random.default_rng(0)
        rivals["Generator.permutation"] = lambda: generator.permutation(mutable)
    yield Case("shuffle", "shuffle n/2 ids", n // 2, read, lambda: stprune.shuffle(ids, seed=1, epoch=1), rivals)
    for method in ("infobatch", "st-prune"):
        yield Case(
            "draw",
            f"plan_epoch {method}",
            n,
            read,
            lambda method=method: stprune.plan_epoch(keys, method=method, keep_ratio=0.5, epoch=1, seed=0),
        )


def residuals(shape: tuple[int, ...], device: torch.device) -> Iterator[Case]:
    """residual_stats against the field's eager composition, [B, T, N]."""
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(shape, generator=generator).to(device)
    target = torch.randn(shape, generator=generator).to(device)
    target[torch.rand(shape, generator=generator).to(device) < 0.1] = 0.0
    read = 2 * prediction.numel() * prediction.element_size()
    for null_value, label in ((None, ""), (0.0, " masked")):
        yield Case(
            "residual_stats",
            f"residual_stats{label} {shape}",
            prediction.numel(),
            read,
            lambda null_value=null_value: stprune.residual_stats(prediction, target, null_value=null_value),
            {"torch eager": lambda null_value=null_value: eager_stats(prediction, target, null_value)},
        )


def eager_stats(prediction: torch.Tensor, target: torch.Tensor, null_value: float | None) -> tuple[torch.Tensor, ...]:
    """The same statistics as a user would write them in torch."""
    valid = torch.ones_like(target, dtype=torch.bool) if null_value is None else (target != null_value) & ~target.isnan()
    error = torch.where(valid, (prediction - target).abs(), 0.0)
    weight = valid.to(error.dtype)
    count = weight.sum((1, 2))
    mean = error.sum((1, 2)) / count.clamp_min(1)
    spread = []
    for axis in (1, 2):
        seen = weight.sum(axis)
        level = error.sum(axis) / seen.clamp_min(1)
        groups = (seen > 0).to(error.dtype)
        centre = (level * groups).sum(1, keepdim=True) / groups.sum(1, keepdim=True).clamp_min(1)
        spread.append((((level - centre) ** 2 * groups).sum(1) / groups.sum(1).clamp_min(1)).sqrt())
    return mean, *spread, count


def _numpy_bernoulli(probability: torch.Tensor) -> Call:
    p = probability.numpy()
    generator = np.random.default_rng(0)
    return lambda: np.flatnonzero(generator.random(p.size, dtype=np.float32) < p)


def _numpy_race(weights: np.ndarray, k: int) -> Call:
    generator = np.random.default_rng(0)
    return lambda: np.argpartition(generator.standard_exponential(weights.size, dtype=np.float32) / weights, k)[:k]


def _numpy_choice(weights: np.ndarray, k: int) -> Call:
    generator = np.random.default_rng(0)
    p = weights.astype(np.float64)
    p /= p.sum()
    return lambda: generator.choice(p.size, k, replace=False, p=p)
