"""The best setting of a family, and its errors and times against another's, over the seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from stprune.study.rows import Point, Row
from stprune.study.spec import Spec

USUAL_BATCH = 64  # windows per step in most papers of the field; their runs use all windows and all nodes
# Two trainings of one setting with other seeds differed by up to about this much (in % of the MAE), so that a smaller
# difference of single runs says nothing.
SEED_NOISE = 1.0
# Two-sided 95% quantiles of Student's t with 1, 2, ... degrees of freedom. More seeds use the last one, which is too wide.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
_SLACK = 1.02  # a run may cost so much more than it is compared at: the last step of a budget goes beyond it


class Stat(NamedTuple):
    """Mean and sample standard deviation over the seeds; the deviation of one seed is 0."""

    mean: float
    sd: float


class Setting(NamedTuple):
    """What is tuned: windows per step, nodes drawn in a window (0: all), share of the windows kept, learning rate."""

    batch_size: int
    num_drawn: int
    keep_ratio: float
    learning_rate: float

    @classmethod
    def of(cls, spec: Spec) -> Setting:
        """The setting of a run."""
        return cls(spec.batch_size, spec.num_drawn, spec.keep_ratio, spec.learning_rate)

    def __str__(self) -> str:
        """For people.

        Example:
            >>> str(Setting(64, 28, 1.0, 0.002)), str(Setting(8, 0, 0.5, 0.002))
            ('batch 64, 28 nodes, rate 0.002', 'batch 8, 50% kept, rate 0.002')
        """
        nodes = f", {self.num_drawn} node{'s' * (self.num_drawn > 1)}" if self.num_drawn else ""
        kept = f", {self.keep_ratio:.0%} kept" if self.keep_ratio < 1 else ""
        return f"batch {self.batch_size}{nodes}{kept}, rate {self.learning_rate:g}"


@dataclass(frozen=True)
class Change:
    """An error against another run's error, paired over the seeds.

    Attributes:
        values: in % per seed: 100 (error / error of the rival with the same seed - 1); negative is better.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds, in %."""
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float:
        """Sample standard deviation over the seeds; 0 for one seed."""
        return _stat(self.values).sd

    @property
    def single(self) -> bool:
        """There is one seed, from which nothing can be concluded."""
        return len(self.values) == 1

    @property
    def half_width(self) -> float | None:
        """Half of the 95% t interval of the mean, None for one seed.

        The seeds are taken to be independent and the differences to be near normal. Three seeds cannot test that, and their
        interval is 2.5 standard deviations wide to each side: it misses small effects, and that is honest.
        """
        count = len(self.values)
        return None if count < 2 else _T95[min(count - 2, len(_T95) - 1)] * self.sd / math.sqrt(count)

    @property
    def outside(self) -> bool:
        """The seeds tell the two apart: 0 lies outside the interval; for one seed, the change is above `SEED_NOISE`."""
        width = self.half_width
        return abs(self.mean) > (SEED_NOISE if width is None else width)

    @property
    def better(self) -> bool:
        """The error is lower, and the seeds tell the two apart."""
        return self.outside and self.mean < 0

    @property
    def worse(self) -> bool:
        """The error is higher, and the seeds tell the two apart."""
        return self.outside and self.mean > 0


class Reach(NamedTuple):
    """What a family needed until full training's best validation MAE, as a share of what full training needed.

    Attributes:
        cost: share in pairs trained on.
        time: share in processor seconds; in wall seconds on a GPU.
        seeds: over how many seeds both are means.
    """

    cost: float
    time: float
    seeds: int


@dataclass(frozen=True)
class Result:
    """The best setting of a family at a budget.

    The best is the one with the lowest mean validation MAE among the settings that ran with the most seeds, the first among
    equals. The test error is never looked at. Runs that diverged are left out and counted.

    Attributes:
        family: name.
        cost: budget in passes over all pairs of the training part.
        setting: the best one.
        trials: settings that were tried.
        runs: its runs, by seed.
        num_diverged: runs of all its settings that diverged.
        overhead: share of the run's time that deciding and scoring took, see `overhead`; None without full training.
        change, hard_windows_change, hard_nodes_change: test MAE over all windows and nodes, over the hardest 5% of the windows
            and of the nodes, against the best full training at the same budget; None where there is none, and for itself.
    """

    family: str
    cost: float
    setting: Setting
    trials: int
    runs: tuple[Row, ...]
    num_diverged: int
    overhead: float | None = None
    change: Change | None = None
    hard_windows_change: Change | None = None
    hard_nodes_change: Change | None = None

    def stat(self, value: Callable[[Row], float]) -> Stat:
        """Mean and deviation of a number of the runs over the seeds."""
        return _stat([value(row) for row in self.runs])

    @property
    def mae(self) -> Stat:
        """Test MAE."""
        return self.stat(lambda row: row.mae)

    @property
    def steps(self) -> float:
        """Optimizer steps, mean."""
        return self.stat(lambda row: row.steps).mean

    @property
    def overspent(self) -> float:
        """Pairs trained on beyond the budget, mean over the seeds, in % of it: the last step of a run is whole."""
        return overspent(self.runs)

    @property
    def time(self) -> Stat:
        """Processor seconds of a run; wall seconds on a GPU."""
        return self.stat(seconds)

    @property
    def by_seed(self) -> dict[int, Row]:
        """The runs."""
        return {row.spec.seed: row for row in self.runs}


def overspent(rows: Sequence[Row]) -> float:
    """Pairs trained on beyond the budget, mean over rows, in % of it."""
    return 100 * statistics.fmean(row.cost / row.spec.cost - 1 for row in rows)


def seconds(row: Row, point: Point | None = None) -> float:
    """Time of a run, or up to one of its validations: of the processor, as runs may share it; of the wall's clock on a GPU."""
    spent = row if point is None else point
    return spent.cpu_seconds if row.machine.get("device", "cpu") == "cpu" else spent.seconds


