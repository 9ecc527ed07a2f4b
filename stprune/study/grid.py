"""Which runs a study makes: every family is tuned with the same number of trials, and its best setting repeated."""

from __future__ import annotations

import json
import math
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, get_type_hints

from stprune.study.families import FAMILIES
from stprune.study.keys import check_keys, short
from stprune.study.results import USUAL_BATCH
from stprune.study.rows import Row
from stprune.study.spec import MODELS, OPTIMIZERS, RATE_SCHEDULES, Spec

_BASE_RATES = {
    ("stid", "adam"): 2e-3,
    ("tsmixer", "adam"): 1e-3,
    ("graph-wavenet", "adam"): 2e-3,
    ("staeformer", "adam"): 2e-3,
    ("stid", "sgd"): 1e-1,
    ("stid", "muon"): 1e-2,
}


def base_rate(model: str, optimizer: str) -> float:
    """The learning rate around which the runs of a model are tuned; where none is known, that of STID."""
    return _BASE_RATES.get((model, optimizer), _BASE_RATES["stid", optimizer])


@dataclass(frozen=True)
class Block:
    """A part of a study: every series with every model and every family, tuned with equal care.

    benchmarks/README.md has its fields, as the keys of a grid file, in a table.

    Attributes:
        data: series, as `stprune.study.series.load` reads them.
        models: names from `MODELS`.
        families: names from `FAMILIES`; "full" is always among them.
        cost: budget of a run, in passes over the training part.
        seeds: runs of each family's best setting, with seeds 0, 1, ...
        batches: windows per step tried for families that take all nodes of a window.
        node_batches: [windows, multiple] tried for families that draw nodes: windows per step, and pairs per step as a
            multiple of one window's pairs.
        keep_ratio: share of the windows kept by families that drop windows.
        rate_factors: multiples of the base rate tried at the best of these, beside 1. Where the best rate is the largest or
            smallest one tried, up to three more beyond it are tried; this rule is the same for every family.
        curve: shares of the cost at which the best setting is run as well, for MAE against cost.
        curve_families: families that have a curve; empty for none.
        dim: width of the models.
        optimizers, rate_schedules: each of them makes cells of its own.
    """

    data: tuple[str, ...]
    models: tuple[str, ...] = ("stid",)
    families: tuple[str, ...] = ("full", "soft-random", "st-prune", "nodes-uniform")
    cost: float = 4.0
    seeds: int = 3
    batches: tuple[int, ...] = (64, 16, 4, 1)
    node_batches: tuple[tuple[int, float], ...] = ((64, 16.0), (64, 4.0), (64, 1.0), (16, 1.0))
    keep_ratio: float = 0.5
    rate_factors: tuple[float, ...] = (0.4, 2.5)
    curve: tuple[float, ...] = ()
    curve_families: tuple[str, ...] = ("full", "nodes-uniform")
    dim: int = 16
    optimizers: tuple[str, ...] = ("adam",)
    rate_schedules: tuple[str, ...] = ("cosine",)

    def __post_init__(self) -> None:
        """Refuse what no run could do, before the first one.

        Raises:
            ValueError: a setting breaks its rule.
        """
        known = {
            "models": MODELS,
            "families": tuple(FAMILIES),
            "curve_families": tuple(FAMILIES),
            "optimizers": OPTIMIZERS,
            "rate_schedules": RATE_SCHEDULES,
        }
        for name, choices in known.items():
            if not getattr(self, name) and name != "curve_families":
                raise ValueError(f"study: {name} must hold at least one, got none")
            for value in getattr(self, name):
                if value not in choices:
                    raise ValueError(f"study: {name} must be among {', '.join(choices)}, got {value!r}")
        if not self.data:
            raise ValueError("study: data must name at least one series, got none")
        if "full" not in self.families:
            raise ValueError(f"study: families must hold 'full', which all are weighed against, got {', '.join(self.families)}")
        positive = {"cost": (self.cost,), "seeds": (self.seeds,), "batches": self.batches, "dim": (self.dim,)}
        positive |= {"rate_factors": self.rate_factors, "curve": self.curve}
        positive["node_batches"] = tuple(number for pair in self.node_batches for number in pair)
        for name, numbers in positive.items():
            if name in ("batches", "node_batches") and not numbers:
                raise ValueError(f"study: {name} must hold at least one, got none")
            for number in numbers:
                if not (0 < number < math.inf):
                    raise ValueError(f"study: {name} must be positive, got {number}")
        for share in self.curve:
            if share >= 1:
                raise ValueError(f"study: curve must hold shares of the cost below 1, got {share}")
        if self.curve and self.curve_families and "full" not in self.curve_families:
            # A run with a smaller budget may reach a goal sooner: who has more budgets would have more trials.
            raise ValueError(f"study: curve_families must hold 'full', got {', '.join(self.curve_families)}")
        if "staeformer" in self.models and self.dim % 2:
            raise ValueError(f"study: dim must be even with staeformer, got {self.dim}")
        if not 0 < self.keep_ratio < 1:
            raise ValueError(f"study: keep_ratio must lie in (0, 1), got {self.keep_ratio}")

    def asks_for(self, spec: Spec) -> bool:
        """Whether the spec is of one of the cells, families and budgets, at whatever setting and seed."""
        return (
            spec.data in self.data
            and spec.model in self.models
            and spec.family in self.families
            and spec.cost in (self.cost, *(self.cost * share for share in self.curve))
            and spec.dim == self.dim
            and spec.optimizer in self.optimizers
            and spec.rate_schedule in self.rate_schedules
        )


