"""reshard: the states of a run's ranks as those of another number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from stprune.ops import _check
from stprune.sharded.owners import bounds_of

_OP = "reshard"
_SAME = ("version", "settings", "epoch", "position", "finished", "count", "mean_weight")


def reshard(states: Sequence[dict[str, Any]], num_replicas: int, rank: int) -> dict[str, Any]:
    """The state that one of `num_replicas` ranks loads, from the states of all ranks of a run with sharded=True.

    Args:
        states: `sampler.state_dict()` of every rank, in any order; not modified.
        num_replicas: of the run that goes on.
        rank: whose state is asked for, in [0, num_replicas - 1].

    Returns:
        A state for `load_state_dict`. In the middle of an epoch the ranks go on with the rest of the same plan.

    Raises:
        TypeError: `states` does not hold states.
        ValueError: a state is missing, one comes twice, or they were saved at different moments.

    Example:
        >>> import stprune
        >>> options = {"num_epochs": 4, "method": "top-k", "sharded": True}
        >>> state = stprune.PruningSampler(8, **options).state_dict()
        >>> stprune.reshard([state], 2, 1)["table"]["range"]
        [0, 8, 2]
    """
    num_replicas = _check.integer(_OP, "num_replicas", num_replicas, 1)
    rank = _check.integer(_OP, "rank", rank, 0, num_replicas - 1)
    for state in states:
        if not isinstance(state, dict) or not isinstance(state.get("table"), dict) or "range" not in state["table"]:
            raise TypeError(f"{_OP}: states must be state_dict() of samplers with sharded=True, got {type(state).__name__}")
    states = sorted(states, key=lambda state: list(state["table"]["range"]))
    ends = [0, *(state["table"]["range"][1] for state in states)]
    size = states[0]["settings"]["num_samples"] if states else -1
    ranges = [list(state["table"]["range"]) for state in states]
    if (
        [first for first, _, _ in ranges] != ends[:-1]
        or ends[-1] != size
        or {number for _, _, number in ranges} != {len(ranges)}
    ):
        raise ValueError(f"{_OP}: states must be of all ranks of one run, each once, got ranges {ranges}")
    for state in states:
        for name in _SAME:
            if state[name] != states[0][name]:
                raise ValueError(
                    f"{_OP}: states must be of one moment of a run, got {name} {states[0][name]!r} and {state[name]!r}"
                )
    start, stop = bounds_of(size, num_replicas)[rank : rank + 2]
    parts = [(state, slice(max(0, start - low), max(0, stop - low))) for state, low in zip(states, ends[:-1], strict=True)]
    table = states[0]["table"] | {"range": [start, stop, num_replicas]}
    for name in ("scores", "marks"):
        table[name] = torch.cat([state["table"][name][part] for state, part in parts])
    joined = states[0] | {"table": table}
    if states[0]["indices"] is not None:
        for name in ("weights", "indices"):
            joined[name] = torch.cat([state[name][_inside(state["indices"], start, stop)] for state in states])
    return joined


def _inside(index: torch.Tensor, start: int, stop: int) -> slice:
    """Where ascending ids [k] lie in [start, stop)."""
    low, high = torch.searchsorted(index, torch.tensor([start, stop], device=index.device)).tolist()
    return slice(low, high)
