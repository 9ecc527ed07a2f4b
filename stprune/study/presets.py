"""Grids that have a name."""

from __future__ import annotations

from dataclasses import replace

from stprune.study.grid import Block, Grid
from stprune.study.series import load

DEMO = Block(
    data=("simbench",),
    models=("stid",),
    families=("full", "soft-random", "infobatch", "st-prune", "nodes-uniform", "windows-and-nodes"),
    cost=3.0,
    seeds=1,
    batches=(64, 16, 4, 1),
    node_batches=((64, 16.0), (64, 4.0), (64, 1.0), (16, 1.0)),
    rate_factors=(2.5,),
)
"""One series, one model, one seed: windows, nodes and both dropped, against full training at its best batch."""


def cut(data: str) -> str:
    """The name of a series cut to 12 nodes and 800 steps, or to as many as it has, for a quick run.

    Raises:
        ModuleNotFoundError, FileNotFoundError, ValueError: see `stprune.study.series.load`, which reads the series.

    Example:
        >>> cut("demand"), cut("demand?days=5&seed=1")
        ('demand?nodes=12&steps=800', 'demand?seed=1&nodes=12&steps=480')
    """
    steps, nodes = load(data).values.shape
    name, _, query = data.partition("?")
    kept = [each for each in query.split("&") if each and each.partition("=")[0] not in ("nodes", "days", "steps")]
    return f"{name}?{'&'.join([*kept, f'nodes={min(12, nodes)}', f'steps={min(800, steps)}'])}"


def demo(
    *,
    data: str = DEMO.data[0],
    model: str = DEMO.models[0],
    families: tuple[str, ...] = (),
    cost: float | None = None,
    seeds: int = DEMO.seeds,
    quick: bool = False,
) -> Grid:
    """The grid of `stprune demo`.

    Args:
        data: series, as `stprune.study.series.load` reads it.
        model: name of the model.
        families: beside full training; none: those of the demo.
        cost: budget of a run in passes over the training part; None: 3, and 0.5 for models that take much more time a pair.
        seeds: of each family's best setting.
        quick: cut the series to a few seconds of training, to see that everything works.

    Returns:
        A grid of one block.

    Raises:
        ValueError: a setting breaks its rule.
        ModuleNotFoundError, FileNotFoundError, ValueError: `quick`, and the series cannot be read.
    """
    if quick:
        data = cut(data)
    block = replace(
        DEMO,
        data=(data,),
        models=(model,),
        families=tuple(dict.fromkeys(("full", *families))) if families else DEMO.families,
        cost=cost if cost is not None else (DEMO.cost if model == "stid" else 0.5),
        seeds=seeds,
    )
    if quick:
        block = replace(block, cost=min(block.cost, 3.0), batches=(64, 16), node_batches=((64, 16.0), (64, 4.0)))
        return Grid((block,), note="A quick run on a cut series: it shows that everything works; its numbers mean nothing.")
    return Grid((block,))
