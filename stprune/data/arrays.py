"""NumPy files: .npy, and the .npz archives of PEMS, LargeST and our own data sets. Nothing is ever unpickled."""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO, Any

import numpy as np

from stprune.data.series import (
    Array,
    Series,
    as_float32,
    as_text,
    check_adjacency,
    check_bytes,
    check_nodes,
    check_numbers,
    cube_shape,
    damaged,
    failure,
)
from stprune.data.times import read_times

# Characters of a node name or time; a text array declares the longest one for all.
MAX_TEXT = 1024

ADJACENCY_KEYS = ("adj", "adjacency", "adj_mx")
TIME_KEYS = ("time", "timestamps", "times")
NAME_KEYS = ("names", "node_ids", "ids")


def _check_header(path: Path, key: str, stream: IO[bytes], stored: int, max_bytes: int) -> None:
    """Compares what an array's header declares with the bytes there are and may be, before any memory is taken."""
    version = np.lib.format.read_magic(stream)
    # Versions 2 and 3 differ in how they spell the names of structured types, which are refused.
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        check_numbers(path, key, dtype)
    if stored - stream.tell() != math.prod(shape) * dtype.itemsize:
        raise failure(path, key, f"have the bytes its header declares for shape {shape}", stored - stream.tell())
    check_bytes(path, key, shape, dtype.itemsize, max_bytes)


def open_npy(path: Path, max_bytes: int) -> Array:
    """A .npy file as a read-only map of its bytes, so that it is read block by block."""
    with damaged(path, "array", "be a readable .npy file of numbers"):
        with path.open("rb") as stream:
            _check_header(path, "array", stream, path.stat().st_size, max_bytes)
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        return array


def read_npy(path: Path, max_bytes: int) -> Array:
    """[time, node, channel] float32 of a .npy file, converted block by block."""
    array = open_npy(path, max_bytes)
    check_numbers(path, "array", array.dtype)
    shape = cube_shape(path, "array", array.shape)
    check_bytes(path, "array", shape, 4, max_bytes)
    return as_float32(path, "array", array, shape)


def _read_array(path: Path, archive: Any, key: str, max_bytes: int) -> Array:
    """An array of an archive as it is stored."""
    with damaged(path, key, "be a readable array of numbers"):
        entry = archive.zip.getinfo(key + ".npy")
        with archive.zip.open(entry) as stream:
            _check_header(path, key, stream, entry.file_size, max_bytes)
        array: Array = archive[key]
        return array


def read_npz(path: Path, name: str, key: str | None, max_bytes: int) -> Series:
    """PEMS (``data``), LargeST's his.npz (``data``, ``mean``, ``std``), or an archive whose ``key`` holds the values."""
    with damaged(path, "archive", "be a complete .npz"):
        opened = np.load(path, allow_pickle=False)
    with opened as archive:
        entries = archive.zip.namelist()
        if len(set(entries)) < len(entries):
            raise failure(path, "archive", "name every array once", sorted(entries))
        keys = [entry.removesuffix(".npy") for entry in entries if entry.endswith(".npy")]
        chosen = key or ("data" if "data" in keys else keys[0] if len(keys) == 1 else None)
        if chosen is None or chosen not in keys:
            raise failure(path, chosen or "data", "be in the archive (name another with key=)", f"the arrays {keys}")
        stored = _read_array(path, archive, chosen, max_bytes)
        check_numbers(path, chosen, stored.dtype)
        shape = cube_shape(path, chosen, stored.shape)
        check_bytes(path, chosen, shape, 4, max_bytes)
        # float32 is checked in the memory it was read to; any other type is converted to new memory.
        own = stored.reshape(shape) if stored.dtype == np.float32 and stored.flags.c_contiguous else None
        values = as_float32(path, chosen, stored, shape, own)
        num_times, num_nodes, num_channels = shape
        used = {chosen}
        notes: list[str] = []

        def side(names: tuple[str, ...], most: int) -> tuple[str, Array | None]:
            for found in names:
                if found in keys and found not in used:
                    used.add(found)
                    return found, _read_array(path, archive, found, most)
            return names[0], None

        adjacency = times = node_ids = steps_per_day = channels = None
        found, matrix = side(ADJACENCY_KEYS, num_nodes * num_nodes * 8)
        if matrix is not None:
            adjacency = check_adjacency(path, found, matrix, num_nodes)
        found, stamps = side(TIME_KEYS, num_times * 4 * MAX_TEXT)
        if stamps is not None:
            times, steps_per_day, notes = read_times(path, found, stamps, num_times)
        found, labels = side(NAME_KEYS, num_nodes * 4 * MAX_TEXT)
        if labels is not None and labels.ndim == 1 and labels.dtype.kind in "USiu":
            node_ids = check_nodes(path, found, as_text(labels), num_nodes)
        elif labels is not None:
            used.remove(found)
        # Only LargeST's own file is known to be z-scored; elsewhere mean and std may describe raw data.
        if path.name == "his.npz" and chosen == "data" and {"mean", "std"} <= set(keys):
            used |= {"mean", "std"}
            scale = [_read_array(path, archive, k, 8) for k in ("mean", "std")]
            notes = [*notes, _denormalise(path, values, *scale)]
            channels = ("value", "time_of_day", "day_of_week") if num_channels == 3 else None
    if ignored := sorted(set(keys) - used):
        notes = [*notes, f"arrays not read: {', '.join(ignored)}"]
    return Series(values, name, adjacency, times, node_ids, channels, steps_per_day=steps_per_day, notes=tuple(notes))


def _denormalise(path: Path, values: Array, mean: Array, std: Array) -> str:
    """Undoes LargeST's z-score of channel 0 in place, so that 0.0 means missing again."""
    for key, number in (("mean", mean), ("std", std)):
        check_numbers(path, key, number.dtype)
        if number.size != 1 or not np.isfinite(number).all():
            raise failure(path, key, "be one finite number", f"shape {number.shape}")
    scale, shift = float(std.reshape(())), float(mean.reshape(()))
    if scale <= 0:
        raise failure(path, "std", "be positive", scale)
    for row in range(0, len(values), 1024):
        part = values[row : row + 1024, :, :1]
        raw = part.astype(np.float64) * scale
        # float32 z-scores carry half an ulp, so a stored zero comes back as rounding noise around zero.
        noise = 2.0**-23 * np.abs(raw)
        raw += shift
        raw[np.abs(raw) <= noise] = 0.0
        as_float32(path, "data", raw, raw.shape, part, row)
    return "data: channel 0 de-normalised with the archive's mean and std; rounding noise around 0 set to 0"
