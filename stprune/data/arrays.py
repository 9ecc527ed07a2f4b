"""NumPy files: .npy, and the .npz archives of PEMS, LargeST and our own data sets. Nothing is ever unpickled."""

from __future__ import annotations

import ast
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from stprune.data.series import (
    Array,
    Series,
    check_adjacency,
    check_bytes,
    check_nodes,
    check_numbers,
    cube_shape,
    failure,
    fill_float32,
    refusing,
)
from stprune.data.times import check_times

# Bytes converted at a time: large enough for a disk's full speed, small beside any series worth streaming.
BLOCK_BYTES = 1 << 24
# DEFLATE cannot expand by more than 1032; an entry that declares more lies about its size.
MAX_EXPANSION = 1032
# The header of a plain array is some hundred bytes; ast is slow on long ones (NumPy's own limit is the same).
MAX_HEADER = 10_000
# Characters of a node name; a text array declares the longest one for all.
MAX_NAME = 1024

ADJACENCY_KEYS = ("adj", "adjacency", "adj_mx")
TIME_KEYS = ("time", "timestamps", "times")
NAME_KEYS = ("names", "node_ids", "ids")


@dataclass(frozen=True)
class Header:
    """What an array says about itself before its data: shape, dtype, order, and where the data begins."""

    shape: tuple[int, ...]
    dtype: Any
    fortran: bool
    offset: int

    @property
    def size(self) -> int:
        """Bytes of the header and the data it announces."""
        return self.offset + math.prod(self.shape) * int(self.dtype.itemsize)


def read_header(stream: IO[bytes], path: object, key: str) -> Header:
    """Parses the .npy header at the beginning of a stream; object and structured dtypes are refused here."""
    magic = stream.read(8)
    if len(magic) < 8 or magic[:6] != b"\x93NUMPY" or magic[6] not in (1, 2, 3):
        raise failure(path, key, "be a NumPy array of format 1, 2 or 3", f"{magic[:8]!r}")
    width = 2 if magic[6] == 1 else 4
    length = int.from_bytes(stream.read(width), "little")
    if length > MAX_HEADER:
        raise failure(path, key, f"have a header of at most {MAX_HEADER} bytes", f"{length}")
    text = stream.read(length)
    try:
        fields = ast.literal_eval(text.decode("utf-8" if magic[6] == 3 else "latin1").strip())
        shape, order, descr = fields["shape"], fields["fortran_order"], fields["descr"]
        dtype = np.dtype(descr) if isinstance(descr, str) else np.dtype(object)
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise failure(path, key, "have a valid NumPy header", f"{text[:80]!r}") from error
    if dtype.hasobject:
        raise failure(path, key, "hold numbers, never Python objects (they are pickles)", f"dtype {descr!r}")
    sizes = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    if not sizes or not isinstance(order, bool):
        raise failure(path, key, "declare a shape of non-negative ints", f"{shape!r}")
    return Header(shape, dtype, order, 8 + width + length)


@contextmanager
def opened(path: Path, key: str | None = None) -> Iterator[tuple[IO[bytes], int]]:
    """(stream, declared bytes) of a .npy file or of the entry ``key`` of an archive; damage gives one ValueError."""
    label = key or "array"
    if key is None:
        with path.open("rb") as stream:
            yield stream, path.stat().st_size
        return
    with refusing(path, label, "be readable"), zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(key + ".npy")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise failure(path, label, "be stored or deflated", f"compression method {entry.compress_type}")
        if entry.file_size > MAX_EXPANSION * entry.compress_size + MAX_HEADER:
            sizes = f"{entry.file_size} from {entry.compress_size}"
            raise failure(path, label, f"expand by at most {MAX_EXPANSION}", sizes)
        with archive.open(entry) as member:
            yield member, entry.file_size


def read_array(path: Path, key: str | None, max_bytes: int) -> Array:
    """A small array as it is stored (adjacency, times, names); its size is checked before it is read."""
    label = key or "array"
    with opened(path, key) as (stream, declared):
        header = read_header(stream, path, label)
        _check_size(path, label, header, declared)
        check_bytes(path, label, header.shape, int(header.dtype.itemsize), max_bytes)
        data = stream.read()
    if len(data) != header.size - header.offset:
        raise failure(path, label, f"hold {header.size - header.offset} bytes of data", f"{len(data)}")
    array: Array = np.frombuffer(data, dtype=header.dtype)
    return array.reshape(header.shape, order="F" if header.fortran else "C")


def read_cube(path: Path, key: str | None, max_bytes: int, out: Array | None = None) -> Array:
    """An array of numbers as [time, node, channel] float32, converted block by block, into ``out`` when it is given."""
    label = key or "array"
    with opened(path, key) as (stream, declared):
        header = read_header(stream, path, label)
        check_numbers(path, label, header.dtype)
        shape = cube_shape(path, label, header.shape)
        _check_size(path, label, header, declared)
        check_bytes(path, label, shape, 4, max_bytes)
        if header.fortran:
            columns: Array = np.empty(shape[::-1], dtype=np.float32)
            _stream(stream, path, f"{label} (transposed)", header.dtype, columns)
            cube = np.ascontiguousarray(columns.T)
        else:
            cube = np.empty(shape, dtype=np.float32) if out is None else out
            _stream(stream, path, label, header.dtype, cube)
    if out is not None and cube is not out:
        out[...] = cube
    return cube


