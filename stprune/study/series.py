"""The series of a study: SimBench's load profiles, generated ones, or files of the user's."""

from __future__ import annotations

import json
import math
import pathlib
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import stprune
from stprune.study import simbench
from stprune.study.calendars import Calendar, counted_calendar, read_calendar
from stprune.study.graph import Edges, FloatArray, IntArray
from stprune.study.keys import unknown
from stprune.study.traffic import demand, traffic

# Of every option: the type of its value, the least one, and where it must stay below.
_VALUES: dict[str, tuple[type, float, float]] = {
    **dict.fromkeys(("nodes", "days", "steps", "stride", "per_day"), (int, 1, math.inf)),
    "seed": (int, 0, math.inf),
    "r": (float, 0, 1),
    "incidents": (float, 0, 1),
    "null": (float, -math.inf, math.inf),
}
_OPTIONS = {
    "simbench": ("nodes", "steps", "stride", "null"),
    "demand": ("nodes", "days", "steps", "seed", "null"),
    "traffic": ("nodes", "days", "steps", "per_day", "r", "incidents", "seed", "null"),
    "path": ("nodes", "steps", "stride", "null", "per_day"),
}
_MINUTES = {"min": 1, "h": 60, "day": 1440}


@dataclass(frozen=True)
class Series:
    """A series with the calendar position of each of its steps.

    Attributes:
        name: short name for the report.
        values: [time, node] float32; NaN where missing.
        time_of_day: [time] float32 in [0, 1), share of the day gone by.
        day_of_week: [time] int64, 0 = Monday.
        steps_per_day: steps of a day; where the file has only a part of each day, the steps of that part.
        source: where the series comes from and its licence.
        node_names: one name per node.
        edges: its graph; None where not known.
        null_value: value that means "missing" besides NaN; None for none.
    """

    name: str
    values: FloatArray
    time_of_day: FloatArray
    day_of_week: IntArray
    steps_per_day: int
    source: str
    node_names: tuple[str, ...]
    edges: Edges | None = None
    null_value: float | None = None

    def thin(self, *, nodes: int | None = None, steps: int | None = None, stride: int = 1) -> Series:
        """A smaller series: every `stride`-th step, of these the first `steps`, and evenly spaced nodes; values are copied.

        Raises:
            ValueError: there are fewer nodes or steps, or `stride` does not divide the day.
        """
        if self.steps_per_day % stride:
            raise _refused("have a stride that divides its day", f"{stride} for {self.steps_per_day} steps per day")
        time = np.arange(0, len(self.values), stride)
        for what, wanted, there in (("nodes", nodes, len(self.node_names)), ("steps", steps, len(time))):
            if wanted is not None and wanted > there:
                raise _refused(f"ask for at most the {there} {what} there are", wanted)
        time = time[:steps]
        wanted = len(self.node_names) if nodes is None else nodes
        node = np.arange(wanted) * len(self.node_names) // wanted
        return replace(
            self,
            values=np.ascontiguousarray(self.values[np.ix_(time, node)]),
            time_of_day=self.time_of_day[time],
            day_of_week=self.day_of_week[time],
            steps_per_day=self.steps_per_day // stride,
            node_names=tuple(self.node_names[n] for n in node),
            edges=None if self.edges is None else self.edges.select(node),
        )