def compare(result: Result | None, rival: Result | None, value: Callable[[Row], float] = lambda row: row.mae) -> Change | None:
    """An error of one result against another's, over the seeds that both have; None where there is no such seed."""
    if result is None or rival is None:
        return None
    mine, other = result.by_seed, rival.by_seed
    return _change([(value(mine[seed]), value(other[seed])) for seed in mine if seed in other])


def _change(pairs: Sequence[tuple[float, float]]) -> Change | None:
    return Change(tuple(100 * (mine / other - 1) for mine, other in pairs)) if pairs else None


def _stat(values: Sequence[float]) -> Stat:
    return Stat(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


def best(rows: Sequence[Row]) -> Result | None:
    """The best setting among the rows of one family and one budget, see `Result`; None where all of them diverged."""
    settings: dict[Setting, list[Row]] = {}
    for row in rows:
        settings.setdefault(Setting.of(row.spec), []).append(row)
    whole = {setting: [row for row in found if not row.diverged] for setting, found in settings.items()}
    most = max((len(found) for found in whole.values()), default=0)
    if not most:
        return None
    rivals = {setting: found for setting, found in whole.items() if len(found) == most}
    setting = min(rivals, key=lambda name: statistics.fmean(row.best_mae for row in rivals[name]))
    return Result(
        family=rows[0].spec.family,
        cost=rows[0].spec.cost,
        setting=setting,
        trials=len(settings),
        runs=tuple(sorted(rivals[setting], key=lambda row: row.spec.seed)),
        num_diverged=sum(row.diverged for row in rows),
    )


def reach(mine: Sequence[Result], full: Sequence[Result], cost: float) -> Reach | None:
    """How soon a family reached full training's best validation MAE.

    The target is, seed by seed, the best validation MAE of the best full training at the cell's budget. A family reaches it at
    the first validation that is at or below it, in the run of that seed that gets there first among the family's best settings
    at all its budgets: a run with a smaller budget lowers its learning rate sooner. Full training is given the same choice of
    budgets, and the share is of what full training needed. Only seeds that all these runs have are used.

    Args:
        mine: best settings of the family, one per budget.
        full: the same of full training.
        cost: budget whose full training sets the target.

    Returns:
        Shares, as means over the seeds; None where a seed never reached the target, or where no seed is common to all.
    """
    target = next((result for result in full if result.cost == cost), None)
    if target is None or not mine:
        return None
    seeds = set.intersection(*(set(result.by_seed) for result in (*mine, *full)))
    shares = []
    for seed in sorted(seeds):
        goal = target.by_seed[seed].best_mae
        mine_at, full_at = _first(mine, seed, goal), _first(full, seed, goal)
        if mine_at is None or full_at is None:
            return None
        shares.append((mine_at[0] / full_at[0], mine_at[1] / full_at[1]))
    if not shares:
        return None
    return Reach(statistics.fmean(s[0] for s in shares), statistics.fmean(s[1] for s in shares), len(shares))


def _first(results: Sequence[Result], seed: int, goal: float) -> tuple[float, float] | None:
    """Least cost and least time at which a validation MAE was reached."""
    rows = [result.by_seed[seed] for result in results]
    points = [next(((row, p) for p in row.curve if p.validation_mae <= goal), None) for row in rows]
    found = [point for point in points if point]
    return (min(p.cost for _, p in found), min(seconds(*point) for point in found)) if found else None


def equal_time(mine: Sequence[Result], full: Result | None) -> Change | None:
    """Test MAE of a family after as much time as the best full training took, against full training's, paired over seeds.

    Between two budgets of the family the MAE is read off the straight line through both in logarithms of time and MAE. Where
    even its largest budget took less time than full training, the MAE of that budget stands.

    Args:
        mine: best settings of the family, one per budget.
        full: best full training at the cell's budget.

    Returns:
        The change; None where the family's smallest budget took longer than full training on every seed.
    """
    pairs = []
    for seed, row in (full.by_seed if full else {}).items():
        rows = [result.by_seed[seed] for result in mine if seed in result.by_seed]
        mae = _at(sorted((seconds(other), other.mae) for other in rows), seconds(row))
        if mae is not None:
            pairs.append((mae, row.mae))
    return _change(pairs)


def _at(points: Sequence[tuple[float, float]], x: float) -> float | None:
    below = [point for point in points if point[0] <= x]
    above = [point for point in points if point[0] > x]
    if not below or not above:
        return below[-1][1] if below else None
    (x0, y0), (x1, y1) = below[-1], above[0]
    share = math.log(x / x0) / math.log(x1 / x0)
    return math.exp((1 - share) * math.log(y0) + share * math.log(y1))


def sixth(mine: Sequence[Result], usual: Result | None) -> Change | None:
    """Test MAE of a family at a sixth of the cost of the usual protocol, against that protocol's.

    Args:
        mine: best settings of the family, one per budget; the largest budget of at most a sixth counts.
        usual: full training with batches of `USUAL_BATCH` at its best rate and the cell's budget.

    Returns:
        The change, over the seeds that both have; None where the family has no budget so small, or there is no usual run.
    """
    small = [result for result in mine if usual and result.cost <= _SLACK * usual.cost / 6]
    return compare(small[-1], usual) if small else None


def overhead(result: Result, full: Sequence[Row]) -> float | None:
    """Share of a family's time that deciding and scoring took, mean over its runs, in %.

    That is the time of plans and draws, and the time of the loss beyond what the plain loss of full training takes for as many
    steps, in the full run whose pairs per step are the nearest. Negative where the scoring loss is faster than the plain one.

    Args:
        result: best setting of the family.
        full: runs of full training.

    Returns:
        In %, None where there is no full run.
    """
    if not full:
        return None

    def extra(row: Row) -> float:
        near = min(full, key=lambda other: abs(math.log(other.pairs / other.steps * row.steps / row.pairs)))
        return 100 * (row.plan_seconds + row.loss_seconds - near.loss_seconds / near.steps * row.steps) / row.seconds

    return result.stat(extra).mean
