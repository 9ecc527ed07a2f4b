"""netCDF, Zarr and GRIB by xarray: variables over time and space become channels, every place becomes a node."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from stprune.data.classic import check_length
from stprune.data.series import (
    Array,
    Series,
    as_float32,
    check_bytes,
    check_nodes,
    check_numbers,
    cube_shape,
    damaged,
    failure,
    read_json,
    require,
)
from stprune.data.times import read_times

TIME_NAMES = ("time", "valid_time", "datetime", "date", "t")


def read_netcdf(path: Path, name: str, key: str | None, max_bytes: int) -> Series:
    """A netCDF-3 or netCDF-4 file; the variable ``key``, or all variables over time."""
    netcdf, xarray = require("netCDF4", path), require("xarray", path)
    check_length(path)
    with damaged(path, "file", "be a complete netCDF file"):
        # xarray reads coordinates while it opens a file, so sizes are checked before.
        with netcdf.Dataset(path, "r") as file:
            for label, variable in file.variables.items():
                itemsize = getattr(variable.dtype, "itemsize", 1)
                check_bytes(path, label, tuple(variable.shape), itemsize, max_bytes)
        with xarray.open_dataset(path, engine="netcdf4", decode_timedelta=False) as dataset:
            return _read(path, name, key, dataset, max_bytes)


def read_grib(path: Path, name: str, key: str | None, max_bytes: int) -> Series:
    """A GRIB file of one grid; the variable ``key``, or all variables over time."""
    require("cfgrib", path, "grib")
    eccodes, xarray = require("eccodes", path, "grib"), require("xarray", path)
    # Without an index file: cfgrib pickles it. With errors="raise" no message is left out without a word.
    options = {"indexpath": "", "errors": "raise", "filter_by_keys": {"cfVarName": key} if key else {}}
    rule = "be a complete GRIB file of one grid (or name a variable with key=)"
    with damaged(path, "file", rule, eccodes.CodesInternalError):
        opened = xarray.open_dataset(path, engine="cfgrib", decode_timedelta=False, backend_kwargs=options)
        with opened as dataset:
            return _read(path, name, key, dataset, max_bytes)


def read_zarr(path: Path, name: str, key: str | None, max_bytes: int) -> Series:
    """A Zarr group on disk, format 2 or 3; the variable ``key``, or all variables over time."""
    require("zarr", path)
    xarray = require("xarray", path)
    for file in sorted(file for kind in (".zarray", "zarr.json") for file in path.rglob(kind)):
        content = read_json(file)
        if file.name == ".zarray" or content.get("node_type") == "array":
            _check_array(file, content, max_bytes)
    with damaged(path, "store", "be a complete Zarr group"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Only the metadata that was inspected is used, so consolidated copies are not.
            opened = xarray.open_zarr(path, consolidated=False, chunks=None, decode_timedelta=False)
        with opened as dataset:
            # A folder lists its arrays in any order; channels may not depend on it.
            return _read(path, name, key, dataset[sorted(dataset.data_vars, key=str)], max_bytes)


def _check_array(file: Path, content: dict[str, Any], max_bytes: int) -> None:
    """Refuses a pickled, oversized or never written array of a store, from its metadata alone."""
    codecs = json.dumps([content.get(k) for k in ("filters", "compressor", "codecs")])
    descr, shape = content.get("dtype", content.get("data_type")), content.get("shape")
    if "pickle" in codecs or (descr == "|O" and "vlen-utf8" not in codecs):
        raise failure(
            file, "array", "hold numbers or text, never Python objects (they are pickles)", f"{descr!r}, {codecs[:80]}"
        )
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise failure(file, "shape", "be a list of non-negative ints", f"{shape!r}")
    try:
        itemsize = int(np.dtype(descr).itemsize)
    except (TypeError, ValueError):  # Zarr 3 names some types, text among them, in words NumPy does not know
        itemsize = 8
    check_bytes(file, "shape", tuple(shape), itemsize, max_bytes)
    # A text coordinate or a scalar may consist of its fill value; a series may not.
    if math.prod(shape) > 1 and all(entry.name.startswith(".z") or entry == file for entry in file.parent.iterdir()):
        raise failure(file, "array", "have chunks", "none")


def _read(path: Path, name: str, key: str | None, dataset: Any, max_bytes: int) -> Series:
    if key is not None and key not in dataset.data_vars:
        raise failure(path, key, "be a variable of the file", sorted(map(str, dataset.data_vars)))
    time = _time_dimension(path, dataset)
    chosen = [v for v in ([key] if key else dataset.data_vars) if time in dataset[v].dims]
    if not chosen:
        raise failure(path, key or "file", f"have the dimension {time!r}", "no such variable")
    space = tuple(d for d in dataset[chosen[0]].dims if d != time)
    for label in chosen:
        if set(dataset[label].dims) != {time, *space}:
            raise failure(path, label, f"have the dimensions {(time, *space)} (or choose with key=)", dataset[label].dims)
        check_numbers(path, label, dataset[label].dtype)
    num_nodes = math.prod(int(dataset.sizes[d]) for d in space)
    shape = cube_shape(path, "variables", (int(dataset.sizes[time]), num_nodes, len(chosen)))
    check_bytes(path, "variables", shape, 4, max_bytes)

    times: Array | None = None
    steps_per_day: int | None = None
    notes: list[str] = []
    if time in dataset.coords:
        stamps = dataset[time].values
        if stamps.dtype.kind in "fiu" and not (np.diff(stamps) > 0).all():
            raise failure(path, time, "increase strictly", "a value that does not")
        times, steps_per_day, notes = read_times(path, time, stamps, shape[0])
    values: Array = np.empty(shape, dtype=np.float32)
    for channel, label in enumerate(chosen):
        stored = dataset[label].transpose(time, *space)
        as_float32(path, str(label), stored, (*shape[:2], 1), values[:, :, channel : channel + 1])
    if left := [str(v) for v in dataset.data_vars if v not in chosen]:
        notes = [*notes, f"variables not read: {', '.join(left)}"]
    channels, nodes = tuple(map(str, chosen)), _node_ids(path, dataset, space, num_nodes)
    return Series(values, name, None, times, nodes, channels, steps_per_day=steps_per_day, notes=tuple(notes))


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
