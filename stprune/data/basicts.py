"""BasicTS folders: one mapped file and a description (0.x), or one array for each split (1.x)."""

from __future__ import annotations

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
    features = content.get("feature_description")
    channels = None
    if isinstance(features, list) and len(features) == shape[2] and all(isinstance(f, str) for f in features):
        channels = tuple(features)
    return Series(
        values,
        _name(content, folder),
        adjacency,
        channels=channels,
        steps_per_day=_steps_per_day(description, content),
        notes=notes,
    )


def read_basicts_1(folder: Path, max_bytes: int) -> Series:
    """``{train,val,test}_data.npy`` one after the other, their row ranges as ``splits``, ``*_timestamps.npy`` beside."""
    parts, shapes = [], []
    for split in SPLITS:
        file = folder / f"{split}_data.npy"
        if not file.is_file():
            raise failure(folder, file.name, "be in a BasicTS 1.x folder", "no such file")
        part = open_npy(file, max_bytes)
        check_numbers(file, "array", part.dtype)
        if part.ndim < 2:
            raise failure(file, "array", "be [time, node] or [time, node, channel]", f"shape {part.shape}")
        parts.append(part)
        shapes.append(cube_shape(file, "array", part.shape))
        if shapes[-1][1:] != shapes[0][1:]:
            rule = f"have as many nodes and channels as train_data.npy, {shapes[0][1:]}"
            raise failure(folder, file.name, rule, f"{shapes[-1][1:]}")
    total = (sum(shape[0] for shape in shapes), *shapes[0][1:])
    check_bytes(folder, "the three splits", total, 4, max_bytes)
    values: Array = np.empty(total, dtype=np.float32)
    splits, row = [], 0
    for split, part, shape in zip(SPLITS, parts, shapes, strict=True):
        as_float32(folder / f"{split}_data.npy", "array", part, shape, values[row : row + shape[0]])
        splits.append((row, row + shape[0]))
        row += shape[0]
    content = read_json(folder / "meta.json") if (folder / "meta.json").is_file() else {}
    declared = content.get("shape")
    if declared is not None and (not isinstance(declared, list) or tuple((*declared, 1)[:3]) != total):
        raise failure(folder / "meta.json", "shape", f"be that of the three splits, {total}", f"{declared!r}")
    adjacency, notes = _adjacency(folder, total[1], max_bytes)
    steps_per_day = _steps_per_day(folder / "meta.json", content)
    times = features = names = None
    clocks = _clocks(folder, [shape[0] for shape in shapes], max_bytes)
    if clocks is not None and clocks.dtype.kind in "MSU":
        times, measured, extra = read_times(folder, "timestamps", clocks.reshape(-1), total[0])
        steps_per_day, notes = steps_per_day or measured, (*notes, *extra)
    elif clocks is not None:
        features = as_float32(folder, "timestamps", clocks, (*clocks.shape, 1))[:, :, 0]
        listed = content.get("timestamps_description")
        if isinstance(listed, list) and len(listed) == clocks.shape[1] and all(isinstance(n, str) for n in listed):
            names = tuple(listed)
    return Series(
        values,
        _name(content, folder),
        adjacency,
        times,
        steps_per_day=steps_per_day,
        time_features=features,
        time_feature_names=names,
        splits=tuple(splits),
        notes=notes,
    )


def _clocks(folder: Path, lengths: list[int], max_bytes: int) -> Array | None:
    """The time features of all splits, [time, feature], when every split has them."""
    files = [folder / f"{split}_timestamps.npy" for split in SPLITS]
    if not any(file.is_file() for file in files):
        return None
    parts = []
    for file, length in zip(files, lengths, strict=True):
        if not file.is_file():
            raise failure(folder, file.name, "be there when another split has one", "no such file")
        part = open_npy(file, max_bytes)
        if part.ndim not in (1, 2) or part.shape[0] != length or part.dtype.kind not in "fiuMSU":
            rule = f"be [{length}, feature] numbers, datetime64 or text, one row for each row of data"
            raise failure(file, "array", rule, f"shape {part.shape}, dtype {part.dtype}")
        parts.append(part.reshape(length, -1))
        if part.dtype.kind != parts[0].dtype.kind or parts[-1].shape[1] != parts[0].shape[1]:
            raise failure(file, "array", "have the features of train_timestamps.npy", f"shape {part.shape}")
    return np.concatenate(parts)


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
