"""select and topk: the k largest keys, exactly."""

from __future__ import annotations

import torch

from stprune.ops import _check
from stprune.ops._registry import define
from stprune.reference import order as reference


def _select_fake(keys: torch.Tensor, k: int) -> torch.Tensor:
    return keys.new_empty((k,), dtype=torch.int64)


def _topk_fake(keys: torch.Tensor, k: int, sorted: bool) -> tuple[torch.Tensor, torch.Tensor]:
    return keys.new_empty((k,)), keys.new_empty((k,), dtype=torch.int64)


define("select(Tensor keys, SymInt k) -> Tensor", reference.select, _select_fake)
define("topk(Tensor keys, SymInt k, bool sorted) -> (Tensor, Tensor)", reference.topk, _topk_fake)


def _checked(op: str, keys: torch.Tensor, k: int) -> tuple[torch.Tensor, int]:
    keys = _check.vector(op, "keys", _check.floating(op, "keys", keys))
    return keys.detach(), _check.integer(op, "k", k, 0, keys.numel())


def _widened(keys: torch.Tensor) -> torch.Tensor:
    """Keys as the kernels take them: bfloat16 and float16 become float32, which is exact and keeps their order."""
    return keys.float() if keys.dtype in (torch.bfloat16, torch.float16) else keys.contiguous()


def select(keys: torch.Tensor, k: int) -> torch.Tensor:
    """Indices of the k largest keys.

    Exact: the set does not depend on device, thread count or instruction set. NaN counts as larger than +inf, -0 equals
    +0, and among equal keys the smaller index wins.

    Args:
        keys: [n] float32, float64, bfloat16 or float16; not modified.
        k: how many, in [0, n].

    Returns:
        [k] int64, ascending, on the device of `keys`.

    Raises:
        TypeError: `keys` is no floating tensor, or `k` no integer.
        ValueError: `keys` is not one-dimensional, or `k` lies outside [0, n].

    Example:
        >>> import torch, stprune
        >>> stprune.select(torch.tensor([1.0, 3.0, 3.0, 2.0]), 2)
        tensor([1, 2])

    Source:
        Key order: that of torch.topk, with the tie rule made deterministic.
    """
    keys, k = _checked("select", keys, k)
    return torch.ops.stprune.select(_widened(keys), k)  # type: ignore[no-any-return]


def topk(keys: torch.Tensor, k: int, *, sorted: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest keys and their indices: torch.topk on a vector, with deterministic ties.

    Args:
        keys: [n] float32, float64, bfloat16 or float16; not modified.
        k: how many, in [0, n].
        sorted: largest first (ties by the smaller index) when True, by ascending index when False.

    Returns:
        values [k] of the keys' dtype and indices [k] int64.

    Raises:
        TypeError: `keys` is no floating tensor, or `k` no integer.
        ValueError: `keys` is not one-dimensional, or `k` lies outside [0, n].

    Example:
        >>> import torch, stprune
        >>> stprune.topk(torch.tensor([1.0, 3.0, 3.0, 2.0]), 3).indices
        tensor([1, 2, 3])

    Source:
        torch.topk; deviates in that ties always go to the smaller index and no gradient is recorded.
    """
    keys, k = _checked("topk", keys, k)
    wide = _widened(keys)
    values, indices = torch.ops.stprune.topk(wide, k, bool(sorted))
    values = values if wide.dtype == keys.dtype else keys[indices]
    return torch.return_types.topk((values, indices))  # type: ignore[no-any-return, attr-defined]
