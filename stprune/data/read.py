"""The one door to every file format: what a path is, and which reader takes it."""

from __future__ import annotations

import os
from pathlib import Path

from stprune.data.arrays import read_npy, read_npz
from stprune.data.basicts import read_basicts_0, read_basicts_1
from stprune.data.gridded import read_grib, read_netcdf, read_zarr
from stprune.data.hdf import read_hdf, read_years, year_files
from stprune.data.series import Series, failure
from stprune.data.text import read_csv

# The largest published set, LargeST over five years at 5 minutes, is 18 GB of float32.
MAX_BYTES = 64 * 2**30

_MAGIC = (
    ("npz", (b"PK\x03\x04", b"PK\x05\x06")),
    ("npy", (b"\x93NUMPY",)),
    ("hdf", (b"\x89HDF\r\n\x1a\n",)),
    ("netcdf", (b"CDF\x01", b"CDF\x02", b"CDF\x05")),
    ("grib", (b"GRIB",)),
)
_SUFFIXES = {
    ".npz": "npz",
    ".npy": "npy",
    ".h5": "hdf",
    ".hdf5": "hdf",
    ".hdf": "hdf",
    ".nc": "netcdf",
    ".nc4": "netcdf",
    ".cdf": "netcdf",
    ".grib": "grib",
    ".grib2": "grib",
    ".grb": "grib",
    ".grb2": "grib",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
}
_PICKLES = {".pkl", ".pickle", ".pt", ".pth", ".joblib"}
_FOLDERS = (
    ("zarr", {".zgroup", ".zarray", "zarr.json"}),
    ("BasicTS 0.x", {"desc.json", "data.dat"}),
    ("BasicTS 1.x", {"train_data.npy", "val_data.npy", "test_data.npy"}),
)
_GRIDDED = {"netcdf": read_netcdf, "zarr": read_zarr, "grib": read_grib}
_WITH_KEY = ("npz", "hdf", *_GRIDDED)
_FORMATS = ".npz, .npy, .h5, .nc, .grib, .csv, .tsv, .txt, or a Zarr, BasicTS or LargeST folder"


