"""What is timed of an epoch's plan: InfoBatch's rule and the budget rule, against the original's prune()."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from cases import Call, Case, scores

import stprune
from stprune.methods import Method, resolve
from stprune.ops.plan_budget import Buffers
from stprune.ops.strata import Strata, checked_strata
from stprune.plan import make_plan
from stprune.plan_memory import PlanMemory

STRATA = 24


def plans(n: int, device: torch.device) -> Iterator[Case]:
    """plan_epoch on n scores; every plan includes its whole shuffled order, as the original returns one."""
    keys = scores(n, "lognormal", device)
    strata = torch.arange(n, device=device) % STRATA
    # What a sampler keeps from one epoch to the next.
    order = torch.zeros(n, dtype=torch.int64, device=device)
    if device.type == "cpu":
        buffers = PlanMemory(n).take(n)
    else:
        buffers = Buffers(
            torch.zeros_like(order), torch.zeros(n, device=device), torch.zeros(n, dtype=torch.int32, device=device)
        )
    rivals: dict[str, Call] = {}
    if device.type == "cpu" and n <= 10**7:
        rivals["InfoBatch's prune()"] = _original(keys.numpy())
    for job, method, labels in (
        ("InfoBatch plan with order", "infobatch", None),
        ("budget plan with order (st-prune)", "st-prune", None),
        (f"budget plan with order and {STRATA} strata", "st-prune", strata),
        ("soft-random plan with order", "soft-random", None),
    ):

        def made(method: str = method, labels: torch.Tensor | None = labels) -> stprune.EpochPlan:
            return stprune.plan_epoch(keys, method=method, keep_ratio=0.5, epoch=1, seed=0, strata=labels)

        def with_order(made: Call = made) -> torch.Tensor:
            plan = made()
            return plan.order(0, len(plan))

        rule, shared = resolve("benchmark", method), None if labels is None else checked_strata("benchmark", labels, n)

        def into(rule: Method = rule, shared: Strata | None = shared) -> stprune.EpochPlan:
            return make_plan(keys, rule, keep_ratio=0.5, epoch=1, seed=0, strata=shared, out=buffers)

        def with_order_into(into: Call = into) -> torch.Tensor:
            plan = into()
            return stprune.shuffle(plan.indices, seed=0, epoch=1, out=order)

        yield Case(
            "plan",
            job,
            n,
            4 * n,
            with_order,
            rivals if method == "infobatch" else {},
            {"order left lazy": made, "out=": with_order_into, "out=, order left lazy": into},
        )


def _original(losses: np.ndarray) -> Call:
    """InfoBatch's prune(), written from its published rule (Algorithm 1): a Python list of ids, shuffled."""
    generator = np.random.RandomState(0)
    weights = np.ones(losses.size, dtype=np.float32)
    keep = 0.5

    def prune() -> list[int]:
        learned = losses < losses.mean()
        pool = np.where(learned)[0]
        remained = np.where(~learned)[0].tolist()
        chosen = generator.choice(pool, int(keep * len(pool)), replace=False)
        weights[:] = 1.0
        if len(chosen) > 0:
            weights[chosen] = 1 / keep
            remained.extend(chosen)
        generator.shuffle(remained)
        return remained

    return prune
