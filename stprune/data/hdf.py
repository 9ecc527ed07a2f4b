"""HDF5: pandas frames in the fixed layout (METR-LA, PEMS-BAY, LargeST) and plain data sets, read without pandas."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from stprune.data.series import (
    Array,
    Series,
    check_bytes,
    check_nodes,
    check_numbers,
    cube_shape,
    failure,
    fill_float32,
    refusing,
    require,
)
from stprune.data.times import check_times

# Numbers read at a time; a multiple of any usual HDF5 chunk.
BLOCK = 1 << 22


def read_hdf(path: Path, name: str, key: str | None, max_bytes: int) -> Series:
    """The frame or data set ``key`` of a file, or the only one there is."""
    with _opened(path) as file:
        found = {k: v for k in file if (v := _hard_link(path, file, k)) is not None}
        frames = [k for k, v in found.items() if _text(v.attrs.get("pandas_type")) == "frame"]
        tables = [k for k, v in found.items() if _text(v.attrs.get("pandas_type")) == "frame_table"]
        arrays = [k for k, v in found.items() if hasattr(v, "shape") and len(v.shape) in (2, 3)]
        usable = frames or arrays
        chosen = key or ("data" if "data" in usable else usable[0] if len(usable) == 1 else None)
        if chosen in tables or (chosen is None and tables):
            rule = "be a pandas frame in the fixed layout, to_hdf(format='fixed')"
            raise failure(path, str(chosen or tables[0]), rule, "the table layout, whose column names are pickled")
        if chosen is None or chosen not in [*frames, *arrays]:
            raise failure(path, chosen or "file", "hold one pandas frame or array (or name one with key=)", sorted(found))
        if chosen in frames:
            return _frame(path, name, chosen, found[chosen], max_bytes)
        values = _numbers(path, chosen, found[chosen], cube_shape(path, chosen, found[chosen].shape), max_bytes)
        return Series(values, name)


def read_years(folder: Path, name: str, files: list[Path], max_bytes: int) -> Series:
    """LargeST's yearly frames one after the other in time."""
    parts: list[Series] = []
    for file in files:
        part = read_hdf(file, name, None, max_bytes)
        if part.node_ids is None or part.timestamps is None:
            raise failure(file, "frame", "have node names and times to be joined with other years", "none")
        if parts and part.node_ids != parts[0].node_ids:
            raise failure(file, "columns", f"name the nodes of {files[0].name} in the same order", "others")
        parts.append(part)
        max_bytes -= part.values.nbytes
    stamps = np.concatenate([part.timestamps for part in parts if part.timestamps is not None])
    times, steps_per_day, notes = check_times(folder, "times", stamps, len(stamps))
    values = parts[0].values if len(parts) == 1 else np.concatenate([part.values for part in parts])
    return Series(
        values,
        name,
        timestamps=times,
        node_ids=parts[0].node_ids,
        channels=parts[0].channels,
        steps_per_day=steps_per_day,
        notes=tuple(notes),
    )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    h5py = require("h5py", path)
    with refusing(path, "file", "be a complete HDF5 file"), h5py.File(path, "r") as file:
        yield file


def _hard_link(path: Path, group: Any, key: str) -> Any:
    """The object behind a hard link; soft and external links could lead out of the file and are not followed."""
    h5py = require("h5py", path)
    return group[key] if isinstance(group.get(key, getlink=True), h5py.HardLink) else None


