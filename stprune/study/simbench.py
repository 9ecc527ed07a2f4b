"""The load profiles of SimBench, from the installed package's CSV file."""

from __future__ import annotations

import csv
import importlib.util
import pathlib

import numpy as np
from numpy.typing import NDArray

STEPS = 35_136  # quarter hours of the leap year 2016
NODES = 192
SOURCE = "SimBench (simbench.de), complete_data-mixed-all-0, LoadProfile.csv; Open Database License 1.0"
_FILE = pathlib.PurePath("networks", "1-complete_data-mixed-all-0-sw", "LoadProfile.csv")


def find_profiles() -> pathlib.Path:
    """Find the load profiles of the installed package `simbench`, which is not imported: its dependencies may be absent.

    Returns:
        Path of the CSV file.

    Raises:
        ModuleNotFoundError: the package is not installed, or does not hold the file.
    """
    spec = importlib.util.find_spec("simbench")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = pathlib.Path(folder) / _FILE
        if path.is_file():
            return path
    reason = "is not installed" if spec is None else f"holds no {_FILE}"
    raise ModuleNotFoundError(
        f"load: data must be there, got 'simbench', but the package simbench {reason}; "
        "install it with `pip install --no-deps simbench`, or choose demand or traffic",
        name="simbench",
    )


def read_profiles() -> tuple[NDArray[np.float32], NDArray[np.datetime64], tuple[str, ...]]:
    """Read the 192 load profiles of SimBench's complete grid, scenario 0: a year of real quarter hours.

    The columns are active (`_pload`) and reactive (`_qload`) power, each scaled by the profile's own maximum active
    power (p.u.); all of them are taken, in the file's order. Time stamps are local, so one spring night lacks an hour
    and one autumn night has it twice: the day's share is read from the stamps, not counted.

    Returns:
        Values [35136, 192] float32, time stamps [35136] datetime64, names of the columns.

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: the file does not hold 35,136 x 192 numbers with time stamps `dd.mm.yyyy HH:MM`.
    """
    path = find_profiles()
    with path.open(newline="", encoding="utf-8") as file:
        header = next(csv.reader(file, delimiter=";"))
    names = tuple(header[1:])
    profiles = [name for name in names if name.endswith(("_pload", "_qload"))]
    if header[0] != "time" or len(names) != NODES or len(profiles) != NODES:
        raise ValueError(
            f"{path.name}: columns must be time and {NODES} load profiles (_pload, _qload), got {len(header)} "
            f"columns with {len(profiles)} profiles"
        )
    columns = range(1, len(header))
    values = np.loadtxt(path, delimiter=";", skiprows=1, usecols=columns, dtype=np.float32)
    stamps = np.loadtxt(path, delimiter=";", skiprows=1, usecols=0, dtype=np.str_)
    if values.shape != (STEPS, NODES):
        raise ValueError(f"{path.name}: values must be {STEPS} x {NODES}, got {values.shape[0]} x {values.shape[1]}")
    return values, _parse_stamps(stamps, path.name), names


def _parse_stamps(stamps: NDArray[np.str_], name: str) -> NDArray[np.datetime64]:
    # "31.12.2016 23:45" -> "2016-12-31T23:45", without a Python loop over the steps.
    if stamps.dtype.itemsize != 16 * 4:
        raise ValueError(f"{name}: time stamps must be dd.mm.yyyy HH:MM, got {stamps[0]!r}")
    letters = stamps.view("U1").reshape(len(stamps), 16)
    iso = letters[:, [6, 7, 8, 9, 2, 3, 4, 5, 0, 1, 10, 11, 12, 13, 14, 15]].copy()
    iso[:, [4, 7]], iso[:, 10] = "-", "T"
    return iso.reshape(-1).view("U16").astype("datetime64[m]")
