"""What is to be reached on a GPU, and what the committed rows say of it: the tables of the READMEs."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass

import records

OURS = ("stprune, out=", "stprune")
EAGER = ("field's eager masked MAE",)
COMPILED = ("torch.compile of eq. 1-4", "torch.compile, cooperative reductions")
WORKERS = ("DataLoader, 2 workers", "DataLoader, 8 workers")
NOT_YET = "not measured yet"
HEAD = ("| on a GPU | measured | target |", "| --- | ---: | ---: |")


@dataclass(frozen=True)
class Target:
    """One thing to be reached.

    Attributes:
        what: in words.
        suite, job, size: of the rows.
        least: at least this; None where there is a most.
        most: at most this.
        rivals: whose fastest is told as a multiple of our time, or for a `most` ours as a multiple of its time; empty: `field`.
        field: of our row, where there are no rivals.
        ours: our contenders, the one to take first.
        short: it stands in the README of the project, too.
    """

    what: str
    suite: str
    job: str
    size: int | None = None
    least: float | None = None
    most: float | None = None
    rivals: tuple[str, ...] = ()
    field: str = "passes"
    ours: tuple[str, ...] = OURS
    short: bool = False

    @property
    def bound(self) -> str:
        """The target as the table has it."""
        return f"at least {self.least:g}x" if self.least is not None else f"at most {self.most:g}{self.unit}"

    @property
    def unit(self) -> str:
        """Of the value."""
        return "x" if self.rivals else " ms" if self.field == "median_ms" else " reads"

    def measured(self, rows: list[records.Row]) -> str:
        """What the rows of a card say."""
        here = {row["contender"]: row for row in rows if row["job"] == self.job and self.size in (None, row["n"])}
        ours = next((here[name] for name in self.ours if name in here), None)
        rivals = [here[name]["median_ms"] for name in self.rivals if name in here]
        if ours is None or (self.rivals and not rivals):
            return NOT_YET
        if not self.rivals:
            value = ours[self.field]
        else:
            value = min(rivals) / ours["median_ms"] if self.least is not None else ours["median_ms"] / min(rivals)
        met = value >= self.least if self.least is not None else value <= self.most  # type: ignore[operator]
        return f"{value:.3g}{self.unit}" + ("" if met else ", missed")


def _losses(dtype: str) -> list[Target]:
    found = []
    short = dtype == "float32"
    for backward, eager, compiled in (("", 5, 1.2), (" + backward", 4, 1.1)):
        job = f"PrunedLoss masked{backward} (64, 12, 8600) {dtype}"
        what = f"masked loss{backward.replace('+', 'and')}, 64 x 12 x 8,600, {dtype}"
        found.append(Target(f"{what}, against the field's eager loss", "loss", job, least=eager, rivals=EAGER))
        found.append(Target(f"{what}, against torch.compile", "loss", job, least=compiled, rivals=COMPILED, short=short))
        if not backward:
            found.append(Target(what, "loss", job, most=1.5))
    return found


def _selects() -> list[Target]:
    found = []
    for k in ("n/2", "n/10"):
        job, size = f"select k={k}", 10**8
        found.append(Target(f"select {k} of 10^8 float32", "selection", job, size, most=2))
        what, rivals = f"select {k} of 10^8 float32, against torch.topk", ("torch.topk(sorted=False)",)
        found.append(Target(what, "selection", job, size, least=8, rivals=rivals, short=True))
    return found


_EPOCH = ("windows", "epoch of 8755 windows, 716 nodes")
_STEP = "STID step, {} nodes, float32"
TARGETS = (
    *_selects(),
    Target(
        "plan of 10^7 samples with its order",
        "selection",
        "budget plan with order (st-prune)",
        10**7,
        most=1,
        field="median_ms",
        short=True,
    ),
    *_losses("float32"),
    *_losses("bfloat16"),
    *(
        Target(
            f"table update of {size:,} of 10^7, against index_copy_",
            "loss",
            f"ScoreTable.update B={size}",
            most=1.5,
            rivals=("index_copy_",),
        )
        for size in (64, 16384)
    ),
    Target("epoch of windows, against a DataLoader's workers and pinned memory", *_EPOCH, least=50, rivals=WORKERS, short=True),
    Target("epoch of windows, against indexing by hand on the device", *_EPOCH, least=1, rivals=("series[rows], by hand",)),
    # Windows are read and written: 2 reads at least.
    Target("epoch of windows, which reads and writes them", *_EPOCH, most=4),
    Target("window_stats, 35,040 x 8,600", "windows", "window_stats W=24", 35_040 * 8600, most=3),
    *(
        Target(
            f"STID step on {share} of 8,600 nodes, against all of them",
            "step",
            _STEP.format(8600),
            most=most,
            rivals=("stprune",),
            ours=(f"stprune, {share} of nodes",),
            short=True,
        )
        for share, most in (("30%", 0.36), ("10%", 0.14))
    ),
    Target(
        "captured STID step at 170 nodes, against the eager one",
        "step",
        _STEP.format(170),
        least=3,
        rivals=("stprune",),
        ours=("stprune, captured",),
        short=True,
    ),
)


def table(folder: pathlib.Path, *, short: bool) -> str:
    """A table a card, from the rows SUITE-cuda.jsonl of a folder; where there are none it says so, the short one in a word."""
    rows = {suite: records.read(folder / f"{suite}-cuda.jsonl") for suite in {target.suite for target in TARGETS}}
    cards = dict.fromkeys(row["device"] for some in rows.values() for row in some)
    if short and not cards:
        return f"GPU: {NOT_YET}."
    blocks = []
    for card in cards or [None]:
        own = {suite: [row for row in some if row["device"] == card] for suite, some in rows.items()}
        shown = [target for target in TARGETS if target.short or not short]
        lines = [f"| {each.what} | {each.measured(own[each.suite])} | {each.bound} |" for each in shown]
        blocks.append("\n".join([*HEAD, *lines]))
        if card is not None:
            versions = dict.fromkeys(
                f"driver {row['driver']}, torch {row['torch']}, Triton {row['triton']}" for some in own.values() for row in some
            )
            blocks.append(f"{card}: {'; '.join(versions)}.")
    return "\n\n".join(blocks)