def _stream(stream: IO[bytes], path: object, key: str, dtype: Any, out: Array) -> None:
    rows = max(1, BLOCK_BYTES // (out[:1].size * dtype.itemsize))
    for row in range(0, len(out), rows):
        part = out[row : row + rows]
        data = stream.read(part.size * dtype.itemsize)
        if len(data) != part.size * dtype.itemsize:
            raise failure(path, key, "hold the data its header declares", f"an end in row {row}")
        fill_float32(path, key, part, np.frombuffer(data, dtype=dtype).reshape(part.shape), row)


def _check_size(path: object, key: str, header: Header, declared: int) -> None:
    if header.size != declared:
        rule = f"have the {header.size} bytes its header declares for shape {header.shape}"
        raise failure(path, key, rule, f"{declared}")


def archive_keys(path: Path) -> list[str]:
    """The arrays of a .npz archive, without opening any."""
    with refusing(path, "archive", "be a complete zip file"), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    keys = [name[:-4] for name in names if name.endswith(".npy")]
    if len(set(names)) < len(names):
        raise failure(path, "archive", "name every array once", f"{sorted(names)}")
    return keys


def read_npz(path: Path, name: str, key: str | None, max_bytes: int) -> Series:
    """PEMS (``data``), LargeST's his.npz (``data``, ``mean``, ``std``), or an archive whose ``key`` holds the values."""
    keys = archive_keys(path)
    chosen = key or ("data" if "data" in keys else keys[0] if len(keys) == 1 else None)
    if chosen not in keys:
        raise failure(path, chosen or "data", "be in the archive (name another with key=)", f"the arrays {keys}")
    values = read_cube(path, chosen, max_bytes)
    num_times, num_nodes, num_channels = values.shape
    used = {chosen}
    notes: list[str] = []

    def side(names: tuple[str, ...]) -> str | None:
        return next((k for k in names if k in keys and k not in used), None)

    adjacency = times = node_ids = steps_per_day = channels = None
    if (found := side(ADJACENCY_KEYS)) is not None:
        used.add(found)
        matrix = read_array(path, found, num_nodes * num_nodes * 8)
        check_numbers(path, found, matrix.dtype)
        adjacency = check_adjacency(path, found, matrix, num_nodes)
    if (found := side(TIME_KEYS)) is not None:
        stamps = read_array(path, found, num_times * 8)
        if stamps.dtype.kind == "M":
            used.add(found)
            times, steps_per_day, notes = check_times(path, found, stamps, num_times)
    if (found := side(NAME_KEYS)) is not None:
        labels = read_array(path, found, num_nodes * 4 * MAX_NAME)
        if labels.ndim == 1 and labels.dtype.kind in "USiu":
            used.add(found)
            texts = [x.decode("utf-8", "replace") if isinstance(x, bytes) else str(x) for x in labels.tolist()]
            node_ids = check_nodes(path, found, texts, num_nodes)
    # Only LargeST's own file is known to be z-scored; elsewhere mean and std may describe raw data.
    if path.name == "his.npz" and chosen == "data" and {"mean", "std"} <= set(keys):
        used |= {"mean", "std"}
        notes = [*notes, _denormalise(path, values, max_bytes)]
        channels = ("value", "time_of_day", "day_of_week") if num_channels == 3 else None
    if ignored := sorted(set(keys) - used):
        notes = [*notes, f"arrays not read: {', '.join(ignored)}"]
    return Series(values, name, adjacency, times, node_ids, channels, steps_per_day=steps_per_day, notes=tuple(notes))


def _denormalise(path: Path, values: Array, max_bytes: int) -> str:
    """Undoes LargeST's z-score of channel 0 in place, so that 0.0 means missing again."""
    scale = {}
    for key in ("mean", "std"):
        number = read_array(path, key, min(max_bytes, 8))
        check_numbers(path, key, number.dtype)
        if number.size != 1 or not np.isfinite(number).all():
            raise failure(path, key, "be one finite number", f"shape {number.shape}")
        scale[key] = float(number.reshape(()))
    if scale["std"] <= 0:
        raise failure(path, "std", "be positive", f"{scale['std']}")
    for row in range(0, len(values), 1024):
        part = values[row : row + 1024, :, 0]
        raw = part.astype(np.float64) * scale["std"]
        # float32 z-scores carry half an ulp, so a stored zero comes back as rounding noise around zero.
        noise = 2.0**-23 * np.abs(raw)
        raw += scale["mean"]
        raw[np.abs(raw) <= noise] = 0.0
        fill_float32(path, "data", part, raw, row)
    return "data: channel 0 de-normalised with the archive's mean and std; rounding noise around 0 set to 0"
