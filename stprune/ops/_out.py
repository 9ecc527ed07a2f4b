"""`out=`: an op returns new tensors, or writes to the fronts of buffers that the caller gave and returns empty tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def deliver(found: Sequence[torch.Tensor], *buffers: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """What an op returns whose kernel found these results, one for each buffer.

    Results that do not fit into their buffers are not written.
    """
    given = [(result.reshape(-1), buffer) for result, buffer in zip(found, buffers, strict=True) if buffer is not None]
    if all(result.numel() <= buffer.numel() for result, buffer in given):
        for result, buffer in given:
            buffer[: result.numel()].copy_(result)
    return tuple(
        empty(buffer, result, result.shape, result.dtype) if buffer is not None else result
        for result, buffer in zip(found, buffers, strict=True)
    )


def empty(buffer: torch.Tensor | None, like: torch.Tensor, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Of what an op returns, one tensor without its values: of this shape, or with a buffer of the shape [0]."""
    return like.new_empty(tuple(shape) if buffer is None else (0,), dtype=dtype)