def load(data: str) -> Series:
    """Load a series by its name.

    A name is `simbench`, `demand`, `traffic` or a path, and may be followed by options: `NAME?key=value&key=value`.

    | name | what | options |
    | --- | --- | --- |
    | `simbench` | 192 load profiles, a year of quarter hours | nodes, steps, stride, null |
    | `demand` | generated demand, 64 nodes x 120 days of quarter hours | nodes, days, steps, seed, null |
    | `traffic` | generated roads, 900 nodes x 28 days, see `traffic` | nodes, days, steps, per_day, r, incidents, seed, null |
    | path | file or folder that `stprune.read_series` reads, channel 0 | nodes, steps, stride, null, per_day |

    `nodes=K`: so many nodes, evenly spaced in the file's order. `steps=K`: the first so many steps. `stride=K`: every K-th
    step, chosen before `steps`. `null=V`: V means "missing". `per_day=K`: steps of a day, where the file does not say it.

    Steps of a day come from `per_day`, the time stamps, or a `meta.json` in the folder (`"step": "10 min"`, `"1 h"`,
    `"10 min (108/day)"`, or `"what"` with opening hours such as `(05:00-23:00)`). Without time stamps the series is taken to
    start with a Monday, and to have no weekends where `"what"` says `weekdays`.

    Args:
        data: the name.

    Returns:
        The series; generated ones are the same for the same name.

    Raises:
        ModuleNotFoundError: "simbench" is asked for and not installed.
        FileNotFoundError: the path does not exist.
        ValueError: an option is unknown or its value cannot be, or the file is not what it must be.

    Example:
        >>> series = load("traffic?nodes=100&days=7&r=0.2")
        >>> series.name, series.values.shape, series.steps_per_day
        ('traffic, nodes=100, days=7, r=0.2', (672, 100), 96)
    """
    name, entries = split_name(data)
    options = _options(name if name in _OPTIONS else "path", entries)
    null = options.pop("null", None)
    if name == "simbench":
        values, stamps, names = simbench.read_profiles()
        series = _series(values, read_calendar(stamps), 96, simbench.SOURCE, names)
    elif name in GENERATED:
        series = GENERATED[name](options)
    else:
        series = load_path(pathlib.Path(name), steps_per_day=options.pop("per_day", None))
    series = series.thin(**options)
    return replace(series, name=label(data), null_value=null)


def split_name(data: str) -> tuple[str, list[tuple[str, str]]]:
    """What stands before the `?` of a series' name, and the keys and values behind it."""
    name, _, query = data.partition("?")
    found = (entry.partition("=") for entry in query.split("&") if query)
    return name, [(key, text) for key, _, text in found]


def label(data: str) -> str:
    """Short name of what `load` reads, for reports: without folders, and without options that only say how to read.

    Example:
        >>> label("simbench"), label("../data/MontevideoBus?nodes=300&per_day=24")
        ('simbench', 'MontevideoBus, nodes=300')
    """
    name, entries = split_name(data)
    shown = [f"{key}={text}" for key, text in entries if key not in ("null", "per_day")]
    return ", ".join([pathlib.PurePath(name).name, *shown])


def _refused(rule: str, got: object) -> ValueError:
    return ValueError(f"load: data must {rule}, got {got}")


def _options(kind: str, entries: list[tuple[str, str]]) -> dict[str, Any]:
    """The options of a name, as numbers."""
    options: dict[str, Any] = {}
    for key, text in entries:
        if key not in _OPTIONS[kind]:
            raise _refused("have known options", unknown(key, _OPTIONS[kind]))
        if key in options:
            raise _refused("have each option at most once", repr(f"{key}={text}"))
        kind_of_value, least, below = _VALUES[key]
        try:
            options[key] = kind_of_value(text)
        except ValueError:
            raise _refused(f"have {'a whole number' if kind_of_value is int else 'a number'} for {key}", repr(text)) from None
        if not (least <= options[key] < below and math.isfinite(options[key])):
            raise _refused(f"have {key} in [{least}, {below})", text)
    if "days" in options and "steps" in options:
        raise _refused("have days or steps, not both", repr("&".join(f"{key}={text}" for key, text in entries)))
    return options


def _series(
    values: FloatArray,
    calendar: Calendar,
    per_day: int,
    source: str,
    names: tuple[str, ...] | None = None,
    *,
    edges: Edges | None = None,
) -> Series:
    return Series(
        name="",
        values=values,
        time_of_day=calendar.time_of_day,
        day_of_week=calendar.day_of_week,
        steps_per_day=per_day,
        source=source,
        node_names=names or tuple(str(node) for node in range(values.shape[1])),
        edges=edges,
    )


