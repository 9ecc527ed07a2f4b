"""select and topk: the k largest keys of every row, exactly."""

from __future__ import annotations

import math

import torch

from stprune.ops import _check
from stprune.ops._out import deliver, empty
from stprune.ops._registry import define
from stprune.reference import order as reference


def _select(keys: torch.Tensor, k: int, out: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    found = reference.select(keys, k)
    return *deliver([found], out), torch.tensor([found.numel()])


def _select_fake(keys: torch.Tensor, k: int, out: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    return empty(out, keys, (*keys.shape[:-1], k), torch.int64), torch.empty(1, dtype=torch.int64)


def _topk(
    keys: torch.Tensor, k: int, sorted: bool, out_values: torch.Tensor | None, out_indices: torch.Tensor | None
) -> tuple[torch.Tensor, ...]:
    return deliver(reference.topk(keys, k, sorted), out_values, out_indices)


def _topk_fake(
    keys: torch.Tensor, k: int, sorted: bool, out_values: torch.Tensor | None, out_indices: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (*keys.shape[:-1], k)
    return empty(out_values, keys, shape, keys.dtype), empty(out_indices, keys, shape, torch.int64)


# select returns how many elements there are as well: torch 2.13 does not compile an op with one result and optional buffers.
define("select(Tensor keys, SymInt k, Tensor(a!)? out) -> (Tensor, Tensor)", _select, _select_fake)
define(
    "topk(Tensor keys, SymInt k, bool sorted, Tensor(a!)? out_values, Tensor(b!)? out_indices) -> (Tensor, Tensor)",
    _topk,
    _topk_fake,
)


def _checked(op: str, keys: torch.Tensor, k: int) -> tuple[torch.Tensor, int]:
    keys = _check.floating(op, "keys", keys)
    if keys.dim() == 0:
        raise ValueError(f"{op}: keys must have at least one dimension, got shape ()")
    return keys.detach(), _check.integer(op, "k", k, 0, keys.shape[-1])


def _as_taken(keys: torch.Tensor) -> torch.Tensor:
    """Keys as the kernels take them: the CUDA kernels know no 16 bits; float32 is exact and keeps their order."""
    narrow = keys.dtype in (torch.bfloat16, torch.float16)
    return keys.float() if narrow and keys.is_cuda else keys.contiguous()


def _buffer(op: str, name: str, out: torch.Tensor, dtype: torch.dtype, keys: torch.Tensor, k: int) -> torch.Tensor:
    """The front of a buffer, as long as the result."""
    return _check.room(op, name, _check.buffer(op, name, out, dtype, keys), math.prod(keys.shape[:-1]) * k)


def select(keys: torch.Tensor, k: int, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Indices of the k largest keys of every row.

    Exact: the set does not depend on device, thread count or instruction set. NaN counts as larger than +inf, -0 equals
    +0, and among equal keys the smaller index wins: also among those of +inf, of which nothing is known in a table of scores.
    `draw_weighted` takes these first as well, and draws among them where they are more than k.

    Args:
        keys: [..., n] float32, float64, bfloat16 or float16; not modified.
        k: how many of each row, in [0, n].
        out: int64 buffer, one-dimensional and contiguous, on the device of `keys`, with at least as many elements as the
            result; its front is overwritten. Fresh memory costs as much as the work, and a buffer used again costs none.

    Returns:
        [..., k] int64, every row ascending, on the device of `keys`: with `out`, a view of its front, which the next
        call with the same buffer overwrites.

    Raises:
        TypeError: `keys` is no floating tensor, `k` no integer, or `out` no int64 tensor.
        ValueError: `keys` has no dimension, `k` lies outside [0, n], or `out` is too small, not contiguous, on another
            device or overlaps `keys` (then nothing is written).

    Example:
        >>> import torch, stprune
        >>> stprune.select(torch.tensor([1.0, 3.0, 3.0, 2.0]), 2)
        tensor([1, 2])
        >>> buffer = torch.empty(100, dtype=torch.int64)
        >>> stprune.select(torch.tensor([[1.0, 3.0, 2.0], [5.0, 4.0, 6.0]]), 2, out=buffer)
        tensor([[1, 2],
                [0, 2]])

    Source:
        Key order: that of torch.topk, with the tie rule made deterministic. A bracket around the k-th key, found in a
        sample, as in SampleSelect (Ribizel, Anzt: Parallel selection on GPUs, Parallel Computing 91, 2020).
    """
    keys, k = _checked("select", keys, k)
    if out is not None:
        out = _buffer("select", "out", out, torch.int64, keys, k)
    keys = _as_taken(keys)
    found, _ = (_select if _rows_on_cuda(keys) else torch.ops.stprune.select)(keys, k, out)
    return found if out is None else out.view(*keys.shape[:-1], k)


def topk(
    keys: torch.Tensor,
    k: int,
    dim: int = -1,
    *,
    sorted: bool = True,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest keys along a dimension and their indices: torch.topk with deterministic ties.

    Args:
        keys: [..., n] float32, float64, bfloat16 or float16; not modified.
        k: how many, in [0, n].
        dim: the dimension to search; any but the last costs a transposed copy.
        sorted: largest first (ties by the smaller index) when True, by ascending index when False.
        out: buffers for values (dtype of `keys`) and indices (int64), one-dimensional and contiguous, on the device of
            `keys`, with at least as many elements as the result; their fronts are overwritten.

    Returns:
        values [..., k] of the keys' dtype and indices [..., k] int64, k in the place of `dim`: with `out`, views of its
        fronts, which the next call with the same buffers overwrites.

    Raises:
        TypeError: `keys` is no floating tensor, `k` or `dim` no integer, or `out` has another dtype.
        ValueError: `keys` has no dimension, `dim` is none of its dimensions, `k` lies outside [0, n], or `out` is too
            small, not contiguous, on another device or overlaps `keys` (then nothing is written).

    Example:
        >>> import torch, stprune
        >>> stprune.topk(torch.tensor([1.0, 3.0, 3.0, 2.0]), 3).indices
        tensor([1, 2, 3])
        >>> stprune.topk(torch.tensor([[1.0, 3.0], [4.0, 2.0]]), 1, dim=0).values
        tensor([[4., 3.]])

    Source:
        torch.topk; deviates in that ties always go to the smaller index, unsorted results ascend by index, and no
        gradient is recorded.
    """
    keys = _check.floating("topk", "keys", keys)
    dim = _check.integer("topk", "dim", dim, -max(1, keys.dim()), max(1, keys.dim()) - 1)
    last = keys.dim() == 0 or dim in (-1, keys.dim() - 1)
    keys, k = _checked("topk", keys if last else keys.movedim(dim, -1), k)
    if out is None:
        values, indices = _run_topk(keys, k, bool(sorted), None, None)
    else:
        values_out = _buffer("topk", "out values", out[0], keys.dtype, keys, k)
        indices_out = _buffer("topk", "out indices", out[1], torch.int64, keys, k)
        _check.apart("topk", "out values", values_out, indices_out)
        _run_topk(keys, k, bool(sorted), values_out, indices_out)
        values, indices = (part.view(*keys.shape[:-1], k) for part in (values_out, indices_out))
    if not last:
        values, indices = values.movedim(-1, dim), indices.movedim(-1, dim)
    return torch.return_types.topk((values, indices))  # type: ignore[no-any-return, attr-defined]


def _run_topk(
    keys: torch.Tensor, k: int, sorted: bool, out_values: torch.Tensor | None, out_indices: torch.Tensor | None
) -> tuple[torch.Tensor, ...]:
    taken = _as_taken(keys)
    run = _topk if _rows_on_cuda(taken) else torch.ops.stprune.topk
    if taken.dtype == keys.dtype:
        return run(taken, k, sorted, out_values, out_indices)
    values, indices = run(taken, k, sorted, None, None)
    return deliver([values.to(keys.dtype), indices], out_values, out_indices)


def _rows_on_cuda(keys: torch.Tensor) -> bool:
    """The CUDA kernels take one row; the reference composition sorts all rows at once."""
    return keys.is_cuda and keys.dim() > 1
