"""What every reader returns, and the rules all formats share."""

from __future__ import annotations

import importlib
import json
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Numbers converted at a time: enough for a disk's full speed, few beside any series.
BLOCK = 1 << 22
# Metadata of a Zarr store with thousands of variables is a few MB.
MAX_JSON = 1 << 24
# What NumPy, h5py, netCDF4, xarray, zarr and pandas are seen to raise over a damaged file. NameError, AttributeError and
# AssertionError are not among them: they are faults of a program, not of a file.
DAMAGE: tuple[type[Exception], ...] = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


class RefusedFile(ValueError):
    """A file that breaks a rule; a ValueError to callers, told apart here from the errors of other libraries."""


class MissingLibrary(RuntimeError):
    """A format whose library is not installed; a RuntimeError to callers."""


def failure(path: object, key: str, rule: str, got: object) -> RefusedFile:
    """The one form in which a reader refuses a file: the file, the key in it, the rule, the value."""
    return RefusedFile(f"read_series: {path}: {key} must {rule}, got {got}")


@contextmanager
def damaged(path: object, key: str, rule: str, *also: type[Exception]) -> Iterator[None]:
    """Turns what a format's library raises over a damaged file, and ``also`` its own kinds of errors, into one refusal."""
    kinds = (*DAMAGE, *also)
    try:
        yield
    except (RefusedFile, MissingLibrary):
        raise
    except kinds as error:
        raise failure(path, key, rule, f"{type(error).__name__}: {str(error)[:200]}") from error


def require(module: str, path: object, extra: str = "data") -> Any:
    """An optional library, or the error that says how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise MissingLibrary(f"read_series: {path}: needs {module}: pip install stprune[{extra}]") from error


@dataclass(frozen=True, eq=False)
class Series:
    """A spatio-temporal series as read from a file.

    Args:
        values: [time, node, channel] float32 in the file's unit; NaN is missing.
        name: Name of the data set, from the file or its folder.
        adjacency: [node, node] float32, or None.
        timestamps: [time] datetime64[us], strictly increasing, or None. A missing row is a larger step: nothing is filled in.
        node_ids: One distinct name per node, or None.
        channels: One name per channel, or None.
        steps_per_day: Rows of one day where the file says so, else the day over the most frequent step of the timestamps
            (None where fewer than half of the steps are equal, or a day is no multiple of the step).
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
        rule = "be [time, node] or [time, node, channel] (reshape a grid to [time, height * width, channel])"
        raise failure(path, key, rule, f"shape {shape}")
    if 0 in shape:
        raise failure(path, key, "not be empty", f"shape {shape}")
    times, nodes, channels = (*shape, 1, 1)[:3]
    return times, nodes, channels


def check_bytes(path: object, key: str, shape: tuple[int, ...], itemsize: int, max_bytes: int) -> None:
    """Refuses, before anything is allocated, an array of more bytes than the caller allows."""
    size = math.prod(shape) * itemsize
    if size > max_bytes:
        raise failure(path, key, f"need at most max_bytes = {max_bytes} bytes", f"{size} for shape {shape}")


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object."""
    if path.stat().st_size > MAX_JSON:
        raise failure(path, "file", f"have at most {MAX_JSON} bytes", path.stat().st_size)
    with damaged(path, "file", "be valid JSON"):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise failure(path, "file", "be a JSON object", type(content).__name__)
    return content


def check_numbers(path: object, key: str, dtype: Any) -> None:
    """Refuses what is no integer or real number; object arrays above all, which are pickles."""
    if dtype.hasobject:
        raise failure(path, key, "hold numbers, never Python objects (they are pickles)", f"dtype {dtype}")
    if dtype.kind not in "fiu":
        raise failure(path, key, "hold real numbers", f"dtype {dtype}")


def as_float32(
    path: object, key: str, stored: Any, shape: tuple[int, int, int], out: Array | None = None, first: int = 0
) -> Array:
    """Anything that is sliced by rows as [time, node, channel] float32, block by block, into ``out`` where it is given.

    Infinite entries, and those beyond float32, are refused; ``first`` is the row of the file that ``stored`` begins at.
    """
    values: Array = np.empty(shape, dtype=np.float32) if out is None else out
    rows = max(1, BLOCK // math.prod(shape[1:]))
    for row in range(0, shape[0], rows):
        part = values[row : row + rows]
        block = np.asarray(stored[row : row + rows]).reshape(part.shape)
        with np.errstate(over="ignore", invalid="ignore"):
            part[...] = block
        infinite = np.isinf(part)
        if infinite.any():
            place = tuple(np.argwhere(infinite)[0])
            raise failure(
                path, key, "be finite in float32 (NaN is missing)", f"{block[place]} in row {first + row + int(place[0])}"
            )
    return values


def as_text(labels: Array) -> list[str]:
    """Text, bytes or integers as a list of str."""
    return [x.decode("utf-8", "replace") if isinstance(x, bytes) else str(x) for x in labels.tolist()]


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
    check_numbers(path, key, matrix.dtype)
    if matrix.shape != (num_nodes, num_nodes):
        raise failure(path, key, f"be [{num_nodes}, {num_nodes}]", f"shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise failure(path, key, "be finite", "NaN or infinite entries")
    return matrix.astype(np.float32)