def _demand(options: dict[str, Any]) -> Series:
    days = options.pop("days", math.ceil(options.get("steps", 120 * 96) / 96))
    seed = options.pop("seed", 0)
    values = demand(num_days=days, num_nodes=options.pop("nodes", 64), seed=seed)
    return _series(values, counted_calendar(len(values), 96), 96, f"generated demand, seed {seed}")


def _traffic(options: dict[str, Any]) -> Series:
    per_day, seed = options.pop("per_day", 96), options.pop("seed", 0)
    steps = options.pop("steps", per_day * options.pop("days", 28))
    nodes, r = options.pop("nodes", 900), options.pop("r", 0.1)
    incidents = options.pop("incidents", 0.01)
    found = traffic(num_nodes=nodes, num_steps=steps, steps_per_day=per_day, r=r, incidents=incidents, seed=seed)
    source = f"generated traffic, r {r:g}, {incidents:g} incidents a node and day, seed {seed}"
    return _series(found.values, counted_calendar(steps, per_day), per_day, source, edges=found.edges)


GENERATED = {"demand": _demand, "traffic": _traffic}
"""What makes the generated series, by their names."""


def load_path(path: pathlib.Path, *, steps_per_day: int | None = None) -> Series:
    """Read a file or folder with `stprune.read_series`; the first channel is forecast.

    Args:
        path: what `read_series` takes.
        steps_per_day: steps of a day; None takes the file's own.

    Returns:
        The series, nodes in the file's order; see `load` for its calendar.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the file is not what it must be, or neither it nor the caller says how many steps a day has.
    """
    if not path.exists():
        raise FileNotFoundError(f"load: data must be simbench, demand, traffic or an existing path, got {path}")
    found = stprune.read_series(path)
    meta = _read_meta(path / "meta.json")
    values = np.ascontiguousarray(found.values[:, :, 0], dtype=np.float32)
    per_day = steps_per_day or found.steps_per_day or _steps_per_day(meta)
    if per_day is None:
        raise _refused("say its steps per day, as in PATH?per_day=96", f"{path.name}, whose files do not")
    if found.timestamps is None:
        days = 5 if "weekdays" in str(meta.get("what")) else 7
        calendar = counted_calendar(len(values), per_day, days_per_week=days)
    else:
        calendar = read_calendar(found.timestamps)
    source = f"{meta['source']}; licence: {meta.get('licence', 'not stated')}" if "source" in meta else f"read from {path.name}"
    edges = None if found.adjacency is None else Edges.of(found.adjacency)
    return _series(values, calendar, per_day, source, found.node_ids, edges=edges)


def _read_meta(path: pathlib.Path) -> dict[str, Any]:
    """What a folder says of its series; empty where it says nothing."""
    if not path.is_file():
        return {}
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _refused("have a meta.json of JSON text", f"{path} ({error})") from None
    return meta if isinstance(meta, dict) else {}


def _steps_per_day(meta: dict[str, Any]) -> int | None:
    step, what = str(meta.get("step", "")), str(meta.get("what", ""))
    if stated := re.search(r"\((\d+)/day\)", step):
        return int(stated[1]) or None
    length = re.match(r"(\d+) ?(min|h|day)\b", step)
    if length is None or not int(length[1]):
        return None
    opened = re.search(r"\((\d\d):(\d\d)-(\d\d):(\d\d)\)", what)
    hours = [int(number) for number in opened.groups()] if opened else [0, 0, 24, 0]
    minutes = 60 * (hours[2] - hours[0]) + hours[3] - hours[1]
    steps, rest = divmod(minutes, int(length[1]) * _MINUTES[length[2]])
    return steps if steps > 0 and not rest else None
