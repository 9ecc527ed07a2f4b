"""HDF5: pandas frames in the fixed layout (METR-LA, PEMS-BAY, LargeST) and plain data sets.

h5py reads the frames, not pandas: pandas reads them through PyTables, which unpickles the attributes of every axis (METR-LA
has such a one), so a file could run any code. The fixed layout is two axes and a few blocks of columns.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from stprune.data.series import (
    Array,
    Series,
    as_float32,
    as_text,
    check_bytes,
    check_nodes,
    check_numbers,
    cube_shape,
    damaged,
    failure,
    require,
)
from stprune.data.times import check_times, read_times


def read_hdf(path: Path, name: str, key: str | None, max_bytes: int) -> Series:
    """The frame or data set ``key`` of a file, or the only one there is."""
    h5py = require("h5py", path)
    with damaged(path, "file", "be a complete HDF5 file"), h5py.File(path, "r") as file:
        found = {k: v for k in file if (v := _member(file, k)) is not None}
        kinds = {k: _attribute(v, "pandas_type") for k, v in found.items()}
        arrays = [k for k, v in found.items() if hasattr(v, "shape")]
        usable = [k for k, kind in kinds.items() if kind in ("frame", "frame_table")]
        usable = usable or [k for k in arrays if len(found[k].shape) > 1]
        chosen = key or ("data" if "data" in usable else usable[0] if len(usable) == 1 else None)
        if chosen is None or chosen not in [*usable, *arrays]:
            raise failure(path, chosen or "file", "hold one pandas frame or array (or name one with key=)", sorted(found))
        if kinds[chosen] == "frame_table":
            rule = "be a pandas frame in the fixed layout, to_hdf(format='fixed')"
            raise failure(path, chosen, rule, "the table layout, whose column names are pickled")
        if kinds[chosen] == "frame":
            return _frame(path, name, chosen, found[chosen], max_bytes)
        return Series(_numbers(path, chosen, found[chosen], cube_shape(path, chosen, found[chosen].shape), max_bytes), name)


def year_files(folder: Path) -> list[Path]:
    """LargeST's files of a folder, in the order of their years."""
    return sorted(file for file in folder.iterdir() if re.fullmatch(r".+_his_\d{4}\.h5", file.name))


def read_years(folder: Path, name: str, max_bytes: int) -> Series:
    """LargeST's yearly frames one after the other in time."""
    parts: list[Series] = []
    files = year_files(folder)
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
    nodes = parts[0].node_ids
    return Series(values, name, timestamps=times, node_ids=nodes, steps_per_day=steps_per_day, notes=tuple(notes))


def _member(group: Any, key: str) -> Any:
    """The object behind a hard link; soft and external links could lead out of the file and are not followed."""
    h5py = require("h5py", group.file.filename)
    return group[key] if isinstance(group.get(key, getlink=True), h5py.HardLink) else None


def _attribute(item: Any, name: str) -> str:
    """An attribute that is text; others, some of which pandas pickles, are never interpreted."""
    value = item.attrs.get(name)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value if isinstance(value, str) else ""


def _part(path: Path, key: str, group: Any, name: str, dims: int = 1) -> Any:
    item = _member(group, name) if name in group else None
    if item is None or len(getattr(item, "shape", ())) != dims:
        raise failure(path, f"{key}/{name}", f"be a data set of the frame with {dims} dimensions", item)
    return item


