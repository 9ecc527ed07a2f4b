"""Time stamps: parsing, order, the daylight-saving clock, and how many rows make a day."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from stprune.data.series import Array, failure

DAY, HOUR = 86_400_000_000, 3_600_000_000  # microseconds

_CLOCK = r"(?:[ T]+(?P<H>\d{1,2}):(?P<M>\d{2})(?::(?P<S>\d{2})(?P<F>\.\d{1,6})?\d*)?)?(?P<Z>Z|[+-]\d{2}:?\d{2})?"
_FORMATS = tuple(
    re.compile(date + _CLOCK + r"\s*")
    for date in (
        r"\s*(?P<y>\d{4})[-/](?P<m>\d{1,2})[-/](?P<d>\d{1,2})",
        r"\s*(?P<d>\d{1,2})\.(?P<m>\d{1,2})\.(?P<y>\d{4})",
        r"\s*(?P<m>\d{1,2})/(?P<d>\d{1,2})/(?P<y>\d{4})",
        r"\s*(?P<d>\d{1,2})/(?P<m>\d{1,2})/(?P<y>\d{4})",
    )
)


def looks_like_time(text: str) -> bool:
    """Whether a cell is a date in one of the known forms."""
    return any(form.fullmatch(text) for form in _FORMATS)


def parse_times(path: object, key: str, texts: Sequence[str], first_line: int) -> tuple[Array, list[str]]:
    """datetime64[us] of year-month-day, day.month.year, month/day/year or day/month/year with an optional clock.

    Month/day/year and day/month/year are told apart by the whole column: the reading that gives valid, increasing times
    wins, then the regular one. An offset from UTC is subtracted, so that the result is UTC.
    """
    readings: list[tuple[Array, bool]] = []
    for form in _FORMATS:
        parsed = _parse_all(form, texts)
        if parsed is not None:
            readings.append(parsed)
    if not readings:
        shapes = [form for form in _FORMATS if form.fullmatch(texts[0])]
        bad = next((i for i, text in enumerate(texts) if not any(form.fullmatch(text) for form in shapes)), 0)
        raise failure(path, key, "hold dates of one form", f"{texts[bad]!r} in line {first_line + bad}")
    rising = [reading for reading in readings if bool((np.diff(reading[0]) > np.timedelta64(0)).all())]
    regular = [reading for reading in rising if len(set(np.diff(reading[0]).tolist())) <= 1]
    best = regular or rising or readings
    if any(not np.array_equal(best[0][0], other[0]) for other in best[1:]):
        raise failure(path, key, "be either month/day/year or day/month/year", f"{texts[0]!r}, which reads as both")
    times, offset = best[0]
    return times, [f"{key}: offsets from UTC subtracted, times are UTC"] if offset else []


def _parse_all(form: re.Pattern[str], texts: Sequence[str]) -> tuple[Array, bool] | None:
    stamps, offsets, any_offset = [], [], False
    for text in texts:
        match = form.fullmatch(text)
        if match is None:
            return None
        part = match.groupdict()
        clock = f"{int(part['H'] or 0):02}:{part['M'] or '00'}:{part['S'] or '00'}{part['F'] or ''}"
        stamps.append(f"{part['y']}-{int(part['m']):02}-{int(part['d']):02}T{clock}")
        zone = part["Z"]
        any_offset |= zone is not None
        sign = -1 if zone and zone[0] == "-" else 1
        offsets.append(0 if zone in (None, "Z") else sign * (int(zone[1:3]) * 60 + int(zone[-2:])))
    try:
        times = np.array(stamps, dtype="datetime64[us]")
    except ValueError:
        return None  # the 31st of February, or a month 13: not this form
    return times - np.array(offsets, dtype="timedelta64[m]"), any_offset


def check_times(path: object, key: str, times: Array, num_times: int) -> tuple[Array, int | None, list[str]]:
    """(datetime64[us], steps per day or None, notes): one for each row, no NaT, strictly increasing.

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
    regular = steps.size > 0 and bool((steps == steps[0]).all())
    if steps.size and not regular:
        notes.append(f"{key}: {int((steps != np.median(steps)).sum())} irregular steps, so no steps_per_day")
    per_day = DAY // int(steps[0]) if regular and DAY % int(steps[0]) == 0 else None
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