def _text(value: Any) -> str | None:
    """An attribute as text; other attributes, some of which pandas pickles, are never interpreted."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value if isinstance(value, str) else None


def _part(path: Path, key: str, group: Any, name: str) -> Any:
    item = _hard_link(path, group, name) if name in group else None
    if item is None or not hasattr(item, "shape"):
        raise failure(path, f"{key}/{name}", "be a data set of the frame", "none")
    return item


def _frame(path: Path, name: str, key: str, group: Any, max_bytes: int) -> Series:
    """A frame: axis1 are the times, axis0 the nodes, blocks hold the columns grouped by dtype."""
    for axis in ("axis0", "axis1"):
        if _text(group.attrs.get(f"{axis}_variety")) not in (None, "regular"):
            raise failure(path, f"{key}/{axis}", "be a plain index", "a MultiIndex")
    num_times, num_nodes = (_part(path, key, group, axis).shape[0] for axis in ("axis1", "axis0"))
    shape = cube_shape(path, key, (num_times, num_nodes))
    check_bytes(path, key, shape, 4, max_bytes)
    columns, notes = _labels(path, key, group, "axis0", num_nodes)
    blocks = [f"block{b}" for b in range(num_nodes) if f"block{b}_values" in group]
    if not blocks:
        raise failure(path, f"{key}/block0_values", "be a data set of the frame", "none")
    place = {label: column for column, label in enumerate(columns or [])}
    values: Array = np.empty(shape, dtype=np.float32)
    filled = np.zeros(num_nodes, dtype=bool)
    for block in blocks:
        data = _part(path, key, group, f"{block}_values")
        label = f"{key}/{block}_values"
        if len(data.shape) != 2 or data.shape[0] != num_times or data.shape[1] > num_nodes:
            raise failure(path, label, f"be [{num_times}, at most {num_nodes}]", f"shape {data.shape}")
        items, _ = _labels(path, key, group, f"{block}_items", data.shape[1])
        if items is None and len(blocks) == 1:
            where: Any = np.arange(data.shape[1])
        elif items is None or not set(items) <= set(place):
            raise failure(path, f"{key}/{block}_items", "name columns of axis0", "others")
        else:
            where = np.array([place[item] for item in items])
        part = _numbers(path, label, data, (num_times, data.shape[1], 1), max_bytes)
        if np.array_equal(where, np.arange(num_nodes)):
            values = part
        else:
            values[:, where] = part
        filled[where] = True
    if not filled.all():
        raise failure(path, key, "have values for every column", f"{int((~filled).sum())} columns without")
    times, steps_per_day, more = _frame_times(path, key, group, num_times)
    nodes = None if columns is None else check_nodes(path, f"{key}/axis0", columns, num_nodes)
    return Series(values, name, timestamps=times, node_ids=nodes, steps_per_day=steps_per_day, notes=(*notes, *more))


def _frame_times(path: Path, key: str, group: Any, num_times: int) -> tuple[Array | None, int | None, list[str]]:
    axis = _part(path, key, group, "axis1")
    kind = _text(axis.attrs.get("kind")) or ""
    if not kind.startswith("datetime64"):
        return None, None, [f"{key}/axis1: kind {kind or 'unknown'!r} holds no times"]
    if axis.dtype.kind != "i" or axis.dtype.itemsize != 8:
        raise failure(path, f"{key}/axis1", "hold int64 times", f"dtype {axis.dtype}")
    # Before pandas 2 the kind carries no unit and the ticks are nanoseconds.
    unit = kind[len("datetime64") :].strip("[]").split(",")[0] or "ns"
    if unit not in ("s", "ms", "us", "ns"):
        raise failure(path, f"{key}/axis1", "count s, ms, us or ns", f"kind {kind!r}")
    return check_times(path, f"{key}/axis1", axis[()].astype(f"datetime64[{unit}]"), num_times)


def _labels(path: Path, key: str, group: Any, item: str, length: int) -> tuple[list[str] | None, list[str]]:
    data = _part(path, key, group, item)
    if data.shape != (length,):
        raise failure(path, f"{key}/{item}", f"name {length} columns", f"shape {data.shape}")
    if data.dtype.kind not in "Siu" or data.dtype.itemsize > 1024:
        return None, [f"{key}/{item}: dtype {data.dtype} may be pickled, so node names were not read"]
    return [x.decode("utf-8", "replace") if isinstance(x, bytes) else str(x) for x in data[()].tolist()], []


def _numbers(path: Path, key: str, data: Any, shape: tuple[int, int, int], max_bytes: int) -> Array:
    """A data set as float32, block by block, after its size has been checked against what the file really holds."""
    check_numbers(path, key, data.dtype)
    check_bytes(path, key, shape, 4, max_bytes)
    # Data outside the file, or declared and never written, is not this file's to declare.
    if data.is_virtual or data.external:
        raise failure(path, key, "be stored in the file itself", "a virtual or external data set")
    stored, full = data.id.get_storage_size(), math.prod(shape) * data.dtype.itemsize
    if stored == 0 or (data.chunks is None and stored != full):
        raise failure(path, key, f"be stored in full ({full} bytes)", f"{stored} bytes")
    values: Array = np.empty(shape, dtype=np.float32)
    rows = max(1, BLOCK // (shape[1] * shape[2]))
    for row in range(0, shape[0], rows):
        block = data[row : row + rows]
        fill_float32(path, key, values[row : row + rows], block.reshape(-1, *shape[1:]), row)
    return values
