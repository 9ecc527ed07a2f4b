"""Progress bars: one for the whole, and in a terminal one for every run."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from tqdm import tqdm

from stprune.demo.options import DemoOptions
from stprune.demo.records import EpochRecord
from stprune.demo.runs import label


class Progress:
    """Bars with the share of the data in use, the time left and the validation MAE.

    In a terminal every run has a line of its own; in a log there is one line now and then. As the runs take turns, the
    time left on each line is that of the whole.

    Args:
        options: resolved options.
        seed: shown when there are several.
        planned: epochs of every run that exists at the start.
    """

    def __init__(self, options: DemoOptions, seed: int, planned: dict[str, int]) -> None:
        self._options = options
        self._lines = sys.stderr.isatty()
        title = "all runs" if options.seeds == 1 else f"seed {seed + 1}/{options.seeds}"
        self._total: Any = bar(title, sum(planned.values()), position=0)
        self._bars: dict[str, Any] = {}
        for name, epochs in planned.items():
            self._open(name, epochs)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for bar in (self._total, *self._bars.values()):
            bar.close()

    def add(self, name: str, epochs: int) -> None:
        """Make room for a run, if it is new."""
        if name not in self._bars:
            self._open(name, epochs)
            self._total.total += epochs

    def _open(self, name: str, epochs: int) -> None:
        text = label(name, keep_ratio=self._options.keep_ratio, node_ratio=self._options.node_ratio)
        self._bars[name] = bar(text, epochs, position=len(self._bars) + 1, hidden=not self._lines)

    def advance(self, name: str, record: EpochRecord) -> None:
        """One epoch of a run is done."""
        self._bars[name].set_postfix_str(
            f"keep {record.window_share:.0%} of windows, {record.pair_share:.0%} of pairs, val MAE {record.validation_mae:.4g}",
            refresh=False,
        )
        self._bars[name].update()
        if not self._lines:
            self._total.set_postfix_str(
                f"{name} epoch {record.epoch + 1}: keep {record.pair_share:.0%}, val MAE {record.validation_mae:.4g}",
                refresh=False,
            )
        self._total.update()


def bar(title: str, total: int, *, position: int = 0, hidden: bool = False) -> Any:
    """A bar with the time spent and left.

    Args:
        title: left of it.
        total: number of epochs.
        position: line of it, from the top.
        hidden: count silently.

    Returns:
        tqdm's bar, a context manager.
    """
    lines = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=f"{title:<28}",
        position=position,
        unit="epoch",
        disable=hidden,
        leave=True,
        # A log gets a line every quarter of a minute instead of ten a second.
        mininterval=0.2 if lines else 15.0,
        dynamic_ncols=lines,
        bar_format="{desc} {percentage:3.0f}% |{bar:20}| {n_fmt}/{total_fmt} [{elapsed} < {remaining}{postfix}]",
    )
