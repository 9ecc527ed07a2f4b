"""Rows made by hand for the tests of studies."""

import math
from dataclasses import fields, replace

from stprune.study.rows import Point, Row
from stprune.study.spec import Spec

SPEC = Spec(data="demand", model="stid", family="full", batch_size=64, learning_rate=2e-3, cost=4.0)


def row(spec=SPEC, *, mae=2.0, validation=None, nodes=100, curve=None, points=None, **values):
    """A run with made-up numbers: 10 s a pass, 1,000 windows, an error that halves over the run unless a curve is given.

    Args:
        spec: of the run, but for the fields of a spec among the values.
        mae: test MAE; the other test errors follow from it.
        validation: best validation MAE; None: the test MAE.
        nodes: of the series.
        curve: (share of the budget, validation MAE), or `points` as they stand in the row.
        values: fields of the spec, and other fields of the row.
    """
    spec = replace(spec, **{field.name: values.pop(field.name) for field in fields(Spec) if field.name in values})
    cost, best = spec.cost, mae if validation is None else validation
    shares = curve or ((0.5, 2 * best), (1.0, best))
    points = points or tuple(Point(cost * s, 100, 20 * cost * s, 10 * cost * s, v) for s, v in shares)
    pairs = int(1000 * nodes * cost)
    made = {
        "num_nodes": nodes, "num_windows": 1000, "cost": cost, "pairs": pairs, "windows": pairs // nodes,
        "steps": pairs // (spec.batch_size * (spec.num_drawn or nodes)), "seconds": 20 * cost, "cpu_seconds": 10 * cost,
        "plan_seconds": 0.0, "loss_seconds": 1.0, "num_bytes": 8 * pairs,
        "best_mae": min((point.validation_mae for point in points), default=math.inf), "mae": mae, "rmse": 1.5 * mae,
        "mape": 10.0, "horizon_mae": (mae,) * 12, "hard_windows_mae": 3 * mae, "hard_nodes_mae": 4 * mae,
        "curve": tuple(points), "diverged": False,
        "machine": {"processor": "test", "device": "cpu", "threads": 1, "versions": {"torch": "2.13"}},
        "date": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    return Row(spec=spec, **(made | values))