def read_series(
    path: str | os.PathLike[str],
    *,
    key: str | None = None,
    header: bool = True,
    max_bytes: int = MAX_BYTES,
) -> Series:
    """Reads a spatio-temporal series from a file or folder in one of the field's formats.

    | format | what is read |
    | --- | --- |
    | PEMS ``.npz`` | ``data``, or the only array, or ``key``; ``adj``, ``time``, ``names`` where present |
    | ``.npy`` | [time], [time, node] or [time, node, channel] |
    | METR-LA, PEMS-BAY, LargeST ``.h5`` | pandas frames in the fixed layout, or a plain data set |
    | LargeST folder | ``*_his_<year>.h5`` joined in time; ``his.npz``, de-normalised |
    | BasicTS 0.x folder | ``data.dat`` with the shape in ``desc.json`` |
    | BasicTS 1.x folder | ``train_data.npy``, ``val_data.npy``, ``test_data.npy``, ``*_timestamps.npy``, ``meta.json`` |
    | ``.csv``, ``.tsv``, ``.txt`` | header of node names, optional first column of times; comma, semicolon or tab |
    | netCDF, Zarr, GRIB | places become nodes, variables channels: in the file's order (netCDF), by name (Zarr) |
    | folder with ``data.npz`` | that file |

    The format follows from the suffix and must agree with the content. Nothing is ever unpickled: object arrays, pickled
    attributes and ``.pkl`` files are refused or left out with a note. What a file declares is compared with what it holds
    and with ``max_bytes`` before memory is taken. NaN is kept as missing. Times are datetime64 of any unit or text
    (ISO, day.month.year, month/day/year); gaps between them stay, repeated and descending times are refused.
    ``pip install stprune[data]`` brings what text, HDF5, netCDF and Zarr need, ``stprune[data,grib]`` also GRIB's reader;
    ``.npz``, ``.npy`` and BasicTS need NumPy alone.

    Args:
        path: File or folder.
        key: Array, frame or variable to read where a file has several (npz, HDF5, netCDF, Zarr, GRIB).
        header: Whether the first line of a text file names the nodes.
        max_bytes: Largest array that may be made, in bytes, as it is stored and as float32. Arrays of .npz files are read
            whole before they are converted; all others block by block.

    Returns:
        `Series` with float32 values in the file's unit and order.

    Raises:
        TypeError: ``path`` is no str or os.PathLike, ``key`` no str, ``max_bytes`` no int.
        FileNotFoundError: Nothing is at ``path``.
        ValueError: ``key`` or ``header`` is given for a format that has no such choice; the file is damaged, of an unknown
            format, empty, too large, pickled, not numeric, infinite, or inconsistent (shapes, channels, times that do not
            increase, repeated names); the message names file, key, rule and value.
        RuntimeError: The format's library is not installed.

    Example:
        >>> import pathlib, tempfile
        >>> from stprune.data import read_series
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "speed.csv")
        ...     _ = file.write_text("time,a,b\\n2024-01-01 00:00,1,2\\n2024-01-01 00:15,,4\\n")
        ...     series = read_series(file)
        >>> series, series.node_ids, series.steps_per_day
        (Series('speed', 2 times x 2 nodes x 1 channels), ('a', 'b'), 96)

    Source:
        The layouts are those the named projects publish.
    """
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise TypeError(f"read_series: path must be a str or os.PathLike, got {type(path).__name__}")
    if key is not None and not isinstance(key, str):
        raise TypeError(f"read_series: key must be a str, got {type(key).__name__}")
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int):
        raise TypeError(f"read_series: max_bytes must be an int, got {type(max_bytes).__name__}")
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(f"read_series: path must exist, got {place}")
    # PEMS08/data.npz and sd/2019/his.npz are named by their folder, era5.zarr by what comes before the suffix.
    folder = place.resolve() if place.is_dir() else place.resolve().parent
    name = folder.name.removesuffix(".zarr") if place.is_dir() or place.stem in ("data", "his") else place.stem
    form, place = _folder_form(place) if place.is_dir() else (_file_form(place), place)
    for argument, given, forms in (("key", key is not None, _WITH_KEY), ("header", not header, ("csv",))):
        if given and form not in forms:
            raise ValueError(f"read_series: {place}: {argument} must be left out, as {form} has no such choice, got one")
    if form == "npz":
        return read_npz(place, name, key, max_bytes)
    if form == "npy":
        return Series(read_npy(place, max_bytes), name)
    if form == "hdf":
        return read_hdf(place, name, key, max_bytes)
    if form in _GRIDDED:
        return _GRIDDED[form](place, name, key, max_bytes)
    if form == "csv":
        return read_csv(place, name, header, max_bytes)
    if form == "LargeST":
        return read_years(place, name, max_bytes)
    return read_basicts_0(place, max_bytes) if form == "BasicTS 0.x" else read_basicts_1(place, max_bytes)


def _file_form(path: Path) -> str:
    """The format by the suffix, checked against the first bytes."""
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        raise failure(path, "file", f"be one of {_FORMATS}", f"{suffix}, a pickle, which is never read")
    with path.open("rb") as file:
        start = file.read(8)
    if not start:
        raise failure(path, "file", "not be empty", "0 bytes")
    content = next((form for form, magic in _MAGIC if start.startswith(magic)), None)
    declared = _SUFFIXES.get(suffix, content)
    if declared is None:
        raise failure(path, "file", f"be one of {_FORMATS}", f"suffix {suffix!r}, first bytes {start!r}")
    # netCDF-4 files are HDF5 files.
    if declared != (content or "csv") and (declared, content) != ("netcdf", "hdf"):
        raise failure(path, "file", f"begin as its suffix {suffix!r} says", f"first bytes {start!r}")
    return declared


def _folder_form(folder: Path) -> tuple[str, Path]:
    """The format by the names in the folder, and the folder or the one file in it that is the series."""
    names = sorted(entry.name for entry in folder.iterdir())
    for form, marks in _FOLDERS:
        if marks & set(names):
            return form, folder
    for file in ("data.npz", "his.npz"):
        if file in names:
            return _file_form(folder / file), folder / file
    if year_files(folder):
        return "LargeST", folder
    pickles = any(Path(n).suffix in _PICKLES for n in names)
    got = "pickles, which are never read" if pickles else names[:10]
    raise failure(folder, "folder", f"hold one of {_FORMATS}", got)
