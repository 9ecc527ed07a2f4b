"""BasicTS folders: one mapped file and a description (0.x), or one array for each split (1.x)."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np

from stprune.data.arrays import open_npy
from stprune.data.series import (
    Array,
    Series,
    as_float32,
    check_adjacency,
    check_bytes,
    check_numbers,
    cube_shape,
    failure,
    read_json,
)
from stprune.data.times import read_times

SPLITS = ("train", "val", "test")


def read_basicts_0(folder: Path, max_bytes: int) -> Series:
    """``data.dat`` (float32, shape from ``desc.json``); ``adj_mx.pkl`` is a pickle and never read."""
    description, file = folder / "desc.json", folder / "data.dat"
    for needed in (description, file):
        if not needed.is_file():
            raise failure(folder, needed.name, "be in a BasicTS 0.x folder", "no such file")
    content = read_json(description)
    declared = content.get("shape")
    if not isinstance(declared, list) or not all(type(n) is int and n > 0 for n in declared):
        raise failure(description, "shape", "be a list of positive ints", f"{declared!r}")
    shape = cube_shape(description, "shape", tuple(declared))
    size = math.prod(shape) * 4
    if file.stat().st_size != size:
        rule = f"have {size} bytes, as desc.json declares float32 of shape {tuple(declared)}"
        raise failure(file, "file", rule, file.stat().st_size)
    check_bytes(file, "file", shape, 4, max_bytes)
    values = as_float32(file, "file", np.memmap(file, dtype="<f4", mode="r", shape=shape), shape)
    adjacency, notes = _adjacency(folder, shape[1], max_bytes)
    return Series(
        values,
        _name(content, folder),
        adjacency,
        channels=_names(content, "feature_description", shape[2]),
        steps_per_day=_steps_per_day(description, content),
        notes=notes,
    )


def read_basicts_1(folder: Path, max_bytes: int) -> Series:
    """``{train,val,test}_data.npy`` one after the other, their row ranges as ``splits``, ``*_timestamps.npy`` beside."""
    parts = _open_splits(folder, "data", max_bytes)
    values = _join(folder, "data", parts, max_bytes)
    ends = np.cumsum([len(part) for part in parts]).tolist()
    content = read_json(folder / "meta.json") if (folder / "meta.json").is_file() else {}
    declared = content.get("shape")
    if declared is not None and (not isinstance(declared, list) or tuple((*declared, 1)[:3]) != values.shape):
        raise failure(folder / "meta.json", "shape", f"be that of the three splits, {values.shape}", f"{declared!r}")
    adjacency, notes = _adjacency(folder, values.shape[1], max_bytes)
    steps_per_day = _steps_per_day(folder / "meta.json", content)
    times = features = names = None
    if any((folder / f"{split}_timestamps.npy").is_file() for split in SPLITS):
        clocks = _open_splits(folder, "timestamps", max_bytes)
        lengths = [len(clock) for clock in clocks]
        if lengths != [len(part) for part in parts]:
            raise failure(folder, "timestamps", "have one row for each row of data", f"{lengths} rows")
        if clocks[0].dtype.kind in "fiu":
            features = _join(folder, "timestamps", clocks, max_bytes)[:, :, 0]
            names = _names(content, "timestamps_description", features.shape[1])
        else:
            times, measured, extra = read_times(folder, "timestamps", np.concatenate(clocks).reshape(-1), ends[-1])
            steps_per_day, notes = steps_per_day or measured, (*notes, *extra)
    return Series(
        values,
        _name(content, folder),
        adjacency,
        times,
        steps_per_day=steps_per_day,
        time_features=features,
        time_feature_names=names,
        splits=tuple(itertools.pairwise([0, *ends])),
        notes=notes,
    )


def _open_splits(folder: Path, what: str, max_bytes: int) -> list[Array]:
    """The maps of one file for each split, as [time, node or feature, channel] of one width and kind."""
    parts: list[Array] = []
    for split in SPLITS:
        file = folder / f"{split}_{what}.npy"
        if not file.is_file():
            raise failure(folder, file.name, "be there, as for the other splits of BasicTS 1.x", "no such file")
        part = open_npy(file, max_bytes)
        parts.append(part.reshape(cube_shape(file, "array", part.shape)))
        width, numbers = parts[0].shape[1:], parts[0].dtype.kind in "fiu"
        if parts[-1].shape[1:] != width or (part.dtype.kind in "fiu") != numbers:
            rule = f"have the width and kind of train_{what}.npy, {width} {parts[0].dtype}"
            raise failure(folder, file.name, rule, f"{parts[-1].shape[1:]} {part.dtype}")
    return parts


def _join(folder: Path, what: str, parts: list[Array], max_bytes: int) -> Array:
    """The splits one after the other as float32."""
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
    check_numbers(folder, what, parts[0].dtype)
    check_bytes(folder, "the three splits", shape, 4, max_bytes)
    values: Array = np.empty(shape, dtype=np.float32)
    row = 0
    for split, part in zip(SPLITS, parts, strict=True):
        out = values[row : row + len(part)]
        as_float32(folder / f"{split}_{what}.npy", "array", part, out.shape, out)
        row += len(part)
    return values


def _names(content: dict[str, Any], key: str, count: int) -> tuple[str, ...] | None:
    """A list of ``count`` names of a description, or None for anything else."""
    names = content.get(key)
    return tuple(names) if isinstance(names, list) and len(names) == count and all(isinstance(n, str) for n in names) else None


def _adjacency(folder: Path, num_nodes: int, max_bytes: int) -> tuple[Array | None, tuple[str, ...]]:
    file = folder / "adj_mx.npy"
    if file.is_file():
        return check_adjacency(file, "array", open_npy(file, max_bytes), num_nodes), ()
    if (folder / "adj_mx.pkl").exists():
        return None, ("adj_mx.pkl is a pickle and was not read",)
    return None, ()


def _name(content: dict[str, Any], folder: Path) -> str:
    name = content.get("name")
    return name if isinstance(name, str) else folder.resolve().name


def _steps_per_day(path: Path, content: dict[str, Any]) -> int | None:
    minutes = content.get("frequency (minutes)")
    if minutes is None:
        return None
    if isinstance(minutes, bool) or not isinstance(minutes, (int, float)) or not 0 < minutes < math.inf:
        raise failure(path, "frequency (minutes)", "be a positive number", f"{minutes!r}")
    steps = 1440 / minutes
    return int(steps) if steps >= 1 and steps == int(steps) else None