class Pending(NamedTuple):
    """What is left of a study.

    Attributes:
        specs: without a row, each once, in the order in which they are to be run.
        left: runs still to be made by series, as far as is known: a search may need more learning rates.
    """

    specs: list[Spec]
    left: Counter[str]


@dataclass(frozen=True)
class Grid:
    """All blocks of a study.

    Attributes:
        blocks: in the order in which they are run.
        title: heading of the report.
        note: a sentence that the report and the terminal show first.
        device: name of the device that the runs are made on; rows of another one are another grid's.
    """

    blocks: tuple[Block, ...]
    title: str = "Pruned training against full training at its best"
    note: str = ""
    device: str = "cpu"

    def pending(self, rows: Sequence[Row], num_nodes: Callable[[str], int]) -> Pending:
        """What can be run now, given what was run: the first stage of every family first, then the next.

        Args:
            rows: finished runs.
            num_nodes: nodes of a series by its name.

        Returns:
            What can be run, and how many runs are still to be made.
        """
        done = {row.spec: row for row in rows}
        found: dict[Spec, int] = {}
        counts: Counter[str] = Counter()
        for number, block in enumerate(self.blocks):
            for search in _searches(block, num_nodes, self.device):
                stage, specs, left = search.next(done)
                counts[search.settings[0].data] += left
                for spec in specs:
                    found.setdefault(spec, number * 10 + stage)
        return Pending(sorted(found, key=found.__getitem__), counts)

    def own(self, rows: Sequence[Row]) -> list[Row]:
        """The rows of cells, families, budgets and device of the grid: its folder may hold those of another one."""
        mine = [row for row in rows if row.spec.device == self.device]
        return [row for row in mine if any(block.asks_for(row.spec) for block in self.blocks)]

    @classmethod
    def read(cls, path: pathlib.Path) -> Grid:
        """Read a grid from JSON: {"title": ..., "blocks": [{"data": [...], ...}, ...]}, keys as in `Block`.

        Without a title the report has the usual one.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not such a file.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"study: {path} must be JSON, got an error: {error}") from None
        check_keys(f"{path}", values, ("title", "blocks"), needed="blocks")
        blocks = values["blocks"]
        if not isinstance(blocks, list) or not blocks:
            raise ValueError(f"study: blocks in {path} must be a list of at least one block, got {short(blocks)}")
        title = {"title": _typed("title", values["title"], str)} if "title" in values else {}
        return cls(tuple(_block(path, each) for each in blocks), **title)


def _block(path: pathlib.Path, values: Any) -> Block:
    kinds = get_type_hints(Block)
    check_keys(f"a block in {path}", values, [each.name for each in fields(Block)], needed="data")
    return Block(**{name: _typed(name, value, kinds[name]) for name, value in values.items()})


def _typed(name: str, value: Any, kind: Any) -> Any:
    if kind in (int, float):
        number = not isinstance(value, bool) and isinstance(value, (int, float))
        if not number or (kind is int and not (math.isfinite(value) and int(value) == value)):
            raise ValueError(f"study: {name} must be {'a whole number' if kind is int else 'a number'}, got {value!r}")
        return kind(value)
    if kind is str:
        if not isinstance(value, str):
            raise ValueError(f"study: {name} must be text, got {value!r}")
        return value
    inner = kind.__args__
    if inner[-1] is Ellipsis:
        if not isinstance(value, list):
            raise ValueError(f"study: {name} must be a list, got {value!r}")
        return tuple(_typed(name, each, inner[0]) for each in value)
    if not isinstance(value, list) or len(value) != len(inner):
        # The only lists in a list are those of node_batches.
        raise ValueError(f"study: each element of {name} must be [windows, multiple], got {value!r}")
    return tuple(_typed(name, each, one) for each, one in zip(value, inner, strict=True))


_RATE_STEP = 2.5
_MOST_RATES = 3


@dataclass(frozen=True)
class _Search:
    """The runs of one family in one cell: settings, learning rates, seeds and smaller budgets, one stage after the other."""

    settings: tuple[Spec, ...]
    rate_factors: tuple[float, ...]
    seeds: int
    curve: tuple[float, ...] = field(default=())

    def next(self, done: dict[Spec, Row]) -> tuple[int, list[Spec], int]:
        """The first stage that is not finished, its runs without a row, and all runs that are known to follow."""
        tried = list(self.settings)
        last = self.seeds * (1 + len(self.curve)) - 1
        if missing := [spec for spec in tried if spec not in done]:
            return 0, missing, len(missing) + len(self.rate_factors) + last
        best = self._best(tried, done)
        tried += [replace(best, learning_rate=best.learning_rate * factor) for factor in self.rate_factors]
        for _ in range(_MOST_RATES if self.rate_factors else 1):
            if missing := [spec for spec in tried if spec not in done]:
                return 1, missing, len(missing) + last
            best = self._best(tried, done)
            tried += self._beyond(best, tried)
        missing = [spec for spec in tried if spec not in done]
        if missing:
            return 1, missing, len(missing) + last
        best = self._best(tried, done)
        costs = [best.cost, *(best.cost * share for share in self.curve)]
        specs = [replace(best, seed=seed, cost=cost) for cost in costs for seed in range(self.seeds)]
        missing = [spec for spec in specs if spec not in done]
        return 2, missing, len(missing)

    def _best(self, tried: list[Spec], done: dict[Spec, Row]) -> Spec:
        return min((done[spec] for spec in tried), key=_validation).spec

    def _beyond(self, best: Spec, tried: list[Spec]) -> list[Spec]:
        """A learning rate further out, where the best one is the largest or smallest of its setting."""
        rates = [spec.learning_rate for spec in tried if replace(spec, learning_rate=best.learning_rate) == best]
        if not self.rate_factors or len(rates) == 1 or min(rates) < best.learning_rate < max(rates):
            return []
        factor = _RATE_STEP if best.learning_rate == max(rates) else 1 / _RATE_STEP
        return [replace(best, learning_rate=best.learning_rate * factor)]


def _validation(row: Row) -> float:
    return math.inf if row.diverged else row.best_mae


def _searches(block: Block, num_nodes: Callable[[str], int], device: str) -> Iterator[_Search]:
    for data in block.data:
        for model in block.models:
            for optimizer in block.optimizers:
                for schedule in block.rate_schedules:
                    rate = base_rate(model, optimizer)
                    base = Spec(data, model, "full", 1, rate, block.cost, 0, 1.0, block.dim, schedule, optimizer, device=device)
                    for name in block.families:
                        settings = tuple(dict.fromkeys(_settings(block, replace(base, family=name), num_nodes(data))))
                        curve = block.curve if name in block.curve_families else ()
                        yield _Search(settings, block.rate_factors, block.seeds, curve)
                        # The usual protocol has its own rates and seeds, as what the batch alone gives is told against it.
                        usual = tuple(spec for spec in settings if spec.family == "full" and spec.batch_size == USUAL_BATCH)
                        if usual:
                            yield _Search(usual, block.rate_factors, block.seeds)


def _settings(block: Block, base: Spec, num_nodes: int) -> list[Spec]:
    family = FAMILIES[base.family]
    base = replace(base, keep_ratio=block.keep_ratio if family.drops_windows else 1.0)
    if family.kind in ("all", "windows"):
        return [replace(base, batch_size=batch) for batch in block.batches]
    found = [
        replace(base, batch_size=windows, num_drawn=min(num_nodes - 1, max(1, round(share * num_nodes / windows))))
        for windows, share in block.node_batches
    ]
    fitting = [spec for spec in found if family.fits(spec, num_nodes)]
    if not fitting:
        raise ValueError(f"study: node_batches must fit {base.family} on {base.data}, got {block.node_batches}")
    return fitting
