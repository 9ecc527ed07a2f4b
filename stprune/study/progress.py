"""How far a study is: what runs, what was found last, and about how long the rest will take."""

from __future__ import annotations

import datetime
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from stprune.study.results import Setting
from stprune.study.rows import Row
from stprune.study.spec import Spec


class State(NamedTuple):
    """Where a study stands.

    Attributes:
        done: finished runs, those of earlier calls included.
        total: all runs, as far as is known: a search may need more learning rates.
        running: runs under way.
        last: the run that has just finished, or None.
        seconds_left: about how long the rest will take; None where no run tells.
    """

    done: int
    total: int
    running: tuple[Spec, ...]
    last: Row | None
    seconds_left: float | None


class TimeLeft:
    """Estimates how long the open runs will take, from the finished ones of the same series, or else of all.

    A row has the time of training; what a run takes beside it (validations, reading the series) is known of this call's runs.

    Args:
        processes: runs side by side.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._begun: dict[Spec, float] = {}
        self._trained = self._whole = 0.0

    def began(self, spec: Spec) -> None:
        """A run begins now."""
        self._begun[spec] = time.monotonic()

    def finished(self, row: Row) -> None:
        """A run that began in this call has finished."""
        self._trained += row.seconds
        self._whole += time.monotonic() - self._begun[row.spec]

    def seconds(self, rows: Sequence[Row], left: Counter[str]) -> float | None:
        """Seconds of so many open runs of each series, or None where there are no rows."""
        if not rows:
            return None
        by_data: dict[str, list[float]] = {}
        for row in rows:
            by_data.setdefault(row.spec.data, []).append(row.seconds)
        everywhere = statistics.fmean(row.seconds for row in rows)
        means = {data: statistics.fmean(found) for data, found in by_data.items()}
        training = sum(count * means.get(data, everywhere) for data, count in left.items()) / self.processes
        return training * (self._whole / self._trained if self._trained else 1.0)


def describe(spec: Spec) -> str:
    """A run in a few words.

    Example:
        >>> describe(Spec("demand", "stid", "nodes-uniform", 64, 0.002, 3.0, num_drawn=28, seed=1))
        'nodes-uniform on demand, stid, batch 64, 28 nodes, rate 0.002, seed 1'
    """
    return f"{spec.family} on {spec.data}, {spec.model}, {Setting.of(spec)}, seed {spec.seed}"


class Bar:
    """A bar of runs on standard error. The first lines say at once what runs, and how many runs there are."""

    _bar: Any = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, state: State) -> None:
        """Show where the study stands."""
        from tqdm import tqdm

        if self._bar is None and state.running:
            left = state.total - state.done
            head = f"{left:,} runs to make, {state.done:,} made before, {len(state.running)} at a time. Now:"
            print(head, *map(describe, state.running), sep="\n  ", file=sys.stderr, flush=True)
            lines = sys.stderr.isatty()
            self._bar = tqdm(
                unit="run",
                initial=state.done,
                total=state.total,
                dynamic_ncols=lines,
                mininterval=0.2 if lines else 15.0,
                bar_format="{percentage:3.0f}% |{bar:20}| {n_fmt}/{total_fmt} runs [{elapsed}{postfix}]",
            )
        if self._bar is None:
            return
        self._bar.set_postfix_str(text_of(state), refresh=False)
        self._bar.total = state.total
        self._bar.update(state.done - self._bar.n)


def text_of(state: State) -> str:
    """The time left and the last run, in words; what runs now where nothing has finished."""
    left = state.seconds_left
    parts = [] if left is None else [f"about {datetime.timedelta(seconds=round(left))} left"]
    if state.last is not None:
        row = state.last
        parts.append(f"{describe(row.spec)}: val MAE {row.best_mae:.4g}, {row.seconds:.0f} s")
    return "; ".join(parts)
