"""The demo's series: SimBench load profiles, a synthetic one, or a file of the user's."""

from __future__ import annotations

import csv
import datetime
import importlib.util
import pathlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

import stprune

SIMBENCH_STEPS = 35_136  # quarter hours of the leap year 2016
SIMBENCH_NODES = 192
_SIMBENCH_FILE = pathlib.PurePath("networks", "1-complete_data-mixed-all-0-sw", "LoadProfile.csv")
_SIMBENCH_HELP = "install it with `pip install --no-deps simbench`, or use `--data synthetic`"

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Series:
    """A series with the calendar position of each of its steps.

    Attributes:
        name: short name for the report.
        values: [time, node] float32, in `unit`; NaN where missing.
        time_of_day: [time] float32 in [0, 1), share of the day gone by.
        day_of_week: [time] int64, 0 = Monday.
        steps_per_day: steps in 24 hours.
        first_day: date of the first step, None when not known.
        unit: unit of the values, empty when not known.
        source: where the series comes from and its licence.
        node_names: one name per node.
        adjacency: [node, node] float32, not negative: weights of edges; None where not known.
        null_value: value that means "missing" besides NaN; None for none.
    """

    name: str
    values: FloatArray
    time_of_day: FloatArray
    day_of_week: NDArray[np.int64]
    steps_per_day: int
    first_day: datetime.date | None
    unit: str
    source: str
    node_names: tuple[str, ...]
    adjacency: FloatArray | None = None
    null_value: float | None = None

    def cut(self, num_steps: int, num_nodes: int) -> Series:
        """Keep the first steps and nodes, for a quick run; values are copied."""
        return replace(
            self,
            values=np.ascontiguousarray(self.values[:num_steps, :num_nodes]),
            time_of_day=self.time_of_day[:num_steps],
            day_of_week=self.day_of_week[:num_steps],
            node_names=self.node_names[:num_nodes],
        )


def load(data: str, *, seed: int = 0, steps_per_day: int | None = None) -> Series:
    """Load the series named on the command line.

    Args:
        data: "simbench", "synthetic" or the path of a file or folder that `stprune.read_series` reads.
        seed: of the synthetic series.
        steps_per_day: of a series read from a path; None infers it from the file's time stamps.

    Returns:
        The series; node order is the file's.

    Raises:
        ModuleNotFoundError: "simbench" is asked for and not installed.
        FileNotFoundError: the path does not exist.
        ValueError: the file is not what it must be.
    """
    if data == "simbench":
        return load_simbench()
    if data == "synthetic":
        return synthetic(seed=seed)
    if not pathlib.Path(data).exists():
        raise FileNotFoundError(f"--data: must be simbench, synthetic or an existing path, got {data}")
    return load_path(pathlib.Path(data), steps_per_day=steps_per_day)


def simbench_file() -> pathlib.Path:
    """Find the load profiles of the installed package `simbench`, which is not imported: its dependencies may be absent.

    Returns:
        Path of the CSV file.

    Raises:
        ModuleNotFoundError: the package is not installed, or does not hold the file.
    """
    spec = importlib.util.find_spec("simbench")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = pathlib.Path(folder) / _SIMBENCH_FILE
        if path.is_file():
            return path
    reason = "is not installed" if spec is None else f"holds no {_SIMBENCH_FILE}"
    raise ModuleNotFoundError(f"--data simbench: the package simbench {reason}; {_SIMBENCH_HELP}", name="simbench")


