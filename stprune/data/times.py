"""Time stamps: parsing, order, the daylight-saving clock, and how many rows make a day."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from stprune.data.series import Array, as_text, failure, require

DAY, HOUR = 86_400_000_000, 3_600_000_000  # microseconds

_DATE = re.compile(r"\s*(\d{4}[-/]\d{1,2}[-/]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4})(?!\d).*")
_PARTS = r"^\s*(\d+)([-/.])(\d+)\2(\d+)[ T]*(.*?)\s*$"
# The places of year, month and day among the parts.
_YEAR_FIRST, _DAY_FIRST, _MONTH_FIRST = (0, 2, 3), (3, 2, 0), (3, 0, 2)


def looks_like_time(text: str) -> bool:
    """Whether a cell begins with a date in one of the known forms."""
    return _DATE.fullmatch(text) is not None


def parse_times(path: object, key: str, texts: Sequence[str], word: str = "row", first: int = 0) -> tuple[Array, list[str]]:
    """(datetime64[us], notes) of year-month-day, day.month.year, month/day/year or day/month/year with an optional clock.

    Month/day/year and day/month/year are told apart by the whole column: the reading that gives valid, increasing times
    wins, then the regular one. An offset from UTC is subtracted, so that the result is UTC. Errors count in ``word``
    (row, line) from ``first``.
    """
    pandas = require("pandas", path)
    parts = pandas.Series(list(texts), dtype=object).str.extract(_PARTS)
    year_first, mark, clock = parts[0].str.len() == 4, parts[1], parts[4]
    alike = (mark == mark[0]) & (year_first == year_first[0])
    orders = (_YEAR_FIRST,) if year_first[0] else (_DAY_FIRST,) if mark[0] == "." else (_MONTH_FIRST, _DAY_FIRST)
    readings: list[Array] = []
    for year, month, day in orders:
        iso = (parts[year] + "-" + parts[month] + "-" + parts[day] + " " + clock).str.strip()
        known = iso.where(alike & (parts[year].str.len() == 4))
        times = pandas.to_datetime(known, format="ISO8601", utc=True, errors="coerce")
        readings.append(times.dt.tz_convert(None).to_numpy().astype("datetime64[us]"))
    valid = [times for times in readings if not np.isnat(times).any()]
    if not valid:
        bad = max(int(np.isnat(times).argmax()) for times in readings)
        raise failure(path, key, "hold dates of one form", f"{texts[bad]!r} in {word} {first + bad}")
    rising = [times for times in valid if bool((np.diff(times) > np.timedelta64(0)).all())]
    regular = [times for times in rising if len(np.unique(np.diff(times))) <= 1]
    best = regular or rising or valid
    if any(not np.array_equal(best[0], other) for other in best[1:]):
        raise failure(path, key, "be either month/day/year or day/month/year", f"{texts[0]!r}, which reads as both")
    offset = clock.str.contains(r"(?:Z|[+-]\d\d:?\d\d)$").any()
    return best[0], [f"{key}: offsets from UTC subtracted, times are UTC"] if offset else []


def read_times(path: object, key: str, stamps: Array, num_times: int) -> tuple[Array | None, int | None, list[str]]:
    """`check_times` of datetime64 of any unit or of text; (None, None, note) of bare numbers, which say no unit."""
    notes: list[str] = []
    if stamps.dtype.kind in "fiu":
        return None, None, [f"{key}: numbers without a unit, so no timestamps (store datetime64 or text)"]
    if stamps.dtype.kind in "SU":
        stamps, notes = parse_times(path, key, as_text(stamps))
    elif stamps.dtype.kind != "M":
        raise failure(path, key, "hold datetime64 or text such as 2024-01-31T08:00", f"dtype {stamps.dtype}")
    times, steps_per_day, more = check_times(path, key, stamps, num_times)
    return times, steps_per_day, notes + more


def check_times(path: object, key: str, times: Array, num_times: int) -> tuple[Array, int | None, list[str]]:
    """(datetime64[us], steps per day or None, notes): one for each row, no NaT, strictly increasing.

    The step is the most frequent one, so a gap leaves steps per day as they are; where fewer than half of the steps are
    equal, there is none.

    A regular series on a daylight-saving wall clock skips an hour in spring and repeats one in autumn. It is recognised
    exactly (a jump of one hour on a Sunday, taken back by the next jump, every other step equal) and moved to standard
    time; any other repeated or descending time is refused.
    """
    if times.shape != (num_times,):
        raise failure(path, key, f"be one time for each of {num_times} rows", f"shape {times.shape}")
    stamps = times.astype("datetime64[us]")
    missing = np.isnat(stamps)
    if missing.any():
        raise failure(path, key, "not be missing", f"no time in row {int(np.argmax(missing))}")
    ticks = stamps.astype(np.int64)
    notes: list[str] = []
    steps = np.diff(ticks)
    if (steps <= 0).any():
        standard = _standard_time(ticks)
        if standard is None:
            row = int(np.argmax(steps <= 0)) + 1
            raise failure(path, key, "increase strictly", f"{stamps[row]} in row {row} after {stamps[row - 1]}")
        ticks, steps = standard, np.diff(standard)
        stamps = ticks.astype("datetime64[us]")
        notes.append(f"{key}: daylight-saving wall clock moved to standard time")
    per_day = None
    if steps.size:
        sizes, counts = np.unique(steps, return_counts=True)
        usual, often = int(sizes[counts.argmax()]), int(counts.max())
        if 2 * often < steps.size:
            notes.append(f"{key}: fewer than half of the {steps.size} steps are equal, so no steps_per_day")
        else:
            per_day = DAY // usual if DAY % usual == 0 else None
            if often < steps.size:
                step = np.timedelta64(usual, "us").item()
                notes.append(f"{key}: {steps.size - often} of {steps.size} steps are not the usual {step}")
    return stamps, per_day, notes


def _standard_time(ticks: Array) -> Array | None:
    """The ticks of a regular daylight-saving wall clock in standard time, or None if they are anything else."""
    steps = np.diff(ticks)
    step = int(np.median(steps))
    extra = steps - step
    jumps = np.flatnonzero(extra)
    if step <= 0 or not np.isin(extra[jumps], (-HOUR, HOUR)).all():
        return None
    if (extra[jumps][1:] == extra[jumps][:-1]).any():
        return None
    # 1970-01-01 was a Thursday, so Sundays are the days 3 modulo 7.
    if (ticks[jumps] // DAY % 7 != 3).any():
        return None
    # The first jump says in which half of the year the series begins: back means that it begins in summer time.
    summer = np.concatenate([[0], np.cumsum(extra)]) + (HOUR if extra[jumps[0]] < 0 else 0)
    standard: Array = ticks - summer
    return standard
