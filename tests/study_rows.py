"""Rows made by hand for the tests of studies."""

from dataclasses import replace

from stprune.study.rows import Point, Row
from stprune.study.spec import Spec

SPEC = Spec(data="demand", model="stid", family="full", batch_size=64, learning_rate=2e-3, cost=4.0)


def row(spec=SPEC, *, mae=1.0, best_mae=None, curve=None, diverged=False, **values):
    """A row of a spec whose numbers follow from its MAE, unless they are given; the curve falls to the best MAE."""
    best = mae if best_mae is None else best_mae
    points = [(share, best * (1.5 - share / 2)) for share in (0.25, 0.5, 1.0)] if curve is None else curve
    values = {
        "num_nodes": 100, "num_windows": 1000, "cost": spec.cost, "pairs": int(spec.cost * 100_000),
        "windows": int(spec.cost * 1000), "steps": int(spec.cost * 1000) // spec.batch_size, "seconds": 10.0 * spec.cost,
        "cpu_seconds": 9.0 * spec.cost, "plan_seconds": 0.1, "loss_seconds": 0.2, "num_bytes": 10**6, "rmse": 1.5 * mae,
        "mape": 10.0 * mae, "horizon_mae": (mae,) * 12, "hard_windows_mae": 2.0 * mae, "hard_nodes_mae": 3.0 * mae,
        "machine": {"processor": "one", "cores": 2, "versions": {"stprune": "0.1.0", "torch": "2.13.0"}},
        "date": "2026-11-28T12:00:00+00:00",
    } | values  # fmt: skip
    whole = tuple(Point(share * spec.cost, int(share * 100), share * 10.0, share * 9.0, value) for share, value in points)
    return Row(spec=spec, best_mae=best, mae=mae, curve=whole, diverged=diverged, **values)


def seeds(count, spec=SPEC, **values):
    """Rows of one setting with so many seeds."""
    return [row(replace(spec, seed=seed), **values) for seed in range(count)]