def load_simbench(path: pathlib.Path | None = None) -> Series:
    """Read the 192 load profiles of SimBench's complete grid, scenario 0: a year of real quarter hours.

    The columns are active (`_pload`) and reactive (`_qload`) power, each scaled by the profile's own maximum active
    power (p.u.); all of them are taken, in the file's order. Time stamps are local, so one spring night lacks an hour
    and one autumn night has it twice: the day's share is read from the stamps, not counted.

    Args:
        path: the CSV file; None finds it in the installed package.

    Returns:
        Series of 35,136 steps x 192 nodes.

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: the file does not hold 35,136 x 192 numbers with time stamps `dd.mm.yyyy HH:MM`.
    """
    path = simbench_file() if path is None else path
    with path.open(newline="", encoding="utf-8") as file:
        header = next(csv.reader(file, delimiter=";"))
    names = tuple(header[1:])
    profiles = [name for name in names if name.endswith(("_pload", "_qload"))]
    if header[0] != "time" or len(names) != SIMBENCH_NODES or len(profiles) != SIMBENCH_NODES:
        raise ValueError(
            f"{path.name}: columns must be time and {SIMBENCH_NODES} load profiles (_pload, _qload), got {len(header)} "
            f"columns with {len(profiles)} profiles"
        )
    columns = range(1, len(header))
    values = np.loadtxt(path, delimiter=";", skiprows=1, usecols=columns, dtype=np.float32)
    stamps = np.loadtxt(path, delimiter=";", skiprows=1, usecols=0, dtype=np.str_)
    if values.shape != (SIMBENCH_STEPS, SIMBENCH_NODES):
        raise ValueError(
            f"{path.name}: values must be {SIMBENCH_STEPS} x {SIMBENCH_NODES}, got {values.shape[0]} x {values.shape[1]}"
        )
    times = _parse_stamps(stamps, path.name)
    time_of_day, day_of_week = calendar(times)
    return Series(
        name="SimBench load profiles",
        values=values,
        time_of_day=time_of_day,
        day_of_week=day_of_week,
        steps_per_day=96,
        first_day=times[0].astype("datetime64[D]").item(),
        unit="p.u.",
        source="SimBench (simbench.de), complete_data-mixed-all-0, LoadProfile.csv; Open Database License 1.0",
        node_names=names,
    )


def load_path(path: pathlib.Path, *, steps_per_day: int | None = None) -> Series:
    """Read a file or folder with `stprune.read_series`; the first channel is forecast.

    Args:
        path: what `read_series` takes.
        steps_per_day: steps in 24 hours; None takes the file's own.

    Returns:
        The series. Without time stamps in the file it is taken to start at midnight of a Monday, which only shifts the
        names of the hours.

    Raises:
        ValueError: the file is not what it must be, or neither it nor the caller says how many steps a day has.
    """
    found = stprune.read_series(path)
    values = np.ascontiguousarray(found.values[:, :, 0], dtype=np.float32)
    per_day = steps_per_day or found.steps_per_day
    if per_day is None:
        raise ValueError(f"--steps-per-day: must be given for {path.name}, whose times do not say it, got None")
    first_day = None
    if found.timestamps is None:
        time_of_day, day_of_week = counted_calendar(len(values), per_day)
    else:
        time_of_day, day_of_week = calendar(found.timestamps)
        first_day = found.timestamps[0].astype("datetime64[D]").item()
    names = found.node_ids or tuple(str(node) for node in range(values.shape[1]))
    return Series(
        name=found.name,
        values=values,
        time_of_day=time_of_day,
        day_of_week=day_of_week,
        steps_per_day=per_day,
        first_day=first_day,
        unit="",
        source=f"read from {path.name}",
        node_names=names,
    )


def _parse_stamps(stamps: NDArray[np.str_], name: str) -> NDArray[np.datetime64]:
    # "31.12.2016 23:45" -> "2016-12-31T23:45", without a Python loop over the steps.
    if stamps.dtype.itemsize != 16 * 4:
        raise ValueError(f"{name}: time stamps must be dd.mm.yyyy HH:MM, got {stamps[0]!r}")
    letters = stamps.view("U1").reshape(len(stamps), 16)
    iso = letters[:, [6, 7, 8, 9, 2, 3, 4, 5, 0, 1, 10, 11, 12, 13, 14, 15]].copy()
    iso[:, [4, 7]], iso[:, 10] = "-", "T"
    return iso.reshape(-1).view("U16").astype("datetime64[m]")


