"""What is timed of the selection engine: inputs by name, our calls, the rivals' calls, and the bytes of one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

import stprune
from stprune.ops import draw_threshold, permute

Call = Callable[[], object]

INPUTS = ("lognormal", "all_equal", "two_values", "tie_at_k", "sorted")
SLOWEST_SIZE = 10**7
"""Rivals that need seconds here (a sort, multinomial, choice with weights) are left out of larger sizes."""


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
        variants: other ways to call ours, by name; "out=" reuses the caller's buffers.
    """

    op: str
    job: str
    size: int
    bytes_read: int
    ours: Call
    rivals: dict[str, Call] = field(default_factory=dict)
    variants: dict[str, Call] = field(default_factory=dict)


def scores(n: int, name: str, device: torch.device) -> torch.Tensor:
    """[n] float32 keys of the kind `name`."""
    generator = torch.Generator(device).manual_seed(n)
    if name == "all_equal":
        return torch.full((n,), 3.0, device=device)
    normal = torch.randn(n, generator=generator, device=device)
    if name == "two_values":
        return (normal > 0).float()
    if name == "tie_at_k":
        # Two thirds of the keys are equal, so that the k-th largest is one of them.
        return torch.where(torch.rand(n, generator=generator, device=device) < 2 / 3, 1.0, normal)
    if name == "sorted":
        return normal.sort().values
    return normal.exp_()