def _frame(path: Path, name: str, key: str, group: Any, max_bytes: int) -> Series:
    """A frame: axis1 are the times, axis0 the nodes, blocks hold the columns grouped by dtype."""
    for axis in ("axis0", "axis1"):
        if _attribute(group, f"{axis}_variety") not in ("", "regular"):
            raise failure(path, f"{key}/{axis}", "be a plain index", "a MultiIndex")
    clock, names = _part(path, key, group, "axis1"), _part(path, key, group, "axis0")
    num_times, num_nodes = len(clock), len(names)
    check_bytes(path, key, cube_shape(path, key, (num_times, num_nodes)), 4, max_bytes)
    columns = _labels(names)
    notes = [] if columns else [f"{key}/axis0: dtype {names.dtype} may be pickled, so node names were not read"]
    place = {label: column for column, label in enumerate(columns or [])}
    blocks = [b for b in range(num_nodes) if f"block{b}_values" in group] or [0]
    values: Array = np.empty((num_times, num_nodes, 1), dtype=np.float32)
    filled = np.zeros(num_nodes, dtype=bool)
    for block in blocks:
        label = f"{key}/block{block}_values"
        data = _part(path, key, group, f"block{block}_values", 2)
        shape = (num_times, data.shape[1], 1)
        items = _labels(_part(path, key, group, f"block{block}_items"))
        if items is None and len(blocks) == 1:
            where = list(range(num_nodes))
        elif items is None or not set(items) <= set(place):
            raise failure(path, f"{key}/block{block}_items", "name columns of axis0", "others")
        else:
            where = [place[item] for item in items]
        if data.shape != (num_times, len(where)) or len(where) > num_nodes:
            raise failure(path, label, f"be [{num_times}, {len(where)}], at most {num_nodes} columns", f"shape {data.shape}")
        if where == list(range(num_nodes)):
            _numbers(path, label, data, shape, max_bytes, values)
        else:
            values[:, where] = _numbers(path, label, data, shape, max_bytes)
        filled[where] = True
    if not filled.all():
        raise failure(path, key, "have values for every column", f"{int((~filled).sum())} columns without")
    times, steps_per_day, more = _times(path, f"{key}/axis1", clock)
    nodes = None if columns is None else check_nodes(path, f"{key}/axis0", columns, num_nodes)
    return Series(values, name, timestamps=times, node_ids=nodes, steps_per_day=steps_per_day, notes=(*notes, *more))


def _times(path: Path, key: str, clock: Any) -> tuple[Array | None, int | None, list[str]]:
    kind = _attribute(clock, "kind")
    if kind == "string" and clock.dtype.kind == "S" and clock.dtype.itemsize <= 1024:
        return read_times(path, key, clock[()], len(clock))
    if not kind.startswith("datetime64"):
        return None, None, [f"{key}: kind {kind or 'unknown'!r} holds no times"]
    if clock.dtype.kind != "i" or clock.dtype.itemsize != 8:
        raise failure(path, key, "hold int64 times", f"dtype {clock.dtype}")
    # Before pandas 2 the kind carries no unit and the ticks are nanoseconds.
    unit = kind.removeprefix("datetime64").strip("[]").split(",")[0] or "ns"
    if unit not in ("s", "ms", "us", "ns"):
        raise failure(path, key, "count s, ms, us or ns", f"kind {kind!r}")
    return check_times(path, key, clock[()].astype(f"datetime64[{unit}]"), len(clock))


def _labels(data: Any) -> list[str] | None:
    """Column names; None where they may be pickled."""
    return as_text(data[()]) if data.dtype.kind in "Siu" and data.dtype.itemsize <= 1024 else None


def _numbers(path: Path, key: str, data: Any, shape: tuple[int, int, int], max_bytes: int, out: Array | None = None) -> Array:
    """A data set as float32, block by block, after its size has been checked against what the file really holds."""
    check_numbers(path, key, data.dtype)
    check_bytes(path, key, shape, 4, max_bytes)
    # Data outside the file, or declared and never written, is not this file's to declare.
    if data.is_virtual or data.external:
        raise failure(path, key, "be stored in the file itself", "a virtual or external data set")
    stored, full = data.id.get_storage_size(), math.prod(shape) * data.dtype.itemsize
    if stored == 0 or (data.chunks is None and stored != full):
        raise failure(path, key, f"be stored in full ({full} bytes)", f"{stored} bytes")
    return as_float32(path, key, data, shape, out)
