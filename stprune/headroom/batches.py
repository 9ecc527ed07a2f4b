"""The windows that headroom measures on, from whatever the user's loader yields."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler, SequentialSampler

_OP = "headroom"
FEWEST = 8
"""Windows without which a spread over windows says nothing."""


def collect(batches: Iterable[Any], num_windows: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Take batches until they hold enough windows.

    Args:
        batches: yields (x, y), (index, x, y), (index, (x, y)) or (index, node, x, y) with x, y [B, T, N, C] of all nodes;
            not modified.
        num_windows: windows wanted; the last batch is cut to that, but never the first, whose size is the batch size.
        device: where they are put.

    Returns:
        Pairs (x, y); x floating and y of the same windows and nodes.

    Raises:
        TypeError: a batch is none of the three forms, or holds no floating tensors.
        ValueError: shapes do not fit, or there are fewer than 8 windows.
    """
    found: list[tuple[Tensor, Tensor]] = []
    count = 0
    for batch in batches:
        x, y = _pair(batch)
        if x.dim() != 4 or y.dim() != 4 or x.shape[0] != y.shape[0] or x.shape[2] != y.shape[2]:
            raise ValueError(
                f"{_OP}: batches must yield x and y [B, T, N, C] of the same windows and nodes, got {list(x.shape)} and "
                f"{list(y.shape)}"
            )
        if found and x.shape[2] != found[0][0].shape[2]:
            raise ValueError(f"{_OP}: batches must all have {found[0][0].shape[2]} nodes, got {x.shape[2]}")
        if not found:
            num_windows = max(num_windows, len(x))
        left = num_windows - count
        found.append((x[:left].to(device), y[:left].to(device)))
        count += len(found[-1][0])
        if count >= num_windows:
            break
    if count < FEWEST:
        raise ValueError(f"{_OP}: batches must hold at least {FEWEST} windows, got {count}")
    return found


def warn_of_order(batches: Any, num_windows: int) -> None:
    """Warn where a loader's own sampler shows that its first windows are not a random choice of all.

    Args:
        batches: as for `collect`; of anything but a loader with a sampler nothing is known, and nothing is said.
        num_windows: windows wanted; where a loader has no more, their order does not matter.
    """
    order: Any = None
    inner = batches
    while inner is not None:
        order = inner
        inner = getattr(order, "batch_sampler", None)
        inner = getattr(order, "sampler", None) if inner is None else inner
    kept, samples = len(getattr(order, "plan", ())), getattr(getattr(order, "table", None), "num_samples", 0)
    if 0 < kept < samples and not order.method.uniform:
        _warn(
            f"batches should be of all windows, got the {kept:,} of {samples:,} that {type(order).__name__} keeps: give "
            "headroom a loader of its own"
        )
    in_time = isinstance(order, SequentialSampler) or (isinstance(order, DistributedSampler) and not order.shuffle)
    total = len(order) if in_time else getattr(order, "num_windows", 0) if order is batches else 0
    if total > num_windows:
        _warn(
            f"batches should come in random order, got a {type(batches).__name__} in the order of time: its first windows are "
            "alike, so that the noise of a step, and r, come out wrong; shuffle it"
        )


def _warn(text: str) -> None:
    warnings.warn(f"stprune: {_OP}: {text}", RuntimeWarning, stacklevel=4)


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    parts = list(batch) if isinstance(batch, (tuple, list)) else []
    if len(parts) == 2 and isinstance(parts[1], (tuple, list)):
        parts = list(parts[1])
    elif len(parts) == 3:
        parts = parts[1:]
    if len(parts) == 4 and _all_nodes(parts[1]):
        parts = parts[2:]
    if len(parts) == 4:
        raise ValueError(f"{_OP}: batches must hold all nodes, got (index, node, x, y): set node_ratio to 1 for this")
    if len(parts) != 2 or not all(isinstance(part, Tensor) and part.is_floating_point() for part in parts):
        raise TypeError(
            f"{_OP}: batches must yield (x, y), (index, x, y) or (index, (x, y)) of floating tensors, got {_form(batch)}"
        )
    return parts[0], parts[1]


def _all_nodes(node: Any) -> bool:
    """Whether drawn nodes [B, m] are 0 to m - 1 in every window: a sampler's that draws all."""
    return isinstance(node, Tensor) and node.dim() == 2 and bool((node.cpu() == torch.arange(node.shape[1])).all())


def _form(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return str(batch.dtype)
    if isinstance(batch, (tuple, list)):
        return "(" + ", ".join(_form(part) for part in batch) + ")"
    return type(batch).__name__