def selection(n: int, device: torch.device, *, name: str = "lognormal") -> Iterator[Case]:
    """select, topk, the draws and the shuffle on n keys; of inputs other than "lognormal" only select."""
    keys = scores(n, name, device)
    yield from _selects(keys, name)
    if name != "lognormal":
        return
    yield from _topks(keys)
    yield from _draws(keys)
    yield from _weighted(keys)
    yield from _shuffles(n // 2, device)


def _selects(keys: torch.Tensor, name: str) -> Iterator[Case]:
    n = keys.numel()
    host = keys.numpy() if keys.device.type == "cpu" else np.empty(0)
    buffer = torch.empty(n, dtype=torch.int64, device=keys.device)
    for share, k in (("n/2", n // 2), ("n/10", n // 10)):
        rivals: dict[str, Call] = {"torch.topk(sorted=False)": lambda k=k: torch.topk(keys, k, sorted=False)}
        if keys.device.type == "cpu":
            rivals["np.argpartition"] = lambda k=k: np.argpartition(host, n - k)[n - k :]
            rivals["np.partition + flatnonzero"] = lambda k=k: np.flatnonzero(host >= np.partition(host, n - k)[n - k])
            if name == "lognormal":
                rivals["torch.kthvalue + nonzero"] = lambda k=k: (keys >= torch.kthvalue(keys, n - k + 1).values).nonzero()
        if name == "lognormal" and n <= SLOWEST_SIZE:
            rivals["torch.sort"] = lambda: torch.sort(keys)
        yield Case(
            "select",
            f"select k={share}" if name == "lognormal" else f"select k={share} {name}",
            n,
            4 * n,
            lambda k=k: stprune.select(keys, k),
            rivals,
            {"out=": lambda k=k: stprune.select(keys, k, out=buffer)},
        )
    if name == "lognormal":
        for dtype in (torch.float16, torch.bfloat16):
            narrow = keys.to(dtype)
            yield Case(
                "select",
                f"select k=n/2 {str(dtype).removeprefix('torch.')}",
                n,
                2 * n,
                lambda narrow=narrow: stprune.select(narrow, n // 2),
                {"torch.topk(sorted=False)": lambda narrow=narrow: torch.topk(narrow, n // 2, sorted=False)},
                {"out=": lambda narrow=narrow: stprune.select(narrow, n // 2, out=buffer)},
            )


def _topks(keys: torch.Tensor) -> Iterator[Case]:
    n = keys.numel()
    k = min(10_000, n // 10)
    rivals: dict[str, Call] = {"torch.topk": lambda: torch.topk(keys, k)}
    yield Case("select", f"topk sorted k={k}", n, 4 * n, lambda: stprune.topk(keys, k), rivals)
    rows = keys[: n // 10 * 10].view(10, -1)
    few = max(1, n // 1000)
    yield Case(
        "select",
        f"topk sorted k=n/1000, 10 rows of {rows.shape[1]}",
        n,
        4 * n,
        lambda: stprune.topk(rows, few),
        {"torch.topk": lambda: torch.topk(rows, few)},
    )


def _draws(keys: torch.Tensor) -> Iterator[Case]:
    n, device, on_host = keys.numel(), keys.device, keys.device.type == "cpu"
    indices = torch.empty(n, dtype=torch.int64, device=device)
    weights = torch.empty(n, device=device)
    p = (keys / keys.max()).sqrt().clamp(0.05, 1.0)
    count = round(float(p.double().sum()))
    yield Case(
        "draw",
        "draw Bernoulli",
        n,
        4 * n,
        lambda: stprune.draw(p, seed=1, epoch=1),
        {
            "torch rand < p, nonzero": lambda: (torch.rand(n, device=device) < p).nonzero(),
            **({"np random < p, flatnonzero": _numpy_bernoulli(p)} if on_host else {}),
        },
        {"out=": lambda: stprune.draw(p, seed=1, epoch=1, out=indices)},
    )
    yield Case(
        "draw",
        "draw exact count",
        n,
        4 * n,
        lambda: stprune.draw(p, seed=1, epoch=1, count=count),
        variants={"out=": lambda: stprune.draw(p, seed=1, epoch=1, count=count, out=indices)},
    )
    yield Case(
        "draw_threshold",
        "threshold draw (mean, Bernoulli, ids, weights)",
        n,
        4 * n,
        lambda: draw_threshold(keys, 0.5, seed=1, epoch=1),
        {
            "torch eager": lambda: _eager_threshold(keys),
            **({"NumPy": _numpy_threshold(keys.numpy())} if on_host else {}),
        },
        {"out=": lambda: draw_threshold(keys, 0.5, seed=1, epoch=1, out=(indices, weights))},
    )


def _weighted(keys: torch.Tensor) -> Iterator[Case]:
    n, device = keys.numel(), keys.device
    k = n // 2
    out = torch.empty(n, dtype=torch.int64, device=device), torch.empty(n, device=device)
    rivals: dict[str, Call] = {
        "exponential race + topk": lambda: torch.topk(torch.rand(n, device=device).log_().div_(keys), k, sorted=False)
    }
    if n <= min(1 << 24, SLOWEST_SIZE):
        rivals["torch.multinomial"] = lambda: torch.multinomial(keys, k)
    if device.type == "cpu":
        rivals["exponential race + argpartition"] = _numpy_race(keys.numpy(), k)
        if n <= SLOWEST_SIZE:
            rivals["Generator.choice(p)"] = _numpy_choice(keys.numpy(), k)
    for law in ("priority", "race"):
        yield Case(
            "draw_weighted",
            f"draw_weighted k=n/2 {law}",
            n,
            4 * n,
            lambda law=law: stprune.draw_weighted(keys, k, seed=1, epoch=1, law=law),
            rivals if law == "priority" else {},
            {"out=": lambda law=law: stprune.draw_weighted(keys, k, seed=1, epoch=1, law=law, out=out)},
        )


def _shuffles(size: int, device: torch.device) -> Iterator[Case]:
    ids = torch.arange(size, device=device)
    out = torch.empty_like(ids)
    rivals: dict[str, Call] = {"torch idx[randperm]": lambda: ids[torch.randperm(size, device=device)]}
    if device.type == "cpu":
        mutable = ids.numpy().copy()
        generator = np.random.default_rng(0)
        rivals["Generator.shuffle"] = lambda: generator.shuffle(mutable)
        rivals["Generator.permutation"] = lambda: generator.permutation(mutable)
    yield Case(
        "shuffle",
        "shuffle of n/2 ids",
        size,
        8 * size,
        lambda: stprune.shuffle(ids, seed=1, epoch=1),
        rivals,
        {"out=": lambda: stprune.shuffle(ids, seed=1, epoch=1, out=out)},
    )
    rivals = {"torch.randperm": lambda: torch.randperm(size, device=device)}
    yield Case(
        "shuffle",
        "lazy order of n/2 ids (permute)",
        size,
        8 * size,
        lambda: permute(size, seed=1, epoch=1, device=device),
        rivals,
        {"out=": lambda: permute(size, seed=1, epoch=1, out=out)},
    )
    yield Case(
        "shuffle", "lazy order, one batch of 64", 64, 512, lambda: permute(size, 64, 128, seed=1, epoch=1, device=device)
    )


def _numpy_bernoulli(probability: torch.Tensor) -> Call:
    p = probability.numpy()
    generator = np.random.default_rng(0)
    return lambda: np.flatnonzero(generator.random(p.size, dtype=np.float32) < p)


def _eager_threshold(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    below = keys < keys.mean()
    kept = (~below | (torch.rand(keys.numel(), device=keys.device) < 0.5)).nonzero().squeeze(1)
    return kept, torch.where(below[kept], 2.0, 1.0)


def _numpy_threshold(keys: np.ndarray) -> Call:
    generator = np.random.default_rng(0)

    def call() -> tuple[np.ndarray, np.ndarray]:
        below = keys < keys.mean()
        kept = np.flatnonzero(~below | (generator.random(keys.size, dtype=np.float32) < 0.5))
        return kept, np.where(below[kept], np.float32(2.0), np.float32(1.0))

    return call


def _numpy_race(weights: np.ndarray, k: int) -> Call:
    generator = np.random.default_rng(0)
    return lambda: np.argpartition(generator.standard_exponential(weights.size, dtype=np.float32) / weights, k)[:k]


def _numpy_choice(weights: np.ndarray, k: int) -> Call:
    generator = np.random.default_rng(0)
    p = weights.astype(np.float64)
    p /= p.sum()
    return lambda: generator.choice(p.size, k, replace=False, p=p)
