"""What the numbers say, in sentences that are computed from them. The rival is always full training at its best setting."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence

from stprune.study.results import SEED_NOISE, USUAL_BATCH, Change, Result, best, compare
from stprune.study.summary import FULL, Cell, Family, Study

MANY_NODES = 600
SOFT_RANDOM = "soft-random"
ONE_SEED = "From one seed nothing can be concluded."
_SAME_STEPS = 0.05  # numbers of steps that differ by at most this share count as equal


def percent(change: Change) -> str:
    """A change with half of its 95% interval, where it has one.

    Example:
        >>> percent(Change((-3.0, -3.2))), percent(Change((2.0,)))
        ('-3.1% ±1.3', '+2.0%')
    """
    width = change.half_width
    return signed(change.mean) if width is None else f"{signed(change.mean)} ±{width:.1f}"


def signed(value: float) -> str:
    """A change in %, without a minus sign before 0.

    Example:
        >>> signed(-3.14), signed(-0.01)
        ('-3.1%', '+0.0%')
    """
    return f"{round(value, 1) + 0.0:+.1f}%"


def sentences(cell: Cell, *, firm: bool = True) -> list[str]:
    """State what the runs of one cell show, also where pruning loses.

    Args:
        cell: of a study.
        firm: False where the runs are too small or too few for any comparison: then none is made.

    Returns:
        One or two sentences per finding.
    """
    if not firm:
        return [*_overhead(cell), *_diverged(cell)]
    full = cell.full
    if full is None:
        found = ["There is no run of full training at this budget, so that nothing can be weighed against it."]
        return found + _diverged(cell)
    found = [_batch(cell, full), *_judgement(cell), *_nodes(cell), *_samplers(cell), *_windows(cell)]
    found += [*_tail(cell), *_sixth(cell), *_overhead(cell), *_diverged(cell)]
    if any(family.result and len(family.result.runs) == 1 for family in cell.families):
        found.insert(0, f"One seed proves nothing: differences below about {SEED_NOISE:.0f}% of the MAE can be chance.")
    return found


def headline(study: Study, *, firm: bool = True) -> list[str]:
    """The study's first sentences: what drawing nodes gains over the best full training, with many and with few nodes.

    Measured and generated series are told apart, as the structure of the latter was chosen.

    Args:
        study: of any number of cells.
        firm: as in `sentences`.

    Returns:
        Sentences; where nothing can be compared, or is to be, only what was run.
    """
    if not firm:
        return [scope(study)]
    found = []
    both = any(cell.generated for cell in study.cells) and not all(cell.generated for cell in study.cells)
    for many, generated in itertools.product((True, False), (False, True)):
        cells = [cell for cell in study.cells if (cell.num_nodes >= MANY_NODES, cell.generated) == (many, generated)]
        drawing = [cell.drawing for cell in cells if cell.full and cell.drawing and cell.drawing.result]
        if drawing:
            name = f"{MANY_NODES} nodes or more" if many else f"fewer than {MANY_NODES} nodes"
            which = f"{'Generated' if generated else 'Measured'} series of {name}" if both else f"With {name}"
            found.append(f"{which}: {_gain(drawing)}")
    edge = sum(cell.smallest_is_best for cell in study.cells)
    dropped = [
        family.result.change
        for cell in study.cells
        for family in cell.families
        if family.kind == "windows" and family.result and family.result.change and family.result.setting.keep_ratio < 1
    ]
    if dropped:
        found.append(
            f"Leaving out windows, at random or by score, changed the test MAE by {_range([one.mean for one in dropped])} "
            f"against the best full training at equal cost: {_counts(dropped)}."
        )
    gains = [cell.batch_gain.mean for cell in study.cells if cell.batch_gain]
    if gains:
        found.append(
            f"The batch alone changed full training's test MAE by {_range(gains)} against batches of {USUAL_BATCH} at equal "
            f"cost, in the {_count(len(gains), 'comparison')} that ran both. Everything above is measured "
            "against full training at its best batch and rate."
        )
    if edge:
        found.append(
            f"In {edge} of {_count(len(study.cells), 'comparison')} the smallest batch tried was full training's best, and a "
            "smaller one may be better still."
        )
    return [scope(study), *found]


def scope(study: Study) -> str:
    """How much was run."""
    rows = study.rows
    names = {row.spec.data.partition("?")[0] for row in rows}
    models, costs = {row.spec.model for row in rows}, {cell.cost for cell in study.cells}
    low, high = study.seeds
    seeds = f"{low} seed{'s' * (low > 1)}" if low == high else f"{low} to {high} seeds"
    budget = f"{min(costs):g} to {max(costs):g} passes" if len(costs) > 1 else f"{_count(min(costs), 'pass', 'passes')}"
    forms = len({row.spec.data for row in rows})
    cut = f" in {forms} forms, whole, cut or generated" if forms > len(names) else ""
    return (
        f"{len(rows):,} runs: {_count(len(names), 'series', 'series')}{cut}, {_count(len(models), 'model')}, "
        f"{_count(len(study.labels), 'family', 'families')} of methods, each at its best setting, {seeds}, budgets of {budget} "
        f"over the training part.{f' {ONE_SEED}' * (high == 1)}"
    )


def _count(number: float, one: str, many: str = "") -> str:
    return f"{number:g} {one if number == 1 else many or one + 's'}"


def _range(values: Sequence[float]) -> str:
    mean = signed(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} on the mean ({signed(min(values))} to {signed(max(values))})"


def less(share: float) -> str:
    """A share in words.

    Example:
        >>> less(0.25), less(1.1)
        ('4.0 times less', '1.10 times as much')
    """
    return f"{1 / share:.1f} times less" if share <= 0.95 else f"{share:.2f} times as much"


def spent(cost: float, time: float) -> str:
    """Shares of full training's cost and time in words, which say plainly where one of them is no saving.

    Example:
        >>> spent(0.5, 0.4)
        'for 2.0 times less cost and 2.5 times less time'
        >>> spent(0.5, 1.55)
        'for 2.0 times less cost, but that took longer: 1.55 times as much time'
        >>> spent(1.2, 0.8)
        'in 1.2 times less time, but for more: 1.20 times as much cost'
        >>> spent(1.2, 1.1)
        'but only for more: 1.20 times as much cost and 1.10 times as much time'
    """
    if cost <= 1 < time:
        return f"for {less(cost)} cost, but that took longer: {less(time)} time"
    if time <= 1 < cost:
        return f"in {less(time)} time, but for more: {less(cost)} cost"
    return f"{'but only for more: ' if cost > 1 else 'for '}{less(cost)} cost and {less(time)} time"


def _gain(drawing: Sequence[Family]) -> str:
    changes = [family.result.change for family in drawing if family.result and family.result.change]
    reached = [family.reach for family in drawing if family.reach]
    texts = []
    if changes:
        texts.append(
            f"drawing nodes changed the test MAE by {_range([change.mean for change in changes])} against the best full "
            f"training at equal cost: {_counts(changes)}."
        )
    if reached:
        # Ratios are averaged by their logarithms, so that 2 times less and 2 times more cancel.
        cost, time = (statistics.geometric_mean([getattr(r, name) for r in reached]) for name in ("cost", "time"))
        texts.append(
            f"It reached full training's best validation MAE in {len(reached)} of {len(drawing)}, there {spent(cost, time)} "
            "(geometric mean)."
        )
    else:
        texts.append("It never reached full training's best validation MAE.")
    return " ".join(texts)


def _counts(changes: Sequence[Change]) -> str:
    better, worse = sum(change.better for change in changes), sum(change.worse for change in changes)
    return (
        f"lower in {better}, higher in {worse}, no different in {len(changes) - better - worse} of "
        f"{_count(len(changes), 'comparison')}"
    )


def _batch(cell: Cell, full: Result) -> str:
    text = f"Full training is best with {full.setting} at a cost of {cell.cost:g} passes: test MAE {full.mae.mean:.4g}."
    if cell.batch_gain:
        text += f" Against batches of {USUAL_BATCH} at the same cost that is {percent(cell.batch_gain)}, by the batch alone."
    if cell.smallest_is_best:
        text += " No smaller batch was tried, and one may be better still."
    return text


def sorted_out(changes: Iterable[tuple[str, Change]]) -> str:
    """Which changes are better, no different and worse; of one seed, only how large they are."""
    several = "better", "no different within the seeds", "worse"
    one = tuple(f"{word} {SEED_NOISE:.0f}% on one seed" for word in ("lower by more than", "within", "higher by more than"))
    groups: dict[str, list[str]] = {word: [] for word in (*several, *one)}
    for label, change in changes:
        words = one if change.single else several
        groups[words[0 if change.better else 2 if change.worse else 1]].append(f"{label} ({percent(change)})")
    return "; ".join(f"{word}: {', '.join(names)}" for word, names in groups.items() if names)


def _judgement(cell: Cell) -> list[str]:
    changes = [(f.label, f.result.change) for f in cell.families if f.result and f.result.change]
    return [f"Test MAE against it at the same cost - {sorted_out(changes)}."] if changes else []


def _nodes(cell: Cell) -> list[str]:
    drawing = cell.drawing
    if drawing is None or drawing.result is None or drawing.result.change is None:
        return []
    change = drawing.result.change
    rival = "a smaller batch" if cell.full and cell.full.setting.batch_size < USUAL_BATCH else "full training at its best batch"
    if change.single:
        text = f"At equal cost drawing nodes ({drawing.label}) gave {percent(change)} against {rival} on one seed."
    elif change.better:
        text = f"At equal cost drawing nodes ({drawing.label}) gains beyond {rival}: {percent(change)}."
    else:
        word = "better than" if change.outside else "the same as"
        text = f"At equal cost {rival} does {word} drawing nodes ({drawing.label}, {percent(change)})."
    if drawing.reach is None:
        return [text + " It did not reach full training's best validation MAE on every seed."]
    reach = drawing.reach
    text += f" It reached full training's best validation MAE {spent(reach.cost, reach.time)}."
    if drawing.equal_time:
        text += f" In equal time its test MAE is {percent(drawing.equal_time)}."
    return [text]


def _samplers(cell: Cell) -> list[str]:
    uniform = cell.drawing
    others = [f for f in cell.families if f.kind == "nodes" and uniform and f.name != uniform.name]
    changes = [(f.label, change) for f in others if (change := compare(f.result, uniform.result if uniform else None))]
    return _rivals(f"Other ways of drawing nodes against {uniform.label if uniform else ''}", changes, "None of them beats it.")


def _windows(cell: Cell) -> list[str]:
    changes = []
    for family in cell.families:
        result = family.result
        if family.kind == "windows" and family.name != SOFT_RANDOM and result and result.setting.keep_ratio < 1:
            rows = [r for r in cell.rows if r.spec.family == SOFT_RANDOM and r.spec.cost == result.cost]
            equal = [row for row in rows if abs(row.steps / result.steps - 1) <= _SAME_STEPS]
            change = compare(result, best(equal)) if equal else None
            if change:
                changes.append((family.label, change))
    none = "So here no choice of windows beats keeping them at random."
    return _rivals("Against soft random with as many optimizer steps", changes, none)


def _rivals(start: str, changes: list[tuple[str, Change]], none_better: str) -> list[str]:
    """A sentence that holds families against one rival, and one more where none of them is better."""
    beaten = any(change.better or change.single for _, change in changes)
    return [f"{start} - {sorted_out(changes)}.{'' if beaten else f' {none_better}'}"] if changes else []


def _tail(cell: Cell) -> list[str]:
    result = cell.drawing.result if cell.drawing else None
    if result is None or result.hard_windows_change is None or result.hard_nodes_change is None:
        return []
    return [
        f"On the hardest 5% of the windows the MAE of drawing nodes is {percent(result.hard_windows_change)} against the best "
        f"full training, on the hardest 5% of the nodes {percent(result.hard_nodes_change)}."
    ]


def _sixth(cell: Cell) -> list[str]:
    families = [f for f in (cell.find(FULL), cell.drawing) if f and f.sixth]
    if not families:
        return []
    texts = [f"{family.label} {percent(family.sixth)}" for family in families if family.sixth]
    return [f"At a sixth of the cost or less, against batches of {USUAL_BATCH} at the whole cost: {', '.join(texts)}."]


def _overhead(cell: Cell) -> list[str]:
    results = [(f.label, f.result.overhead) for f in cell.families if f.name != FULL and f.result]
    known = [(label, share) for label, share in results if share is not None]
    if not known:
        return []
    (low_label, low), (label, high) = (pick(known, key=lambda item: item[1]) for pick in (min, max))
    span = f"{high:.1f}% ({label})" if label == low_label else f"between {low:.1f}% ({low_label}) and {high:.1f}% ({label})"
    return [f"Deciding and scoring took {span} of a run's time beyond the plain loss."]


def _diverged(cell: Cell) -> list[str]:
    found = [f"All runs diverged: {', '.join(cell.diverged)}."] if cell.diverged else []
    count = sum(row.diverged for row in cell.rows)
    return found + ([f"{count} of {len(cell.rows)} runs diverged and are left out."] if count else [])
