"""Which of several processes this is, and how many samples a data source has."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from torch import distributed

from stprune.ops import _check


def length_of(op: str, data_source: Any) -> int:
    """The length of a data set, or the length itself."""
    if isinstance(data_source, int):
        return _check.integer(op, "data_source", data_source, 0, 2**62)
    if not isinstance(data_source, Sized):
        raise TypeError(
            f"{op}: data_source must be a length or a data set with one, got {type(data_source).__name__}; "
            "samples of an iterable data set have no ids to prune by"
        )
    return len(data_source)


def is_distributed() -> bool:
    """Whether torch.distributed is running."""
    return distributed.is_available() and distributed.is_initialized()


def ranks(op: str, num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    """How many ranks there are and which this is; None asks torch.distributed."""
    if num_replicas is None:
        num_replicas = distributed.get_world_size() if is_distributed() else 1
    if rank is None:
        rank = distributed.get_rank() if is_distributed() and num_replicas > 1 else 0
    num_replicas = _check.integer(op, "num_replicas", num_replicas, 1)
    return num_replicas, _check.integer(op, "rank", rank, 0, num_replicas - 1)
