"""What the numbers say, in sentences that are computed from them."""

from __future__ import annotations

from stprune.demo.delivery import DeliveryTimes
from stprune.demo.options import PRUNERS
from stprune.demo.records import Row

# Two trainings of one setting with other seeds differed by up to about this much (in % of the MAE) on the demo's data, so
# a smaller difference of single runs says nothing.
SEED_NOISE = 1.0
OVERHEAD_LIMIT = 2.0


def sentences(
    rows: list[Row], labels: dict[str, str], *, num_seeds: int, num_nodes: int = 0, repeated_nodes: int = 0
) -> list[str]:
    """State what the table shows, also where pruning loses.

    Args:
        rows: one per run, "full" among them.
        labels: label of every run name.
        num_seeds: how many seeds the rows average over.
        num_nodes: nodes of the series.
        repeated_nodes: how many of them are constant or copy another.

    Returns:
        One sentence or two per finding.
    """
    by_name = {row.name: row for row in rows}
    found = [_against_full(row, labels, num_seeds) for row in rows if row.name not in ("full", "full-short")]
    if "full-short" in by_name:
        found += _window_pruning(by_name, labels, num_seeds)
    if "nodes" in by_name and "st-prune" in by_name:
        found.append(_nodes_against_windows(by_name["nodes"], by_name["st-prune"]))
    found += _overhead(rows, labels)
    if repeated_nodes and "nodes" in by_name:
        found.append(
            f"{repeated_nodes} of the {num_nodes} nodes are constant or copy another up to scale: dropping nodes may be "
            "easier here than in a series of distinct ones."
        )
    if num_seeds == 1:
        found.append(
            f"One seed: differences below about {SEED_NOISE:.0f}% of the MAE can be chance. --seeds 3 shows the spread."
        )
    return found


def delivery_sentence(delivery: dict[str, DeliveryTimes]) -> str:
    """State what `WindowLoader` is worth against the usual DataLoader.

    Args:
        delivery: from `compare_deliveries`.

    Returns:
        One sentence.
    """
    before, after = delivery["DataLoader"], delivery["WindowLoader"]
    change = 100 * (after.training / before.training - 1)
    return (
        f"An epoch of full training took {before.training:.2f} s with batches of a DataLoader and {after.training:.2f} s with "
        f"WindowLoader ({change:+.0f}%), which every run here uses; making the batches alone took {1e3 * before.alone:.0f} ms "
        f"and {1e3 * after.alone:.0f} ms."
    )


def _noise(row: Row, num_seeds: int) -> float:
    # With several seeds the noise is measured: twice the standard error of the mean change.
    return SEED_NOISE if num_seeds == 1 else 2 * row.mae_change[1] / num_seeds**0.5


def _against_full(row: Row, labels: dict[str, str], num_seeds: int) -> str:
    change, noise = row.mae_change[0], _noise(row, num_seeds)
    if abs(change) <= noise:
        quality = f"the same test MAE within the noise ({change:+.1f}%)"
    else:
        quality = f"a test MAE {abs(change):.1f}% {'lower' if change < 0 else 'higher'}"
    speed = row.speedup[0]
    if speed >= 1.05:
        cost = f"{speed:.1f} times as fast as full training"
    elif speed >= 0.95:
        cost = "as long as full training"
    else:
        cost = f"{1 / speed:.2f} times as long as full training"
    if change > noise:
        end = ": faster, but less accurate." if speed >= 1.05 else ": pruning loses here."
    elif speed >= 0.95:
        end = ": pruning wins here." if change < -noise else ": pruning costs nothing here." if speed >= 1.05 else "."
    else:
        end = "."
    verb = "trained" if speed >= 1.05 else "took"
    reached = (
        ""
        if row.target_share is None
        else (f" It reached the full run's best validation MAE after {row.target_share:.0%} of the full run's time.")
    )
    name = labels[row.name]
    return f"{name[0].upper()}{name[1:]} {verb} {cost} and gave {quality}{end}{reached}"


def _window_pruning(by_name: dict[str, Row], labels: dict[str, str], num_seeds: int) -> list[str]:
    """Dropping windows saves steps; does it beat simply taking fewer steps?"""
    short = by_name["full-short"]
    rivals = [row for row in by_name.values() if row.name in PRUNERS]
    # Runs of about the same cost only: InfoBatch at the same setting keeps more and takes more steps.
    equal = [row for row in rivals if row.steps <= 1.1 * short.steps]
    if not equal:
        return []
    better: list[str] = []
    worse: list[str] = []
    same: list[str] = []
    for row in equal:
        change = 100 * (row.mae[0] / short.mae[0] - 1)
        noise = max(_noise(row, num_seeds), _noise(short, num_seeds))
        (same if abs(change) <= noise else better if change < 0 else worse).append(f"{labels[row.name]} ({change:+.1f}%)")
    parts = [
        f"{word}: {', '.join(names)}"
        for word, names in (("better", better), ("no different within the noise", same), ("worse", worse))
        if names
    ]
    text = f"Against full training cut to the same number of optimizer steps - {'; '.join(parts)}."
    if not better:
        text += " So here, choosing which windows to drop gains nothing over simply training for fewer steps."
    return [text]


def _nodes_against_windows(nodes: Row, windows: Row) -> str:
    saved = "less" if nodes.seconds[0] < windows.seconds[0] else "more"
    lower = "lower" if nodes.mae[0] < windows.mae[0] else "higher"
    gap = 100 * (nodes.mae[0] / windows.mae[0] - 1)
    return (
        f"Dropping nodes inside every window took {saved} time than dropping windows ({nodes.seconds[0]:.0f} s against "
        f"{windows.seconds[0]:.0f} s) and gave the {lower} MAE ({gap:+.1f}%): it keeps all optimizer steps, and nodes of one "
        "window tell much the same."
    )


def _overhead(rows: list[Row], labels: dict[str, str]) -> list[str]:
    full = next(row for row in rows if row.name == "full")
    pruned = [row for row in rows if row.name not in ("full", "full-short")]
    # A run of more steps than full training pays for each of them: it is told apart.
    longer = [row for row in pruned if row.steps > full.steps]
    others = [row for row in pruned if row.steps <= full.steps]
    texts = []
    if others:
        worst = max(others, key=lambda row: row.overhead_of_full)
        texts.append(
            f"Deciding and scoring {_cost(worst, at_worst=True)} of the full run's time ({labels[worst.name]}; "
            f"{worst.overhead:.2f}% of its own), {_kept(worst)}."
        )
    texts += [
        f"{labels[row.name]} takes {row.steps / full.steps:.1f} times as many steps as full training, and deciding and scoring "
        f"{_cost(row)} of the full run's time ({row.overhead:.2f}% of its own), {_kept(row)}."
        for row in longer
    ]
    return texts


def _cost(row: Row, *, at_worst: bool = False) -> str:
    """What pruning took beyond the plain masked loss, or saved where the scoring loss was measured to be faster than it."""
    if row.overhead_of_full < 0:
        return f"saved {'at least ' * at_worst}{-row.overhead_of_full:.2f}%"
    return f"cost {'at most ' * at_worst}{row.overhead_of_full:.2f}%"


def _kept(row: Row) -> str:
    if row.overhead_of_full < 0:
        return "as the fused loss with scores took less time than the plain masked loss alone"
    return f"{'within' if row.overhead_of_full <= OVERHEAD_LIMIT else 'above'} the limit of {OVERHEAD_LIMIT:.0f}%"
