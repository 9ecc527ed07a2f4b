"""What every reader returns, and the rules all formats share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class RefusedFile(ValueError):
    """A file that breaks a rule; a ValueError to callers, told apart here from the errors of other libraries."""


def failure(path: object, key: str, rule: str, got: object) -> RefusedFile:
    """The one form in which a reader refuses a file: the file, the key in it, the rule, the value."""
    return RefusedFile(f"read_series: {path}: {key} must {rule}, got {got}")


@contextmanager
def refusing(path: object, key: str, rule: str) -> Iterator[None]:
    """Turns whatever a format's library raises over a damaged file, which it does not document, into one refusal."""
    try:
        yield
    except (RefusedFile, MemoryError):
        raise
    except Exception as error:
        raise failure(path, key, rule, f"{type(error).__name__}: {str(error)[:200]}") from error


def require(module: str, path: object) -> Any:
    """An optional library, or the error that says how to install it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RuntimeError(f"read_series: {path}: needs {module}: pip install stprune[data]") from error


@dataclass(frozen=True, eq=False)
class Series:
    """A spatio-temporal series as read from a file.

    Args:
        values: [time, node, channel] float32 in the file's unit; NaN is missing.
        name: Name of the data set, from the file or its folder.
        adjacency: [node, node] float32, or None.
        timestamps: [time] datetime64[us], strictly increasing, or None.
        node_ids: One distinct name per node, or None.
        channels: One name per channel, or None.
        steps_per_day: Rows of one day where the file says so or the timestamps are regular, else None.
        time_features: [time, feature] float32 where the format stores them beside the values, or None.
        time_feature_names: One name per time feature, or None.
        splits: (start, stop) rows of the parts where the format stores train, validation and test apart, or None.
        notes: What the reader decided or left out, one sentence each.

    Example:
        >>> import numpy as np
        >>> from stprune.data import Series
        >>> Series(values=np.zeros((4, 2, 1), np.float32), name="zeros")
        Series('zeros', 4 times x 2 nodes x 1 channels)

    Source:
        Our definition.
    """

    values: Array
    name: str
    adjacency: Array | None = None
    timestamps: Array | None = None
    node_ids: tuple[str, ...] | None = None
    channels: tuple[str, ...] | None = None
    steps_per_day: int | None = None
    time_features: Array | None = None
    time_feature_names: tuple[str, ...] | None = None
    splits: tuple[tuple[int, int], ...] | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Name and size; the values themselves are not printed."""
        times, nodes, channels = self.values.shape
        return f"Series({self.name!r}, {times} times x {nodes} nodes x {channels} channels)"


def cube_shape(path: object, key: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """[time, node, channel] for an array of one to three dimensions; refuses empty and higher ones."""
    if not 1 <= len(shape) <= 3:
        raise failure(path, key, "be [time, node] or [time, node, channel]", f"shape {shape}")
    if 0 in shape:
        raise failure(path, key, "not be empty", f"shape {shape}")
    times, nodes, channels = (*shape, 1, 1)[:3]
    return times, nodes, channels


def check_bytes(path: object, key: str, shape: tuple[int, ...], itemsize: int, max_bytes: int) -> None:
    """Refuses, before anything is allocated, an array of more bytes than the caller allows."""
    size = math.prod(shape) * itemsize
    if size > max_bytes:
        raise failure(path, key, f"need at most max_bytes = {max_bytes} bytes", f"{size} for shape {shape}")


def check_numbers(path: object, key: str, dtype: Any) -> None:
    """Refuses what is not an integer or real number; object arrays above all, which hide pickles."""
    if dtype.hasobject or dtype.kind not in "fiu":
        raise failure(path, key, "hold real numbers", f"dtype {dtype}")


def fill_float32(path: object, key: str, out: Array, block: Array, row: int) -> None:
    """Copies a block into ``out`` as float32; infinite entries and those beyond float32 are refused."""
    with np.errstate(over="ignore", invalid="ignore"):
        out[...] = block
    infinite = np.isinf(out)
    if infinite.any():
        place = np.argwhere(infinite)[0]
        value = np.asarray(block).reshape(out.shape)[tuple(place)]
        raise failure(path, key, "be finite in float32 (NaN is missing)", f"{value} in row {row + int(place[0])}")


def check_nodes(path: object, key: str, names: list[str], num_nodes: int) -> tuple[str, ...]:
    """Node names as a tuple: one for each node, no two alike."""
    if len(names) != num_nodes:
        raise failure(path, key, f"name {num_nodes} nodes", f"{len(names)} names")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise failure(path, key, "name every node once", f"{name!r} twice")
        seen.add(name)
    return tuple(names)


def check_adjacency(path: object, key: str, matrix: Array, num_nodes: int) -> Array:
    """An adjacency as [node, node] float32 without NaN or infinity."""
    if matrix.shape != (num_nodes, num_nodes):
        raise failure(path, key, f"be [{num_nodes}, {num_nodes}]", f"shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise failure(path, key, "be finite", "NaN or infinite entries")
    return matrix.astype(np.float32)
