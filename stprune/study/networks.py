"""The models of a study, at its widths."""

from __future__ import annotations

from torch import nn

from stprune.models import STID, STAEformer
from stprune.study.problem import HISTORY, HORIZON, Problem
from stprune.study.spec import MODELS, Spec


def build(spec: Spec, problem: Problem) -> nn.Module:
    """A new model of the run; its initial weights are drawn from torch's global generator.

    Args:
        spec: of the run; `dim` is the width.
        problem: the series.

    Raises:
        ValueError: `spec.model` is no name from `MODELS`.
    """
    sizes = {"history": HISTORY, "horizon": HORIZON}
    if spec.model == "stid":
        return STID(problem.num_nodes, steps_per_day=problem.steps_per_day, dim=spec.dim, **sizes)
    if spec.model == "staeformer":
        return STAEformer(problem.num_nodes, steps_per_day=problem.steps_per_day, dim=spec.dim // 2, **sizes)
    raise ValueError(f"build: model must be one of {', '.join(MODELS)}, got {spec.model}")
