"""What a sampler saves, and how it continues from that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from stprune.plan import EpochPlan
from stprune.uniform_plan import UniformPlan
from stprune.unscored_table import UnscoredTable

if TYPE_CHECKING:
    from stprune.sampler import PruningSampler

_OP = "PruningSampler"
_VERSION = 1


def settings_of(sampler: PruningSampler) -> dict[str, Any]:
    """What must be the same in the sampler that continues; the number of ranks may differ."""
    return {
        "num_samples": sampler.table.num_samples,
        "num_epochs": sampler.num_epochs,
        "keep_ratio": sampler.keep_ratio,
        "method": sampler.method.name,
        "schedule": sampler.schedule.kind if isinstance(sampler.schedule.kind, str) else "function",
        "anneal": sampler.anneal,
        "seed": sampler.seed,
        "fixed_length": sampler.fixed_length,
        "num_nodes": sampler.num_nodes,
        "node_ratio": sampler.node_ratio,
        "granularity": sampler.granularity,
        "node_law": sampler.node_law.settings(),
    }


def save(sampler: PruningSampler) -> dict[str, Any]:
    """See `PruningSampler.state_dict`."""
    plan = sampler.plan
    listed = isinstance(plan, EpochPlan) and not plan.is_full
    position = min(sampler._start + sampler.table.num_counted * sampler.num_replicas, len(plan))
    return {
        "version": _VERSION,
        "settings": settings_of(sampler),
        "epoch": sampler.epoch,
        "position": position,
        "count": len(plan),
        "indices": plan.indices.clone() if listed else None,
        "weights": plan.weights.clone() if listed else None,
        "mean_weight": plan.mean_weight,
        "table": sampler.table.state_dict(),
        "node_law": sampler.node_law.state_dict(),
        "reported": sampler._reported,
    }


def restore(sampler: PruningSampler, state: dict[str, Any]) -> None:
    """See `PruningSampler.load_state_dict`."""
    if state.get("version") != _VERSION:
        raise ValueError(f"{_OP}.load_state_dict: version must be {_VERSION}, got {state.get('version')}")
    for name, mine in settings_of(sampler).items():
        if state["settings"][name] != mine:
            raise ValueError(
                f"{_OP}.load_state_dict: {name} must be {mine!r} as in this sampler, got {state['settings'][name]!r}"
            )
    sampler.table.load_state_dict(state["table"])
    sampler.node_law.load_state_dict(state["node_law"])
    sampler.epoch = int(state["epoch"])
    sampler._start = int(state["position"])
    sampler.table.restart_count()
    sampler._reported = bool(state["reported"])
    sampler._set_plan(_plan(sampler, state))


def _plan(sampler: PruningSampler, state: dict[str, Any]) -> EpochPlan | UniformPlan:
    num_samples = sampler.table.num_samples
    if isinstance(sampler.table, UnscoredTable):
        return UniformPlan(sampler.epoch, int(state["count"]), num_samples, sampler.seed)
    if state["indices"] is None:
        indices, weights = torch.arange(num_samples), torch.ones(1).expand(num_samples)
    else:
        indices, weights = state["indices"].cpu().clone(), state["weights"].cpu().clone()
    return EpochPlan(sampler.epoch, indices, weights, num_samples, sampler.seed, float(state["mean_weight"]))
