"""PruningSampler: the epoch plan as a torch sampler."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sized
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.utils.data.distributed import DistributedSampler

from stprune.batches import CHUNK, Batches
from stprune.methods import Method, resolve
from stprune.ops import _check, draw_nodes
from stprune.plan import EpochPlan, PlanWeights, checked_strata, plan_epoch
from stprune.schedule import Schedule
from stprune.table import ScoreTable

_OP = "PruningSampler"
_STATE_VERSION = 1


class PruningSampler(DistributedSampler[int]):
    """Yields, each epoch, the ids of the samples that still teach something, in a fresh random order.

    Pass it as `DataLoader(sampler=...)`, call `set_epoch` at the start of every epoch as with any distributed sampler, and
    compute the loss with `stprune.PrunedLoss(sampler)`, which scores the samples and weighs their gradients. Only
    `set_epoch` moves it on: `iter` returns a fresh iterator with no side effect, and `len` is right before `iter`. It
    shards itself over ranks (it is a DistributedSampler, so trainers leave it alone) and touches no global random state.

    The first epoch is full, since every score is unknown, unless the method needs no scores or `fixed_length` is set.

    Args:
        data_source: the training set, or its length.
        num_epochs: length of the run, at least 1.
        keep_ratio: share of the samples an epoch keeps, in (0, 1].
        method: "st-prune", "infobatch", "soft-random", "rs2", "epsilon-greedy", "ucb", "seta", "top-k", "full", or an object
            with the functions `inclusion` and `weights`.
        schedule: "step", "cosine", "none", or a function of the epoch that returns the keep ratio.
        anneal: share of the run after which the schedule rises to everything, in [0, 1].
        seed: in [0, 2^63); the same on every rank.
        strata: [num_samples] int64 labels (see `stratify`), whose shares of the total weight are kept (eq. 10); or None.
        num_replicas: number of ranks; None asks torch.distributed, 1 where it is not initialised.
        rank: this process's rank; None asks torch.distributed.
        drop_last: drop the tail that does not divide evenly over ranks (and, in `batches`, over batches) instead of padding
            it with the first ids of the order.
        fixed_length: every epoch, also the first and the annealed ones, has round(keep_ratio * num_samples) samples, for
            OneCycleLR and for trainers that cache the length. Unknown samples then rank first instead of being certain,
            and annealed epochs are uniform draws.
        num_nodes: nodes in every sample; needed by `nodes`.
        node_ratio: share of the nodes drawn in every window, in (0, 1].

    Raises:
        TypeError, ValueError: an argument breaks its rule; the message names it.

    Example:
        >>> import stprune
        >>> sampler = stprune.PruningSampler(8, num_epochs=4, keep_ratio=0.5, method="soft-random")
        >>> sampler.set_epoch(1)
        >>> len(sampler), sorted(sampler) == sampler.plan.indices.tolist()
        (4, True)

    Source:
        arXiv 2602.19113; method.md, eq. 5-14. Planning is O(num_samples) once per epoch.
    """

    def __init__(
        self,
        data_source: int | Sized,
        *,
        num_epochs: int,
        keep_ratio: float = 0.5,
        method: str | Method = "st-prune",
        schedule: str | Callable[[int], float] = "step",
        anneal: float = 0.875,
        seed: int = 0,
        strata: torch.Tensor | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
        drop_last: bool = False,
        fixed_length: bool = False,
        num_nodes: int | None = None,
        node_ratio: float = 1.0,
    ) -> None:
        # DistributedSampler.__init__ is not called: it would ask for a process group and fix the length.
        size = data_source if isinstance(data_source, int) else _sized(data_source)
        size = _check.integer(_OP, "data_source", size, 0, 2**62)
        self.num_epochs = _check.integer(_OP, "num_epochs", num_epochs, 1, 2**32 - 1)
        self.keep_ratio = _check.real(_OP, "keep_ratio", keep_ratio, 0.0, 1.0, low_open=True)
        self.seed, _ = _check.seed_and_epoch(_OP, seed, 0)
        self.node_ratio = _check.real(_OP, "node_ratio", node_ratio, 0.0, 1.0, low_open=True)
        self.num_nodes = None if num_nodes is None else _check.integer(_OP, "num_nodes", num_nodes, 1, 2**31 - 1)
        if self.num_nodes is None and self.node_ratio < 1.0:
            raise ValueError(f"{_OP}: num_nodes must be given when node_ratio is below 1, got None")
        self.anneal = _check.real(_OP, "anneal", anneal, 0.0, 1.0)
        self.method = resolve(method)
        self.schedule = Schedule(schedule, self.num_epochs, self.keep_ratio, self.anneal)
        self.strata = None if strata is None else checked_strata(_OP, strata, size).clone()
        self.num_replicas, self.rank = _ranks(num_replicas, rank)
        self.drop_last = bool(drop_last)
        self.fixed_length = bool(fixed_length)
        if self.fixed_length and not self.method.exact_count:
            raise ValueError(f"{_OP}: fixed_length must be False for a method without an exact count, got {self.method.name!r}")
        self.table = ScoreTable(size, beta=self.method.beta, decay=self.method.decay, track_variance=self.method.track_variance)
        self.epoch = 0
        self.shuffle = True
        self._plan: EpochPlan | None = None
        self._weights: PlanWeights | None = None
        self._start = 0  # position of the epoch's order that iteration begins at: 0 unless resumed
        self._reported = False

    def __repr__(self) -> str:
        return (
            f"PruningSampler(num_samples={self.table.num_samples}, method={self.method.name!r}, "
            f"keep_ratio={self.keep_ratio}, epoch={self.epoch}/{self.num_epochs})"
        )

    # --- the epoch ---------------------------------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch: exchange scores between ranks, age the table, and plan. A second call for it does nothing.

        Args:
            epoch: in [0, num_epochs).
        """
        epoch = _check.integer(f"{_OP}.set_epoch", "epoch", epoch, 0, self.num_epochs - 1)
        if self._plan is not None and epoch == self.epoch:
            return
        self.synchronize()
        if epoch > self.epoch:
            self.table.advance(epoch - self.epoch)
        self.epoch = epoch
        self._start = 0
        self.table.restart_count()
        self._report_nonfinite()
        self._set_plan(self._make_plan())

    def synchronize(self) -> None:
        """Exchange scores between ranks; `set_epoch` does it. A collective where torch.distributed spans the ranks.

        Call it on every rank before `state_dict()` in the middle of a distributed epoch, so that the state holds every
        rank's scores.
        """
        if self.num_replicas > 1 and _is_distributed() and distributed.get_world_size() == self.num_replicas:
            self.table.synchronize()

    @property
    def plan(self) -> EpochPlan:
        """The current epoch's plan; epoch 0 is planned at first use."""
        if self._plan is None:
            return self._set_plan(self._make_plan())
        return self._plan

    def _set_plan(self, plan: EpochPlan) -> EpochPlan:
        self._plan = plan
        self._weights = PlanWeights(plan, self.table.device)
        return plan

    def weights_of(self, index: torch.Tensor, *, per_step: bool = True) -> torch.Tensor:
        """The weights of samples in the current plan, see `PlanWeights.of`."""
        if self._weights is None:
            self._set_plan(self.plan)
        assert self._weights is not None
        return self._weights.of(index, per_step=per_step)

    def keep_ratio_at(self, epoch: int) -> float:
        """The share of samples the schedule asks for in `epoch`."""
        return self.keep_ratio if self.fixed_length else self.schedule(epoch)

    def _make_plan(self) -> EpochPlan:
        ratio = self.schedule(self.epoch)
        method: str | Method = self.method
        scores = self.method.scores_of(self.table)
        if self.fixed_length:
            if ratio > self.keep_ratio:
                method = "soft-random"
            ratio = self.keep_ratio
            # Certain samples would break the fixed count: the unknown rank with the highest instead.
            known = torch.isfinite(scores)
            scores = torch.where(known, scores, scores[known].max() if bool(known.any()) else 1.0)
        plan = plan_epoch(scores, method=method, keep_ratio=ratio, epoch=self.epoch, seed=self.seed, strata=self.strata)
        # Loaders ask for ids on the host: the kept ones come over once per epoch.
        return plan.to("cpu")

    def _report_nonfinite(self) -> None:
        count = self.table.num_nonfinite()
        if count and not self._reported:
            self._reported = True
            warnings.warn(
                f"stprune: {count} of {self.table.num_samples} samples were scored NaN or infinite. They are kept, with weight "
                "1, and enter no mean. Reported once; see sampler.table.num_nonfinite().",
                RuntimeWarning,
                stacklevel=3,
            )

    # --- ids ---------------------------------------------------------------------------------------------------------

    @property
    def num_samples(self) -> int:  # type: ignore[override]
        """Samples this rank delivers in the current epoch, as DistributedSampler calls it."""
        return len(self)

    @property
    def total_size(self) -> int:  # type: ignore[override]
        """Samples all ranks deliver together in the current epoch."""
        return len(self) * self.num_replicas

    def __len__(self) -> int:
        left = len(self.plan) - self._start
        return left // self.num_replicas if self.drop_last else -(-left // self.num_replicas)

    def __iter__(self) -> Iterator[int]:
        for ids in self.chunks():
            yield from ids.tolist()

    def batches(self, batch_size: int, *, drop_last: bool | None = None, order: torch.Tensor | None = None) -> Batches:
        """The epoch's ids as arrays, without a Python int per sample.

        Args:
            batch_size: ids per batch, at least 1.
            drop_last: drop a last batch that is not full; None takes the sampler's own.
            order: [len(plan)] int64, the plan's ids in another order (see `chunk_order`); None takes the plan's own.

        Returns:
            An object with `len` that yields [batch_size] int64 NumPy arrays; DataLoader takes it as `batch_sampler`.
        """
        batch_size = _check.integer(f"{_OP}.batches", "batch_size", batch_size, 1)
        return Batches(self, batch_size, self.drop_last if drop_last is None else bool(drop_last), order)

    def nodes(self, index: torch.Tensor | np.ndarray[Any, Any]) -> torch.Tensor:
        """The drawn nodes of windows: ceil(node_ratio * num_nodes) distinct ones each, uniform, new every epoch.

        A pure function of (seed, epoch, window): nothing is stored, and every rank, device and worker draws the same.

        Args:
            index: [B] int64 sample ids, tensor or array.

        Returns:
            [B, m] int64, ascending in each row, on the device of `index`.
        """
        if self.num_nodes is None:
            raise ValueError(f"{_OP}.nodes: num_nodes must be given to the sampler, got None")
        if isinstance(index, np.ndarray):
            index = torch.from_numpy(index)
        # Rounded before the ceiling: 0.1 * 30 is 3.0000000000000004 in binary.
        count = max(1, math.ceil(round(self.node_ratio * self.num_nodes, 9)))
        return draw_nodes(index, num_nodes=self.num_nodes, count=count, seed=self.seed, epoch=self.epoch)

    def total_steps(self, batch_size: int) -> int:
        """Optimizer steps of the whole run on this rank: what OneCycleLR asks for.

        Exact for methods with an exact count as long as every sample of a full epoch gets a score; an upper bound for
        "infobatch" and "seta", whose counts depend on the scores.
        """
        batch_size = _check.integer(f"{_OP}.total_steps", "batch_size", batch_size, 1)
        total = 0
        for epoch in range(self.num_epochs):
            ratio = self.keep_ratio_at(epoch)
            unknown = epoch == 0 and self.method.needs_scores and not self.fixed_length
            if unknown or not self.method.exact_count:
                ratio = 1.0
            count = max(1, round(ratio * self.table.num_samples)) if self.table.num_samples else 0
            local = count // self.num_replicas if self.drop_last else -(-count // self.num_replicas)
            total += local // batch_size if self.drop_last else -(-local // batch_size)
        return total

    def chunks(self, step: int = CHUNK, order: torch.Tensor | None = None) -> Iterator[np.ndarray[Any, Any]]:
        """This rank's ids, `step` at a time, of the plan that is current when iteration begins; `order` as in `batches`."""
        plan, start, length = self.plan, self._start, len(self)
        ordered = plan.order if order is None else lambda begin, end: order[begin:end]
        left = len(plan) - start
        for first in range(0, length, step):
            begin, end = first * self.num_replicas, min(first + step, length) * self.num_replicas
            parts = [ordered(start + begin, start + min(end, left))]
            # Padding: the order's first ids again (they may have to go round more than once on tiny epochs).
            parts += [ordered(start + at % left, start + at % left + 1) for at in range(max(begin, left), end)]
            yield torch.cat(parts)[self.rank :: self.num_replicas].contiguous().cpu().numpy()

    # --- scores ------------------------------------------------------------------------------------------------------

    def update(self, index: torch.Tensor, scores: torch.Tensor) -> None:
        """Take in the scores of a batch (PrunedLoss does it) and count its samples as trained on, for `state_dict`.

        Args:
            index: [B] int64 ids; scores: [B] floating, on the table's device. Neither is modified.
        """
        self.table.update(index, scores, counted=True)

    def node_weights_of(self, index: torch.Tensor, node: torch.Tensor) -> torch.Tensor | None:
        """Weights [B, m] of drawn nodes relative to their windows'; None where all are 1, as for uniform draws."""
        return None

    @property
    def wants_pair_scores(self) -> bool:
        """Whether the node law draws by the errors of nodes, which PrunedLoss then hands to `update_pairs`."""
        return False

    def update_pairs(self, index: torch.Tensor, node: torch.Tensor, scores: torch.Tensor) -> None:
        """Take in the errors [B, m] of drawn nodes; uniform draws do not depend on them."""

    def to(self, device: torch.device | str) -> PruningSampler:
        """Move the table to the training device, in place; PrunedLoss does it with the first batch."""
        self.table.to(device)
        if self._plan is not None:
            self._set_plan(self._plan)
        return self

    # --- resume ------------------------------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        return {
            "num_samples": self.table.num_samples,
            "num_epochs": self.num_epochs,
            "keep_ratio": self.keep_ratio,
            "method": self.method.name,
            "schedule": self.schedule.kind if isinstance(self.schedule.kind, str) else "function",
            "anneal": self.anneal,
            "seed": self.seed,
            "fixed_length": self.fixed_length,
            "num_nodes": self.num_nodes,
            "node_ratio": self.node_ratio,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue bit for bit, also in the middle of an epoch and with another number of ranks.

        The position is the number of samples whose scores came in (`PrunedLoss` or `update`), so batches that a loader has
        prefetched but nobody trained on are delivered again. Loads under torch.load(weights_only=True).
        """
        plan = self.plan
        position = min(self._start + self.table.num_counted * self.num_replicas, len(plan))
        return {
            "version": _STATE_VERSION,
            "settings": self._settings(),
            "epoch": self.epoch,
            "position": position,
            "indices": None if plan.is_full else plan.indices.clone(),
            "weights": None if plan.is_full else plan.weights.clone(),
            "mean_weight": plan.mean_weight,
            "table": self.table.state_dict(),
            "reported": self._reported,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`: iteration goes on at the saved position, and `len` counts what is left.

        Raises:
            ValueError: the state was saved with other settings; nothing is changed.
        """
        if state.get("version") != _STATE_VERSION:
            raise ValueError(f"{_OP}.load_state_dict: version must be {_STATE_VERSION}, got {state.get('version')}")
        for name, mine in self._settings().items():
            if state["settings"][name] != mine:
                raise ValueError(
                    f"{_OP}.load_state_dict: {name} must be {mine!r} as in this sampler, got {state['settings'][name]!r}"
                )
        self.table.load_state_dict(state["table"])
        self.epoch = int(state["epoch"])
        self._start = int(state["position"])
        self.table.restart_count()
        self._reported = bool(state["reported"])
        num_samples = self.table.num_samples
        if state["indices"] is None:
            indices, weights = torch.arange(num_samples), torch.ones(1).expand(num_samples)
        else:
            indices, weights = state["indices"].cpu().clone(), state["weights"].cpu().clone()
        self._set_plan(EpochPlan(self.epoch, indices, weights, num_samples, self.seed, float(state["mean_weight"])))


def _sized(data_source: Any) -> int:
    if not isinstance(data_source, Sized):
        raise TypeError(
            f"{_OP}: data_source must be a length or a data set with one, got {type(data_source).__name__}; "
            "samples of an iterable data set have no ids to prune by"
        )
    return len(data_source)


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _ranks(num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    if num_replicas is None:
        num_replicas = distributed.get_world_size() if _is_distributed() else 1
    if rank is None:
        rank = distributed.get_rank() if _is_distributed() and num_replicas > 1 else 0
    num_replicas = _check.integer(_OP, "num_replicas", num_replicas, 1)
    return num_replicas, _check.integer(_OP, "rank", rank, 0, num_replicas - 1)
