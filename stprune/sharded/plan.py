"""ShardedPlan: an epoch's plan of which each rank holds what it owns and what it trains on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from stprune.nodes import NodeSampler
from stprune.ops import _check
from stprune.ops.order_positions import order_positions
from stprune.ops.shuffle import permute_at
from stprune.plan import Plan, weights_in
from stprune.plan_memory import PlanMemory
from stprune.planner import Planner
from stprune.ranks import ALONE, Ranks
from stprune.sharded.owners import Owners
from stprune.sharded.rules import RULES, kept, mean_weight
from stprune.sharded.strata import calibrate
from stprune.sharded.table import ShardedTable


@dataclass(frozen=True)
class ShardedPlan:
    """The kept samples of an epoch: this rank's share of the order, and which of its own samples are in the plan.

    Attributes:
        epoch, seed: what the order is keyed by.
        num_samples: size of the training set.
        count: kept samples of all ranks.
        mean_weight: of all kept samples.
        own: [k] int64 kept ids of this rank's own range, ascending; None where all samples are kept.
        own_weights: [k] float32, or [1] where all samples are kept.
        local: [m] int64 distinct ids that this rank trains on, ascending.
        weights: [m] float32, aligned with them.
        shares: this rank's ids in the order of training, by the position at which a pass begins.
    """

    epoch: int
    seed: int
    num_samples: int
    count: int
    mean_weight: float
    own: torch.Tensor | None
    own_weights: torch.Tensor
    local: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    weights: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    shares: dict[int, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.count

    @property
    def indices(self) -> torch.Tensor:
        """[m] int64: the ids that this rank trains on, ascending."""
        return self.local

    def order(self, start: int, stop: int, device: torch.device | None = None) -> torch.Tensor:
        """Refused: no rank holds the whole order.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("ShardedPlan.order: sharded must be False for the order of all ranks; `share` has this rank's")

    def share(self, start: int, number: int, rank: int, num_replicas: int, device: torch.device | None = None) -> torch.Tensor:
        """This rank's ids from position `start` of the order on, [number] int64.

        Raises:
            ValueError: no pass that this rank has ids for comes by that position.
        """
        for base in sorted(self.shares, reverse=True):
            at, off = divmod(start - base, num_replicas)
            if start >= base and off == 0 and at + number <= len(self.shares[base]):
                return self.shares[base][at : at + number].to(device)
        raise ValueError(
            f"ShardedPlan.share: start must be a position of a pass that begins at one of {sorted(self.shares)}, got {start}"
        )

    def positions(self, index: torch.Tensor) -> torch.Tensor:
        """Refused: ids do not tell where they stand.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("ShardedPlan.positions: sharded must be False for positions of ids")

    def lookup(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights [B] of ids [B] of this rank's share, 0 where an id is not in it, and whether it is."""
        return weights_in(self.local, self.weights, index)

    def renumbered(self, before: int, after: int) -> ShardedPlan:
        """Refused: the ranks' ranges would change.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("ShardedPlan.renumbered: sharded must be False to grow")

    def columns(self) -> tuple[torch.Tensor | None, torch.Tensor]:
        """What a training step looks weights up in: every place of this rank's table, and weights [m]."""
        return None, self.weights


def check_sharded(op: str, planner: Planner, ranks: Ranks, node_sampler: NodeSampler) -> None:
    """Refuse what needs every sample's score on every rank.

    Raises:
        ValueError: a setting does so; the message names it.
    """
    method = planner.method
    if not method.uniform and (type(method) not in RULES or getattr(method, "permutation", None) is not None):
        allowed = ", ".join(repr(name) for name in ("full", "soft-random", *(rule.name for rule in RULES)))
        raise ValueError(
            f"{op}: method must be one of {allowed} where sharded=True, as others look at all samples' scores at once, "
            f"got {method!r}"
        )
    if planner.fixed_length and not method.uniform:
        raise ValueError(f"{op}: fixed_length must be False where sharded=True and the method has scores, got True")
    if planner.strata is not None and (method.uniform or planner.min_per_stratum):
        name = "strata" if method.uniform else "min_per_stratum"
        raise ValueError(f"{op}: {name} must be None where sharded=True and the method is {method.name!r}, got a value")
    if node_sampler.wants_scores:
        raise ValueError(
            f"{op}: node_sampler must draw without scores where sharded=True, as scores of pairs are on every rank, "
            f"got {node_sampler.name!r}"
        )
    if ranks.group == ALONE:
        raise ValueError(f"{op}: process_group must be a group where sharded=True, got {ALONE!r}")


