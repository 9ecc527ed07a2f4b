"""Time of day and day of week of every step of a series."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Calendar(NamedTuple):
    """Calendar position of every step.

    Attributes:
        time_of_day: [time] float32 in [0, 1), share of the day gone by.
        day_of_week: [time] int64, 0 = Monday.
    """

    time_of_day: NDArray[np.float32]
    day_of_week: NDArray[np.int64]


def read_calendar(stamps: NDArray[np.datetime64]) -> Calendar:
    """Split time stamps, [time] datetime64, into the share of the day gone by and the day of the week."""
    days = stamps.astype("datetime64[D]")
    seconds = (stamps.astype("datetime64[s]") - days).astype(np.int64)
    # 1970-01-01 was a Thursday.
    return Calendar((seconds / 86_400).astype(np.float32), (days.astype(np.int64) + 3) % 7)


def counted_calendar(num_steps: int, steps_per_day: int, *, days_per_week: int = 7) -> Calendar:
    """The calendar of a series without time stamps: it starts with the first step of a Monday.

    Args:
        num_steps: steps of the series.
        steps_per_day: steps that the series has of every day.
        days_per_week: 7, or 5 where the series has no weekends.
    """
    step = np.arange(num_steps)
    time_of_day = (step % steps_per_day / steps_per_day).astype(np.float32)
    return Calendar(time_of_day, step // steps_per_day % days_per_week)
