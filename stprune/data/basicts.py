"""BasicTS folders: one mapped file and a description (0.x), or one array for each split (1.x)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from stprune.data.arrays import Header, opened, read_array, read_cube, read_header
from stprune.data.series import (
    Array,
    Series,
    check_adjacency,
    check_bytes,
    check_numbers,
    cube_shape,
    failure,
    fill_float32,
)
from stprune.data.times import check_times

SPLITS = ("train", "val", "test")
# A description is a page of text.
MAX_JSON = 1 << 20
# Rows converted at a time are chosen so that a block has about this many numbers.
BLOCK = 1 << 22


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object."""
    if path.stat().st_size > MAX_JSON:
        raise failure(path, "file", f"have at most {MAX_JSON} bytes", path.stat().st_size)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise failure(path, "file", "be valid JSON", f"{error}") from error
    if not isinstance(content, dict):
        raise failure(path, "file", "be a JSON object", type(content).__name__)
    return content


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
    stored = np.memmap(file, dtype="<f4", mode="r", shape=shape)
    values: Array = np.empty(shape, dtype=np.float32)
    rows = max(1, BLOCK // (shape[1] * shape[2]))
    for row in range(0, shape[0], rows):
        fill_float32(file, "file", values[row : row + rows], stored[row : row + rows], row)
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
    shapes = [_peek(folder, f"{split}_data.npy", max_bytes) for split in SPLITS]
    for split, shape in zip(SPLITS[1:], shapes[1:], strict=True):
        if shape[1:] != shapes[0][1:]:
            rule = f"have as many nodes and channels as train_data.npy, {shapes[0][1:]}"
            raise failure(folder, f"{split}_data.npy", rule, f"{shape[1:]}")
    total = (sum(shape[0] for shape in shapes), *shapes[0][1:])
    check_bytes(folder, "the three splits", total, 4, max_bytes)
    values: Array = np.empty(total, dtype=np.float32)
    splits, row = [], 0
    for split, shape in zip(SPLITS, shapes, strict=True):
        read_cube(folder / f"{split}_data.npy", None, max_bytes, out=values[row : row + shape[0]])
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
    if clocks is not None and clocks.dtype.kind == "M":
        times, measured, extra = check_times(folder, "timestamps", clocks.reshape(-1), total[0])
        steps_per_day, notes = steps_per_day or measured, (*notes, *extra)
    elif clocks is not None:
        features = np.empty(clocks.shape, dtype=np.float32)
        fill_float32(folder, "timestamps", features, clocks, 0)
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


def _peek(folder: Path, file: str, max_bytes: int) -> tuple[int, int, int]:
    if not (folder / file).is_file():
        raise failure(folder, file, "be in a BasicTS 1.x folder", "no such file")
    with opened(folder / file) as (stream, _):
        header: Header = read_header(stream, folder / file, "array")
    check_numbers(folder / file, "array", header.dtype)
    if len(header.shape) < 2:
        raise failure(folder / file, "array", "be [time, node] or [time, node, channel]", f"shape {header.shape}")
    shape = cube_shape(folder / file, "array", header.shape)
    check_bytes(folder / file, "array", shape, 4, max_bytes)
    return shape


def _clocks(folder: Path, lengths: list[int], max_bytes: int) -> Array | None:
    """The time features of all splits, [time, feature], when every split has them."""
    files = [folder / f"{split}_timestamps.npy" for split in SPLITS]
    if not any(file.is_file() for file in files):
        return None
    parts = []
    for file, length in zip(files, lengths, strict=True):
        if not file.is_file():
            raise failure(folder, file.name, "be there when another split has one", "no such file")
        part = read_array(file, None, max_bytes)
        if part.ndim not in (1, 2) or part.shape[0] != length or part.dtype.kind not in "fiuM":
            rule = f"be [{length}, feature] numbers or datetime64, one row for each row of data"
            raise failure(file, "array", rule, f"shape {part.shape}, dtype {part.dtype}")
        parts.append(part.reshape(length, -1))
        if part.dtype.kind != parts[0].dtype.kind or parts[-1].shape[1] != parts[0].shape[1]:
            raise failure(file, "array", "have the features of train_timestamps.npy", f"shape {part.shape}")
    return np.concatenate(parts)


def _adjacency(folder: Path, num_nodes: int, max_bytes: int) -> tuple[Array | None, tuple[str, ...]]:
    if (folder / "adj_mx.npy").is_file():
        matrix = read_array(folder / "adj_mx.npy", None, min(max_bytes, num_nodes * num_nodes * 8))
        check_numbers(folder / "adj_mx.npy", "array", matrix.dtype)
        return check_adjacency(folder / "adj_mx.npy", "array", matrix, num_nodes), ()
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
