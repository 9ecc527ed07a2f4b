"""Planner: how many samples each epoch of a run keeps, and which."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, replace
from typing import Any

import torch

from stprune.methods import Method, SoftRandom, asked_count
from stprune.ops import _check
from stprune.ops.finite_mean import finite_stats
from stprune.ops.strata import Strata, checked_strata
from stprune.plan import EpochPlan, Plan, UniformPlan, make_plan
from stprune.plan_memory import PlanMemory
from stprune.quota import Quota, checked_quota, least_kept
from stprune.ranks import Ranks
from stprune.schedule import Schedule
from stprune.table import ScoreTable


@dataclass(frozen=True)
class Planner:
    """A run's rule for its epochs: a value, as nothing of it changes while the data set stays the same.

    Attributes:
        method, schedule, seed: of the run.
        fixed_length: every epoch has the schedule's `keep_ratio`.
        strata: the samples' strata, on the table's device; or None.
        min_per_stratum: quota of every stratum, or of each; 0 is none.
    """

    method: Method
    schedule: Schedule
    seed: int
    fixed_length: bool
    strata: Strata | None
    min_per_stratum: Quota

    def table(self, num_samples: int, ranks: Ranks, *, lean: bool) -> ScoreTable:
        """A table of unknown scores.

        Args:
            num_samples: of the training set.
            ranks: who takes part.
            lean: store no scores that nobody reads.
        """
        method = self.method
        stored = not (lean and method.uniform and self.strata is None)
        variance = method.track_variance
        return ScoreTable(num_samples, beta=method.beta, decay=method.decay, track_variance=variance, stored=stored)

    def to(self, device: torch.device) -> Planner:
        """The same rule with its strata on `device`."""
        return self if self.strata is None else replace(self, strata=self.strata.to(device))

    def grown(self, op: str, strata: torch.Tensor | None, new: int, rows: int, quota: Any = None) -> Planner:
        """The same rule for `new` samples more, at the ends of `rows` rows as in `ScoreTable.grow`.

        Args:
            strata: [new] int64 labels of the new samples, row by row; None where there are no strata or no new samples.
            quota: a user's min_per_stratum from now on; None leaves it.

        Raises:
            TypeError, ValueError: labels are missing, not wanted, or break their rule; or the quota does.
        """
        grown = self.strata
        if grown is None or strata is None:
            if (grown is None) != (strata is None) and (strata is not None or new > 0):
                rule = "be None for a sampler without strata" if grown is None else "label the new samples"
                raise ValueError(f"{op}: strata must {rule}, got {'None' if strata is None else f'{len(strata)} labels'}")
        else:
            if _check.index(op, "strata", strata).numel() != new:
                raise ValueError(f"{op}: strata must have one label for each of {new} new samples, got {strata.numel()}")
            old = grown.labels.long().view(rows, -1)
            labels = torch.cat([old, strata.to(old.device).view(rows, -1)], 1).flatten()
            grown = checked_strata(op, labels, labels.numel())
        quota = checked_quota(op, (self.min_per_stratum or None) if quota is None else quota, grown, self.method)
        return replace(self, strata=grown, min_per_stratum=quota)

    @functools.cached_property
    def _strata_digest(self) -> str | None:
        """A short name of the strata, the same for the same ones on any device."""
        if self.strata is None:
            return None
        return hashlib.sha256(self.strata.labels.cpu().numpy().tobytes()).hexdigest()[:16]

    def settings(self) -> dict[str, Any]:
        """What must be the same on every rank, and in a sampler that continues."""
        schedule = self.schedule
        return {
            "num_epochs": schedule.num_epochs,
            "keep_ratio": schedule.keep_ratio,
            "schedule": schedule.kind if isinstance(schedule.kind, str) else "function",
            "anneal": schedule.anneal,
            "seed": self.seed,
            "fixed_length": self.fixed_length,
            "min_per_stratum": self.min_per_stratum,
            "strata": self._strata_digest,
        } | {f"method.{name}": value for name, value in self.method.settings().items()}

    # --- how many ----------------------------------------------------------------------------------------------------

    def keep_ratio_at(self, epoch: int) -> float:
        """See `PruningSampler.keep_ratio_at`."""
        return self.schedule.keep_ratio if self.fixed_length else self.schedule(epoch)

    @property
    def constant_length(self) -> bool:
        """See `PruningSampler.constant_length`."""
        exact = self.method.exact_count and not self.method.needs_scores
        return self.fixed_length or (exact and self.schedule.constant)

    def most_at(self, epoch: int, num_samples: int) -> int:
        """How many samples of so many the epoch keeps, or an upper bound where that depends on the scores."""
        unknown = epoch == 0 and self.method.needs_scores and not self.fixed_length
        ratio = 1.0 if unknown or not self.method.exact_count else self.keep_ratio_at(epoch)
        least = 0 if self.strata is None else int(least_kept(self.strata, self.min_per_stratum).sum())
        return max(least, asked_count(self.method.ratio(ratio), num_samples))

    # --- which -------------------------------------------------------------------------------------------------------

    def plan(self, table: ScoreTable, memory: PlanMemory, *, epoch: int, scheduled: float) -> Plan:
        """The plan of an epoch.

        Args:
            table: the scores of earlier epochs; not modified.
            memory: where the plan may be made.
            epoch: which; scheduled: the keep ratio that the schedule asks for in it.
        """
        method, size = self.method, table.num_samples
        ratio = self.schedule.keep_ratio if self.fixed_length else scheduled
        if not table.stored:
            return UniformPlan(epoch, asked_count(method.ratio(ratio), size), size, self.seed)
        scores = method.scores_of(table.scores, table.variance)
        if self.fixed_length:
            if scheduled > ratio and method.ratio(ratio) < 1.0:
                method = SoftRandom()
            # Certain samples would break the fixed count: the unknown rank with the highest instead.
            stats = finite_stats(scores)
            highest = stats.largest if stats.count else 1.0
            scores = scores.nan_to_num(nan=highest, posinf=highest, neginf=highest)
        # On another device torch's allocator hands out the last plan's memory again.
        out = memory.take(asked_count(ratio, size)) if scores.device.type == "cpu" else None
        plan = make_plan(
            scores,
            method,
            keep_ratio=ratio,
            epoch=epoch,
            seed=self.seed,
            strata=self.strata,
            min_per_stratum=self.min_per_stratum,
            out=out,
        )
        memory.made(len(plan))
        return plan

    def dealt(self, table: ScoreTable, plan: Plan, *, position: int, share: int, drop_last: bool) -> tuple[ScoreTable, Plan]:
        """The table that this rank's steps write into, and its plan: just these, as every rank has the whole of both.

        Args:
            table, plan: the sampler's.
            position: of the order, at which the next pass begins.
            share: samples that each rank delivers in the whole epoch.
            drop_last: the order's tail goes to nobody.
        """
        return table, plan

    def saved(self, plan: Plan) -> dict[str, Any]:
        """What a state holds of a plan: `restored` makes it anew."""
        ids, weights = plan.columns()
        return {
            "count": len(plan),
            "planned": plan.num_samples,
            "indices": ids,
            "weights": weights,
            "mean_weight": plan.mean_weight,
        }

    def restored(self, op: str, table: ScoreTable, state: dict[str, Any]) -> Plan:
        """The plan of a state, checked, in memory of its own."""
        epoch = int(state["epoch"])
        # The data set may have grown since the plan was made.
        size = _check.integer(op, "planned", state["planned"], 0, table.num_samples)
        count = _check.integer(op, "count", state["count"], 0, size)
        if not table.stored:
            return UniformPlan(epoch, count, size, self.seed)
        weights = _check.vector(op, "weights", _check.floating(op, "weights", state["weights"])).cpu().clone()
        weights = weights.expand(count) if weights.numel() == 1 else weights
        given = state["indices"]
        indices = torch.arange(size) if given is None else _check.index(op, "indices", given).cpu().clone()
        if weights.numel() != count or indices.numel() != count:
            raise ValueError(
                f"{op}: indices and weights must have {count} entries, got {indices.numel()} and {weights.numel()}"
            )
        _check.ids(op, "indices", indices, size - 1)
        return EpochPlan(epoch, indices, weights, size, self.seed, float(state["mean_weight"]))