class ShardedPlanner(Planner):
    """The planner of a run whose table is spread over ranks. `plan` and `dealt` are collectives."""

    def table(self, num_samples: int, ranks: Ranks, *, lean: bool) -> ShardedTable:  # type: ignore[override]
        return ShardedTable(num_samples, ranks, beta=self.method.beta, decay=self.method.decay)

    def plan(self, table: ShardedTable, memory: PlanMemory, *, epoch: int, scheduled: float) -> ShardedPlan:  # type: ignore[override]
        owners, n, ratio = table.owners, table.num_samples, self.method.ratio(scheduled)
        if not table.known or ratio == 1.0 or n == 0:
            return ShardedPlan(epoch, self.seed, n, n, 1.0, None, torch.ones(1))
        index, weights = kept(owners, self.method, table.scores, keep_ratio=ratio, seed=self.seed, epoch=epoch)
        counts = [row[0] for row in owners.numbers(len(index))]
        index = index + owners.start
        if self.strata is not None and self.method.unbiased:
            weights = calibrate(owners, weights, index, counts, self.strata)
        mean = mean_weight(owners, weights, counts)
        return ShardedPlan(epoch, self.seed, n, sum(counts), mean, index, weights)

    def dealt(self, table: ShardedTable, plan: ShardedPlan, *, position: int, share: int, drop_last: bool) -> tuple[Any, Plan]:  # type: ignore[override]
        owners = table.owners
        found = {}
        for start in {0, position}:
            left = share * owners.num_ranks - start
            number = max(0, left // owners.num_ranks if drop_last else -(-left // owners.num_ranks))
            found[start] = _dealt(owners, plan, table.scores if table.known else None, start, number)
        ids = torch.cat([columns[0] for columns in found.values()])
        local, place = ids.unique(return_inverse=True)
        weights, scores = (torch.cat(column) for column in list(zip(*found.values(), strict=True))[1:])
        # Of an id that comes twice (padding) both entries are the same.
        weights, scores = (column.new_empty(len(local)).scatter_(0, place, column) for column in (weights, scores))
        table.deal(local, scores)
        shares = {start: columns[0].cpu() for start, columns in found.items()}
        plan = replace(plan, local=local.cpu(), weights=weights.cpu(), shares=shares)
        return table.share, plan

    def grown(self, op: str, strata: torch.Tensor | None, new: int, rows: int, quota: Any = None) -> ShardedPlanner:
        """Refused: the ranks' ranges would change.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{op}: sharded must be False to grow, as the ranks' ranges would change, got True")

    def saved(self, plan: ShardedPlan) -> dict[str, Any]:  # type: ignore[override]
        return super().saved(plan) | {"indices": plan.own, "weights": plan.own_weights}

    def restored(self, op: str, table: ShardedTable, state: dict[str, Any]) -> ShardedPlan:  # type: ignore[override]
        owners, own = table.owners, state["indices"]
        count = _check.integer(op, "count", state["count"], 0, table.num_samples)
        moments = owners.numbers(state["epoch"], state["position"], count)
        if any(moment != moments[0] for moment in moments):
            raise ValueError(f"{op}: state must be of the same moment on every rank, got (epoch, position, count) {moments}")
        weights = _check.vector(op, "weights", _check.floating(op, "weights", state["weights"]))
        if own is not None:
            own = _check.index(op, "indices", own)
            if len(own) != len(weights) or bool(((own < owners.start) | (own >= owners.stop)).any()):
                raise ValueError(f"{op}: indices must be this rank's own and have one weight each, got {len(weights)} weights")
            own, weights = own.to(table.device), weights.to(table.device)
        mean = float(state["mean_weight"])
        return ShardedPlan(int(state["epoch"]), self.seed, table.num_samples, count, mean, own, weights)


def _dealt(
    owners: Owners, plan: ShardedPlan, scores: torch.Tensor | None, start: int, number: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, weights and scores [number] of this rank's samples from a position of the order on, in that order.

    Owners know where each kept sample stands in the order, and so which rank trains on it when: they send it there, in one
    message of 24 bytes each. Where nothing is known of any sample each rank finds its own ids itself.

    Args:
        owners: who owns which samples.
        plan: the epoch's plan.
        scores: [stop - start] of this rank's own samples; None where no sample is known.
        start: the position.
        number: how many samples each rank trains on from there; those past the order's end are its first ones again.
    """
    count, ranks, key = len(plan), owners.num_ranks, {"seed": plan.seed, "epoch": plan.epoch}
    if count == 0 or number == 0:
        nothing = torch.empty(0)
        return nothing.long(), nothing, nothing
    end = start + number * ranks
    if scores is None:
        position = torch.arange(start + owners.rank, end, ranks)
        ids = permute_at(position % count, count, **key)
        return ids, torch.ones(number), torch.full((number,), torch.inf)
    device = scores.device
    if plan.own is None:
        own, before = torch.arange(owners.start, owners.stop, device=device), owners.start
        weights = torch.ones(1, device=device).expand(len(own))
    else:
        own, weights = plan.own, plan.own_weights
        before = sum(row[0] for row in owners.numbers(len(own))[: owners.rank])
    at = order_positions(torch.arange(before, before + len(own), device=device), count, **key)
    here = ((at >= start) & (at < end)).nonzero().flatten()
    at = at[here]
    # Padding: the order's first samples again.
    again = torch.arange(max(count, start), max(count, end), device=device)
    source = permute_at(again % count, count, **key) - before
    mine = (source >= 0) & (source < len(own))
    at, here = torch.cat([at, again[mine]]) - start, torch.cat([here, source[mine]])
    rows = [at // ranks, own[here], weights[here], scores[own[here] - owners.start]]
    turn, *columns = owners.route(at % ranks, rows)
    order = torch.argsort(turn)
    ids, weights, scores = (column[order] for column in columns)
    assert len(ids) == number
    return ids, weights, scores
