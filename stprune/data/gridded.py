"""netCDF and Zarr: variables over time and space become channels, every place becomes a node."""

from __future__ import annotations

import itertools
import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from stprune.data.classic import check_length
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

TIME_NAMES = ("time", "valid_time", "datetime", "date", "t")
# Numbers decoded at a time.
BLOCK = 1 << 22
# Consolidated metadata of a store with thousands of variables is a few MB.
MAX_JSON = 1 << 24


def read_netcdf(path: Path, name: str, key: str | None, max_bytes: int) -> Series:
    """A netCDF-3 or netCDF-4 file; the variable ``key``, or all variables over time."""
    netcdf, xarray = require("netCDF4", path), require("xarray", path)
    check_length(path)
    with refusing(path, "file", "be a complete netCDF file"):
        # xarray reads coordinates while it opens a file, so sizes are checked before.
        with netcdf.Dataset(path, "r") as file:
            for label, variable in file.variables.items():
                itemsize = getattr(variable.dtype, "itemsize", 1)
                check_bytes(path, label, tuple(variable.shape), itemsize, max_bytes)
        with xarray.open_dataset(path, engine="netcdf4", decode_timedelta=False) as dataset:
            return _read(path, name, key, dataset, max_bytes)


def read_zarr(path: Path, name: str, key: str | None, max_bytes: int) -> Series:
    """A Zarr group on disk, format 2 or 3; the variable ``key``, or all variables over time."""
    _inspect(path, max_bytes)
    require("zarr", path)
    xarray = require("xarray", path)
    with refusing(path, "store", "be a complete Zarr group"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Only the metadata that was inspected is used, so consolidated copies are not.
            opened = xarray.open_zarr(path, consolidated=False, chunks=None, decode_timedelta=False)
        with opened as dataset:
            # A folder lists its arrays in any order; channels may not depend on it.
            return _read(path, name, key, dataset[sorted(dataset.data_vars, key=str)], max_bytes)


def _inspect(path: Path, max_bytes: int) -> None:
    """Refuses stores with pickled, oversized or never written arrays, from their metadata alone."""
    for folder, _, files in os.walk(path):
        for file in (".zarray", "zarr.json"):
            if file not in files:
                continue
            place = Path(folder, file)
            if place.stat().st_size > MAX_JSON:
                raise failure(place, "file", f"have at most {MAX_JSON} bytes", place.stat().st_size)
            try:
                content = json.loads(place.read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                raise failure(place, "file", "be valid JSON", f"{error}") from error
            if not isinstance(content, dict):
                raise failure(place, "file", "be a JSON object", type(content).__name__)
            if file == ".zarray" or content.get("node_type") == "array":
                _inspect_array(place, content, max_bytes)


def _inspect_array(place: Path, content: dict[str, Any], max_bytes: int) -> None:
    codecs = json.dumps([content.get(k) for k in ("filters", "compressor", "codecs")])
    if "pickle" in codecs:
        raise failure(place, "codecs", "never unpickle", codecs[:80])
    descr = content.get("dtype", content.get("data_type"))
    if descr == "|O" and "vlen-utf8" not in codecs:
        raise failure(place, "dtype", "hold numbers or text, never Python objects", f"{descr!r}")
    shape = content.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise failure(place, "shape", "be a list of non-negative ints", f"{shape!r}")
    try:
        itemsize = int(np.dtype(descr).itemsize)
    except (TypeError, ValueError):  # Zarr 3 names some types, text among them, in words NumPy does not know
        itemsize = 8
    check_bytes(place, "shape", tuple(shape), itemsize, max_bytes)
    with os.scandir(place.parent) as entries:
        written = any(not entry.name.startswith(".z") and entry.name != "zarr.json" for entry in entries)
    # A text coordinate or a scalar may consist of its fill value; a series may not.
    if math.prod(shape) > 1 and not written:
        raise failure(place, "array", "have chunks", "none")


def _read(path: Path, name: str, key: str | None, dataset: Any, max_bytes: int) -> Series:
    time = _time_dimension(path, dataset)
    if key is not None and key not in dataset.data_vars:
        raise failure(path, key, "be a variable of the file", sorted(map(str, dataset.data_vars)))
    chosen = [v for v in ([key] if key else dataset.data_vars) if time in dataset[v].dims]
    if not chosen:
        raise failure(path, key or "file", f"have the dimension {time!r}", "no such variable")
    space = tuple(d for d in dataset[chosen[0]].dims if d != time)
    for label in chosen:
        if set(dataset[label].dims) != {time, *space}:
            raise failure(path, label, f"have the dimensions {(time, *space)} (or choose with key=)", dataset[label].dims)
        check_numbers(path, label, dataset[label].dtype)
    sizes = [int(dataset.sizes[d]) for d in space]
    shape = cube_shape(path, "variables", (int(dataset.sizes[time]), math.prod(sizes), len(chosen)))
    check_bytes(path, "variables", shape, 4, max_bytes)

    times: Array | None = None
    steps_per_day: int | None = None
    notes: list[str] = []
    if time in dataset.coords:
        stamps = dataset[time].values
        if stamps.dtype.kind == "M":
            times, steps_per_day, notes = check_times(path, time, stamps, shape[0])
        elif stamps.dtype.kind not in "fiu":
            raise failure(path, time, "hold times of the standard calendar", f"dtype {stamps.dtype}")
        elif not (np.diff(stamps) > 0).all():
            raise failure(path, time, "increase strictly", "a value that does not")
        else:
            notes = [f"{time}: numbers without a unit, so no timestamps"]

    values: Array = np.empty(shape, dtype=np.float32)
    rows = max(1, BLOCK // shape[1])
    for channel, label in enumerate(chosen):
        variable = dataset[label].transpose(time, *space)
        for row in range(0, shape[0], rows):
            block = np.asarray(variable[row : row + rows].values)
            part = values[row : row + rows, :, channel]
            fill_float32(path, str(label), part, block.reshape(part.shape), row)
    if left := [str(v) for v in dataset.data_vars if v not in chosen]:
        notes = [*notes, f"variables not read: {', '.join(left)}"]
    return Series(
        values,
        name,
        timestamps=times,
        node_ids=_node_ids(path, dataset, space, shape[1]),
        channels=tuple(map(str, chosen)),
        steps_per_day=steps_per_day,
        notes=tuple(notes),
    )


def _time_dimension(path: Path, dataset: Any) -> str:
    dims = [str(d) for d in dataset.dims]
    dated = [d for d in dims if d in dataset.coords and dataset[d].dtype.kind == "M"]
    named = [d for d in dims if d.lower() in TIME_NAMES]
    for found in (dated, named):
        if len(found) == 1:
            return found[0]
    raise failure(path, "dimensions", "have one of time", dims)


def _node_ids(path: Path, dataset: Any, space: tuple[Any, ...], num_nodes: int) -> tuple[str, ...] | None:
    """The coordinates of every place, joined by commas in the order of the dimensions."""
    if not space or any(d not in dataset.coords for d in space):
        return None
    axes = [[str(x) for x in dataset[d].values.tolist()] for d in space]
    return check_nodes(path, "coordinates", [",".join(place) for place in itertools.product(*axes)], num_nodes)
