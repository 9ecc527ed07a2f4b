"""PruningSampler: the epoch plan as a torch sampler."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sized
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.utils.data.distributed import DistributedSampler

from stprune.batches import CHUNK, Batches
from stprune.granularity import Granularity
from stprune.laws import NodeLaw
from stprune.methods import Full, Method, SoftRandom, asked_count, resolve
from stprune.ops import _check
from stprune.ops.strata import checked_strata
from stprune.plan import EpochPlan, PlanWeights
from stprune.plan_memory import PlanMemory
from stprune.ranks import is_distributed, length_of, ranks
from stprune.resume import restore, save
from stprune.schedule import Schedule
from stprune.table import ScoreTable
from stprune.uniform_plan import UniformPlan, UniformWeights
from stprune.unscored_table import UnscoredTable

_OP = "PruningSampler"


class PruningSampler(DistributedSampler[int]):
    """Yields, each epoch, the ids of the samples that still teach something, in a fresh random order.

    Pass it as `DataLoader(sampler=...)`, call `set_epoch` at the start of every epoch as with any distributed sampler, and
    compute the loss with `stprune.PrunedLoss(sampler)`, which scores the samples and weighs their gradients. Only
    `set_epoch` moves it on: `iter` returns a fresh iterator with no side effect, and `len` is right before `iter`. It
    shards itself over ranks (it is a DistributedSampler, so trainers leave it alone) and touches no global random state.

    The first epoch is full, since every score is unknown, unless the method needs no scores or `fixed_length` is set.

    Args:
        data_source: the training set, or its length: the number of windows.
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
        num_nodes: nodes in every window; needed for granularities other than "window".
        node_ratio: share of the nodes drawn in every window, in (0, 1]; below 1 only for granularity "node".
        granularity: what is pruned. "window": windows, with all their nodes. "node": windows, of each of which
            ceil(node_ratio * num_nodes) nodes are drawn; `nodes` says which. "pair": single (window, node) samples, for
            models that treat nodes independently; sample i is node i % num_nodes of window i // num_nodes, and
            keep_ratio is the share of the pairs. None: "node" where num_nodes is given, else "window".
        node_law: how the nodes of a window are drawn: "uniform", "priority", or a `NodeLaw` such as `Stratified(groups)` or
            `Cluster(adjacency)`.

    Raises:
        TypeError, ValueError: an argument breaks its rule; the message names it.

    Example:
        >>> import stprune
        >>> sampler = stprune.PruningSampler(8, num_epochs=4, keep_ratio=0.5, method="soft-random")
        >>> sampler.set_epoch(1)
        >>> len(sampler), sorted(sampler) == sampler.plan.indices.tolist()
        (4, True)

    Source:
        arXiv 2602.19113; methods/README.md, eq. 5-14. Planning is O(num_samples) once per epoch.
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
        granularity: str | None = None,
        node_law: str | NodeLaw = "uniform",
    ) -> None:
        # DistributedSampler.__init__ is not called: it would ask for a process group and fix the length.
        size = length_of(_OP, data_source)
        self.num_epochs = _check.integer(_OP, "num_epochs", num_epochs, 1, 2**32 - 1)
        self.keep_ratio = _check.real(_OP, "keep_ratio", keep_ratio, 0.0, 1.0, low_open=True)
        self.seed, _ = _check.seed_and_epoch(_OP, seed, 0)
        self._units = Granularity(
            _OP, granularity, num_windows=size, num_nodes=num_nodes, node_ratio=node_ratio, law=node_law, seed=self.seed
        )
        size = self._units.num_samples
        self.num_windows = self._units.num_windows
        self.granularity, self.node_law = self._units.kind, self._units.law
        self.num_nodes, self.node_ratio = self._units.num_nodes, self._units.node_ratio
        self.anneal = _check.real(_OP, "anneal", anneal, 0.0, 1.0)
        self.method = resolve(method)
        self.schedule = Schedule(schedule, self.num_epochs, self.keep_ratio, self.anneal)
        self._strata = None if strata is None else checked_strata(_OP, strata, size)
        self.num_replicas, self.rank = ranks(_OP, num_replicas, rank)
        if self.num_replicas > 1:
            self.node_law.share_scores()
        self.drop_last = bool(drop_last)
        self.fixed_length = bool(fixed_length)
        if self.fixed_length and not self.method.exact_count:
            raise ValueError(f"{_OP}: fixed_length must be False for a method without an exact count, got {self.method.name!r}")
        self.table: ScoreTable | UnscoredTable = (
            # Pairs are too many to keep scores that nobody reads.
            UnscoredTable(size)
            if self.granularity == "pair" and self._strata is None and type(self.method) in (SoftRandom, Full)
            else ScoreTable(size, beta=self.method.beta, decay=self.method.decay, track_variance=self.method.track_variance)
        )
        self.epoch = 0
        self.shuffle = True
        self._plan: EpochPlan | UniformPlan | None = None
        self._weights: PlanWeights | UniformWeights | None = None
        self._step: tuple[Any, bool, tuple[Any, ...]] | None = None  # what step_arguments gave, until the next plan
        self._start = 0  # position of the epoch's order that iteration begins at: 0 unless resumed
        self._reported = False
        self._memory = PlanMemory(size)

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
        if self.num_replicas > 1 and is_distributed() and distributed.get_world_size() == self.num_replicas:
            self.table.synchronize()
            self.node_law.synchronize()

    @property
    def strata(self) -> torch.Tensor | None:
        """[num_samples] int64 labels, made now of fewer bytes each, on the table's device; None without strata."""
        return None if self._strata is None else self._strata.labels.long()

    @property
    def plan(self) -> EpochPlan | UniformPlan:
        """The current epoch's plan; epoch 0 is planned at first use."""
        if self._plan is None:
            return self._set_plan(self._make_plan())
        return self._plan

    def _set_plan(self, plan: EpochPlan | UniformPlan) -> EpochPlan | UniformPlan:
        self._plan, self._step = plan, None
        device = self.table.device
        self._weights = PlanWeights(plan, device) if isinstance(plan, EpochPlan) else UniformWeights(plan, device)
        return plan

    def weights_of(self, index: torch.Tensor, *, per_step: bool = True) -> torch.Tensor:
        """The weights of samples in the current plan, see `PlanWeights.of`."""
        if torch.compiler.is_compiling() or self._weights is None:
            self._plan_now()
        assert self._weights is not None
        return self._weights.of(index, per_step=per_step)

    def _plan_now(self) -> bool:
        """Plan the current epoch unless it is planned. Inside torch.compile that happens while the step is traced."""
        return len(self.plan) > 0

    # All that torch.compiler.assume_constant_result does; calling it would import the compiler with the package.
    _plan_now._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def step_arguments(self, *, per_step: bool) -> tuple[Any, ...] | None:
        """Plan's and table's arguments of `pruned_step`; None without scores on the host or for steps of one's own."""
        ready, table = self._step, self.table
        if type(table) is not ScoreTable:
            return None
        if ready is not None and ready[0] is table.columns and ready[1] is per_step:
            return ready[2]
        own = type(self)
        if own.weights_of is not PruningSampler.weights_of or own.update is not PruningSampler.update:
            return None
        if self._weights is None:
            self._plan_now()
        if not isinstance(self._weights, PlanWeights) or not table.columns[0].is_cpu:
            return None
        arguments = *self._weights.arguments(per_step=per_step), *table.columns, table.beta
        self._step = table.columns, per_step, arguments
        return arguments

    def keep_ratio_at(self, epoch: int) -> float:
        """The share of samples the schedule asks for in `epoch`."""
        return self.keep_ratio if self.fixed_length else self.schedule(epoch)

    def _make_plan(self) -> EpochPlan | UniformPlan:
        ratio = self.schedule(self.epoch)
        if isinstance(self.table, UnscoredTable):
            ratio = 1.0 if isinstance(self.method, Full) else self.keep_ratio if self.fixed_length else ratio
            size = self.table.num_samples
            return UniformPlan(self.epoch, asked_count(ratio, size), size, self.seed)
        method = self.method
        scores = self.method.scores_of(self.table)
        if self.fixed_length:
            if ratio > self.keep_ratio:
                method = SoftRandom()
            ratio = self.keep_ratio
            # Certain samples would break the fixed count: the unknown rank with the highest instead.
            known = torch.isfinite(scores)
            scores = torch.where(known, scores, scores[known].max() if bool(known.any()) else 1.0)
        # The last epoch's plan leaves its memory to this one, unless somebody still holds it.
        self._plan = self._weights = self._step = None
        return self._memory.planned(scores, method, keep_ratio=ratio, epoch=self.epoch, seed=self.seed, strata=self._strata)

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

    def windows(self, index: torch.Tensor) -> torch.Tensor:
        """The windows [B] int64 of samples [B] int64: the samples themselves unless the granularity is "pair"."""
        return self._units.windows(index)

    def nodes(self, index: torch.Tensor | np.ndarray[Any, Any]) -> torch.Tensor:
        """The nodes of samples: ceil(node_ratio * num_nodes) distinct ones of each window, new every epoch; a pair's own one.

        Under the uniform law a pure function of (seed, epoch, window): nothing is stored, and every rank, device and worker
        draws the same. Under "priority" also of the window's pair scores, which change when it has been trained on.

        Args:
            index: [B] int64 sample ids, tensor or array.

        Returns:
            [B, m] int64, ascending in each row, on the device of `index`.
        """
        index = torch.from_numpy(index) if isinstance(index, np.ndarray) else index
        return self._units.nodes(index, self.epoch)

    def node_draw(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """`nodes` for the current epoch, also after another one has begun: for loaders that work ahead."""
        units, epoch = self._units, self.epoch
        return lambda index: units.nodes(index, epoch)

    def node_weights_of(self, index: torch.Tensor, node: torch.Tensor) -> torch.Tensor | None:
        """What each drawn node counts for beside its window's weight (eq. 12): [B, m] float32 with mean 1, None if all are 1.

        Args:
            index: [B] int64 sample ids; node: [B, m] int64, what `nodes` gave for them. Neither is modified.
        """
        return self._units.weights(index, node, self.epoch)

    @property
    def wants_pair_scores(self) -> bool:
        """Whether `update_pairs` has any use."""
        return self.node_law.wants_scores and self.granularity == "node"

    def update_pairs(self, index: torch.Tensor, node: torch.Tensor, scores: torch.Tensor) -> None:
        """Take in the scores [B, m] of the nodes [B, m] int64 of windows [B] int64; PrunedLoss does it."""
        self.node_law.update(index, node, scores)

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
            count = asked_count(ratio, self.table.num_samples)
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

    def to(self, device: torch.device | str) -> PruningSampler:
        """Move the table to the training device, in place; PrunedLoss does it with the first batch."""
        self.table.to(device)
        self.node_law.to(self.table.device)
        self._strata = None if self._strata is None else self._strata.to(self.table.device)
        if self._plan is not None:
            self._set_plan(self._plan)
        return self

    # --- resume ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue bit for bit, also in the middle of an epoch and with another number of ranks.

        The position is the number of samples whose scores came in (`PrunedLoss` or `update`), so batches that a loader has
        prefetched but nobody trained on are delivered again. Loads under torch.load(weights_only=True).
        """
        return save(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`: iteration goes on at the saved position, and `len` counts what is left.

        Raises:
            ValueError: the state was saved with other settings; nothing is changed.
        """
        restore(self, state)