def calendar(stamps: NDArray[np.datetime64]) -> tuple[FloatArray, NDArray[np.int64]]:
    """Split time stamps into the share of the day gone by and the day of the week.

    Args:
        stamps: [time] datetime64.

    Returns:
        time_of_day [time] float32 in [0, 1) and day_of_week [time] int64, 0 = Monday.
    """
    days = stamps.astype("datetime64[D]")
    seconds = (stamps.astype("datetime64[s]") - days).astype(np.int64)
    time_of_day = (seconds / 86_400).astype(np.float32)
    # 1970-01-01 was a Thursday.
    return time_of_day, (days.astype(np.int64) + 3) % 7


def counted_calendar(num_steps: int, steps_per_day: int) -> tuple[FloatArray, NDArray[np.int64]]:
    """The calendar of a series without time stamps: it starts at midnight of a Monday.

    Args:
        num_steps: steps of the series.
        steps_per_day: steps in 24 hours.

    Returns:
        time_of_day [time] float32 in [0, 1) and day_of_week [time] int64, 0 = Monday.
    """
    step = np.arange(num_steps)
    time_of_day = (step % steps_per_day / steps_per_day).astype(np.float32)
    return time_of_day, step // steps_per_day % 7


def repeated_nodes(values: FloatArray) -> tuple[int, int]:
    """Count nodes that hold nothing new, since they make node pruning look better than it is.

    Args:
        values: [time, node] float32; NaN counts as the node's mean. At most 8,192 evenly spaced steps are looked at.

    Returns:
        How many nodes are constant, and how many others are an earlier node up to scale and offset (correlation above
        0.9999 in size).
    """
    some = values[:: -(-len(values) // 8192)].astype(np.float64)
    seen = np.isfinite(some)
    mean = np.where(seen, some, 0.0).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
    some = np.where(seen, some - mean, 0.0)
    spread = np.sqrt(np.square(some).mean(axis=0))
    # Rounding leaves a constant node a spread of about 1e-8 of its level.
    constant = spread <= 1e-6 * np.abs(mean)
    some = some[:, ~constant] / spread[~constant]
    correlation = some.T @ some / len(some)
    copies = (np.abs(np.tril(correlation, -1)) > 0.9999).any(axis=1)
    return int(constant.sum()), int(copies.sum())


def synthetic(*, num_days: int = 120, num_nodes: int = 64, seed: int = 0) -> Series:
    """Generate a demand-like series: daily and weekly shapes, heterogeneous nodes, weather and noise.

    Args:
        num_days: days of 96 quarter hours.
        num_nodes: nodes.
        seed: the same seed gives the same series; no global random state is used.

    Returns:
        Series in arbitrary units.
    """
    rng = np.random.default_rng([seed, num_days, num_nodes])
    steps = num_days * 96
    time_of_day, day_of_week = counted_calendar(steps, 96)
    clock = 2 * np.pi * time_of_day[:, None]
    scale = rng.lognormal(0.0, 0.6, num_nodes)
    phase = rng.normal(0.0, 0.6, num_nodes)
    evening = rng.uniform(0.0, 0.8, num_nodes)
    weekend = np.where(day_of_week[:, None] >= 5, rng.uniform(0.4, 1.2, num_nodes), 1.0)
    shape = 1.5 - np.cos(clock + phase) + evening * np.sin(2 * clock + phase)
    # Weather: one slow random walk that pulls every node, each with its own sensitivity.
    shock = rng.normal(0.0, 1.0, steps)
    weather = np.empty(steps)
    level = 0.0
    for step in range(steps):
        level = 0.995 * level + 0.1 * shock[step]
        weather[step] = level
    share = rng.normal(0.0, 0.3, num_nodes)
    noise = rng.normal(0.0, 1.0, (steps, num_nodes)) * rng.uniform(0.02, 0.3, num_nodes)
    values = scale * (weekend * shape + share * weather[:, None] + noise)
    return Series(
        name="synthetic",
        values=values.astype(np.float32),
        time_of_day=time_of_day,
        day_of_week=day_of_week,
        steps_per_day=96,
        first_day=None,
        unit="",
        source=f"generated, seed {seed}",
        node_names=tuple(f"node {i}" for i in range(num_nodes)),
    )
