"""PruningSampler: the epoch plan as a torch sampler, with its ranks and its state."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch.utils.data.distributed import DistributedSampler

from stprune.granularity import Granularity, length_of
from stprune.methods import Method, resolve
from stprune.nodes import Draw, NodeSampler
from stprune.ops import _check
from stprune.ops.strata import checked_strata
from stprune.passes import Batches, Pass
from stprune.plan import Plan
from stprune.plan_memory import PlanMemory
from stprune.planner import Planner
from stprune.quota import checked_quota
from stprune.ranks import Ranks
from stprune.running import Running
from stprune.schedule import Schedule
from stprune.sharded.plan import ShardedPlanner, check_sharded

_OP = "PruningSampler"
_VERSION = 3


class PruningSampler(DistributedSampler[int]):
    """Yields, each epoch, the ids of the samples that still teach something, in a fresh random order.

    Pass it as `DataLoader(sampler=...)`, call `set_epoch` at the start of every epoch as with any distributed sampler, and
    compute the loss with `stprune.PrunedLoss(sampler)`, or any loss of your own with `stprune.PrunedMean(sampler)`, which
    score the samples and weight their gradients. Only `set_epoch` moves it on: `iter` returns a fresh iterator with no side
    effect, and `len` counts the whole epoch's share of this rank, before and after `iter`. It shards
    itself over ranks (it is a DistributedSampler, so trainers leave it alone) and touches no global random state.

    The first epoch is full, since every score is unknown, unless the method needs no scores or `fixed_length` is set.

    A sample counts once an epoch: a second loss of a batch in one epoch (two criteria, SAM, gradient checkpointing around
    the loss) is weighted like the first, but moves neither the sample's score nor the position that `state_dict` saves.

    Args:
        data_source: the training set, or its length: the number of windows.
        num_epochs: length of the run, at least 1; None for a run without an end, such as a stream or rounds of federated
            training. Nothing anneals then: the default schedule keeps the ratio throughout, and "cosine" is refused.
        keep_ratio: share of the samples an epoch keeps, in (0, 1]. It shortens epochs: at equal cost a ratio below 1 was
            hardly ever better than full training at its best batch in the study (rows "st-prune", "soft-random").
        method: "st-prune", "infobatch", "soft-random", "rs2", "epsilon-greedy", "ucb", "seta", "top-k", "spaced", "full", or
            an object with the functions `inclusion` and `weights`. The default was no better and no worse than "soft-random" in
            the study.
        schedule: "step", "cosine", "none", or a function of the epoch that returns the keep ratio.
        anneal: share of the run after which the schedule rises to everything, in [0, 1].
        seed: in [0, 2^63); the same on every rank.
        strata: [num_samples] int64 labels (see `stratify`), whose shares of the total weight are kept (eq. 10, with the limit
            that `plan_epoch` states for small strata); or None.
        min_per_stratum: quota: at least so many samples of every stratum, or of each, in every epoch; see `plan_epoch`.
        num_replicas: number of ranks; None is that of the process group, 1 without one. Settled at the first plan, so that
            the sampler may be built before `init_process_group`.
        rank: this process's rank; None is that in the process group.
        process_group: the torch.distributed group whose ranks train on shares of the data and exchange scores; None is the
            default group, "none" lets every rank keep its scores to itself.
        drop_last: drop the tail that does not divide evenly over ranks (and, in `batches`, over batches) instead of padding
            it with the first ids of the order.
        fixed_length: every epoch, also the first and the annealed ones, has round(keep_ratio * num_samples) samples, for
            OneCycleLR and for trainers that cache the length. Unknown samples then rank first instead of being certain,
            and annealed epochs are uniform draws.
        num_nodes: nodes in every window, all N of the data; needed for granularities other than "window". With fewer only the
            first so many nodes are ever trained on: `WindowLoader` refuses that, `gather_nodes` in a loop cannot notice it.
        node_ratio: share of the nodes drawn in every window, in (0, 1]; below 1 only for granularity "node". "auto": all, until
            `stprune.headroom(model, batches, sampler=sampler)` or `draw_next` chooses, from the next epoch on. In the study's
            best settings (rows "nodes-uniform") most steps have as many pairs as one window or fewer, in 16 or 64 windows.
        granularity: what is pruned. "window": windows, with all their nodes. "node": windows, of each of which
            ceil(node_ratio * num_nodes) nodes are drawn; `nodes` says which. "pair": single (window, node) samples, for
            models that treat nodes independently; sample i is node i % num_nodes of window i // num_nodes, and
            keep_ratio is the share of the pairs. None: "node" where num_nodes is given, else "window".
        node_sampler: how the nodes of a window are drawn: "uniform", "priority", or a `NodeSampler` such as
            `Stratified(groups)`, `Cluster(adjacency)` or `Observed(mask)`. In most of the study's comparisons no other way of
            drawing was better than uniform draws beyond the seeds.
        sharded: every rank keeps the scores of its own range of the samples only, and the ids that it trains on; the plan is
            the same, bit for bit ("soft-random" draws as it does for pairs). For "full", "soft-random", "st-prune",
            "infobatch" and "top-k", without `fixed_length`, `min_per_stratum` or `grow`; labels of strata are on every rank. A
            state is that of its rank; see `reshard`. `load_state_dict` is a collective then, as `set_epoch` is.

    Raises:
        TypeError, ValueError: an argument breaks its rule; the message names it.
        RuntimeError: at the first plan: there are several ranks, and their scores cannot be exchanged.

    Example:
        >>> import stprune
        >>> sampler = stprune.PruningSampler(8, num_epochs=4, keep_ratio=0.5, method="soft-random")
        >>> sampler.set_epoch(1)
        >>> len(sampler), sorted(sampler) == sampler.plan.indices.tolist()
        (4, True)

    Source:
        arXiv 2602.19113; methods/README.md, eq. 5-14. Planning is O(num_samples) once per epoch. The study:
        benchmarks/README.md, rows in benchmarks/results/study.jsonl.
    """

    def __init__(
        self,
        data_source: int | Sized,
        *,
        num_epochs: int | None,
        keep_ratio: float = 0.5,
        method: str | Method = "st-prune",
        schedule: str | Callable[[int], float] = "step",
        anneal: float = 0.875,
        seed: int = 0,
        strata: torch.Tensor | None = None,
        min_per_stratum: int | Sequence[int] | torch.Tensor | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
        process_group: Any = None,
        drop_last: bool = False,
        fixed_length: bool = False,
        num_nodes: int | None = None,
        node_ratio: float | str = 1.0,
        granularity: str | None = None,
        node_sampler: str | NodeSampler = "uniform",
        sharded: bool = False,
    ) -> None:
        # DistributedSampler.__init__ is not called: it would ask for a process group and fix the length.
        size = length_of(_OP, data_source)
        self.num_epochs = None if num_epochs is None else _check.integer(_OP, "num_epochs", num_epochs, 1, 2**32 - 1)
        self.keep_ratio = _check.real(_OP, "keep_ratio", keep_ratio, 0.0, 1.0, low_open=True)
        self.seed, _ = _check.seed_and_epoch(_OP, seed, 0)
        units = self._units = Granularity(
            _OP, granularity, num_windows=size, num_nodes=num_nodes, node_ratio=node_ratio, node_sampler=node_sampler, seed=seed
        )
        self.num_windows, self.granularity, self.node_sampler = units.num_windows, units.kind, units.node_sampler
        self.num_nodes, self.node_ratio, self.draws_nodes = units.num_nodes, units.node_ratio, units.draws_nodes
        self.auto_nodes = units.auto  # `draw_next` may be called
        self.anneal = _check.real(_OP, "anneal", anneal, 0.0, 1.0)
        self.method = resolve(method)
        self.schedule = Schedule(schedule, self.num_epochs, self.keep_ratio, self.anneal)
        labels = None if strata is None else checked_strata(_OP, strata, units.num_samples)
        self.min_per_stratum = checked_quota(_OP, min_per_stratum, labels, self.method)
        self._ranks = Ranks(_OP, num_replicas, rank, process_group)
        self.drop_last = _check.flag(_OP, "drop_last", drop_last)
        self.fixed_length = _check.flag(_OP, "fixed_length", fixed_length)
        if self.fixed_length and not self.method.exact_count:
            raise ValueError(f"{_OP}: fixed_length must be False for a method without an exact count, got {self.method.name!r}")
        self.sharded = _check.flag(_OP, "sharded", sharded)
        # Of methods that look at no score there is nothing to spread over ranks.
        spread = self.sharded and not self.method.uniform
        self._planner = (ShardedPlanner if spread else Planner)(
            self.method, self.schedule, self.seed, self.fixed_length, labels, self.min_per_stratum
        )
        if self.sharded:
            check_sharded(_OP, self._planner, self._ranks, self.node_sampler)
        # Pairs are too many to keep scores that nobody reads.
        lean = self.sharded or self.granularity == "pair"
        self.table: Any = self._planner.table(units.num_samples, self._ranks, lean=lean)
        self.epoch, self.shuffle = 0, True
        self._memory = PlanMemory(units.num_samples)
        # How many passes have begun; of the last one, at which position of the order, and in which other order if in one.
        self.last_pass: tuple[int, int, torch.Tensor | None] = 0, 0, None
        self._running: Running | None = None
        self._agreed = False  # the ranks have compared their settings in this epoch
        self._warned: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return (
            f"PruningSampler({self.table.num_samples} samples, epoch {self.epoch} of {self.num_epochs or 'a stream'}, "
            f"method={self.method.name!r}, keep_ratio={self.keep_ratio:g}, "
            f"{self._units}rank {self.rank} of {self.num_replicas})"
        )

    def __getstate__(self) -> dict[str, Any]:
        """State for copies, which share no memory that this sampler plans in."""
        self._memory.keep()
        return self.__dict__ | {"_memory": PlanMemory(self.table.num_samples)}

    # --- the epoch ---------------------------------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch: exchange scores between ranks, age the table, and plan. A second call for it does nothing.

        Where another epoch ends with it, the samples counted in that one are held against its plan, as by `finish`.

        A collective where ranks exchange scores: every rank calls it, for the same epoch. After `load_state_dict` of a state
        from the middle of this epoch it goes on there; of a state whose epoch was over it begins that epoch anew.

        Args:
            epoch: in [0, num_epochs), or [0, 2^32) without it.

        Raises:
            ValueError: `epoch` lies outside the run; on every rank: a setting is not the same on every rank, or on one of them
                the last epoch's ids did not tell samples apart, or a batch on a GPU held an id that is not in the plan (once).
        """
        epoch = self._checked_epoch(f"{_OP}.set_epoch", epoch)
        running = self._running
        if running is not None and epoch == self.epoch:
            if not self._agreed:
                self._agree(epoch)
            if running.finished:
                self.resume_at(0)
            return
        fault = self._hold_against_plan()
        scheduled = self.schedule(epoch)  # a user's function: what it raises is raised before anything has changed
        self._agree(epoch, fault)
        if epoch != self.epoch:
            self.synchronize()
            self.node_sampler.advance()
            # From here on a second call goes on where this one stopped.
            self._running, passed, self.epoch = None, epoch - self.epoch, epoch
            if passed > 0:
                self.table.advance(passed)
            else:
                self.table.restart()
        self.node_ratio = self._units.begin(self._ranks)
        self._begin(self._make_plan(scheduled))
        self._report_nonfinite()

    def _checked_epoch(self, op: str, epoch: Any) -> int:
        return _check.integer(op, "epoch", epoch, 0, (self.num_epochs or 2**32) - 1, hint="; epochs count from 0")

    def finish(self) -> None:
        """End the run: hold the samples counted in its last epoch against the plan. A second call changes nothing.

        One warning a run tells that they differ, by all numbers: validation losses that came in as training, steps that a
        framework left out, ids of another data set. Another one tells, here or in the second `set_epoch`, that
        node_ratio="auto" was left without a choice. Silent, as they belong to correct training: several losses of every sample
        (two criteria, SAM, gradient checkpointing), padding, a dropped last batch, epochs resumed in the middle or left out.

        Raises:
            ValueError: a batch on a GPU held an id that is not in the plan; told once.
        """
        if fault := self._hold_against_plan(at_end=True):
            raise ValueError(fault)

    def _hold_against_plan(self, *, at_end: bool = False) -> str:
        """Warn of what differs; what must be raised, or ""."""
        text, raised = ("", False) if self._running is None else self._running.fault(self._needs_scores, at_end=at_end)
        # Ranks take what the first one is told.
        untold = self._units.untold * (self._running is not None and self.rank == 0)
        for name, warning in (("counts", text * (not raised)), ("node_ratio", untold)):
            if warning:
                self._warn(name, warning)
        return text * raised

    @torch.inference_mode(False)  # or no training step could use what is made here
    def _begin(self, plan: Plan, position: int = 0, *, finished: bool = False) -> Running:
        (replicas, rank), share = self._ranks.both, self._share(len(plan))
        position = share * replicas if finished else position
        table, plan = self._planner.dealt(self.table, plan, position=position, share=share, drop_last=self.drop_last)
        self._running = Running(table, plan, share=share, num_replicas=replicas, rank=rank, position=position)
        return self._running

    def _share(self, count: int) -> int:
        """Samples that each rank delivers of a plan of so many."""
        replicas = self._ranks.both[0]
        return count // replicas if self.drop_last else -(-count // replicas)

    @property
    def _now(self) -> Running:
        """The epoch under way; epoch 0 is planned at first use."""
        if self._running is not None:
            return self._running
        if torch.compiler.is_compiling():
            raise RuntimeError(f"{_OP}: the epoch must be planned before a compiled step: call set_epoch, or iterate")
        self._ranks.settle(needs_scores=self._needs_scores)
        return self._begin(self._make_plan(self.schedule(self.epoch)))

    def resume_at(self, position: int) -> None:
        """Let the next pass begin at this position of the epoch's order, and count trained samples from there."""
        self.table.restart()
        self._begin(self._now.plan, position)

    @property
    def _needs_scores(self) -> bool:
        return self.method.needs_scores or self.wants_pair_scores

    def _agree(self, epoch: int, fault: str = "") -> None:
        """Compare settings, and where each rank stands, with the other ranks; a collective."""
        self._ranks.settle(needs_scores=self._needs_scores)
        # At the current epoch of every rank they go on from the same position; a rank without a plan is at its beginning.
        position = self._running.begin_position if self._running is not None and epoch == self.epoch else 0
        if self._ranks.exchange or fault:
            self._ranks.agree({"epoch": epoch, "epoch before": self.epoch, "position": position} | self._settings(), fault)
        self._agreed = True

    def grow(
        self,
        num_samples: int,
        strata: torch.Tensor | None = None,
        *,
        min_per_stratum: int | Sequence[int] | torch.Tensor | None = None,
        **node_settings: Any,
    ) -> None:
        """Take in new samples, which follow the old ones. All that is known of the old ones stays.

        The new samples are unknown, so that methods with scores keep them all in the first epoch that plans them: the next
        one. The epoch under way goes on as planned. With ranks, every rank grows alike before the next `set_epoch`. A loader
        asks its data set for the new ids, so that grows too. A state loads into a sampler of its size only. Cost: a copy of
        the table; a compiled step is compiled anew, and what was captured in a CUDA graph must be captured anew.

        Args:
            num_samples: how many samples there are then, at least as many as now: the number of windows, or of pairs.
            strata: [new samples] int64 labels of the new samples, where the sampler has strata; else None.
            min_per_stratum: another quota from now on, as a quota of each stratum needs where there are new strata.
            node_settings: what the node sampler must be told about the new windows.

        Raises:
            TypeError, ValueError: an argument breaks its rule; nothing is changed.

        Example:
            >>> import stprune
            >>> sampler = stprune.PruningSampler(100, num_epochs=None, keep_ratio=0.5)
            >>> sampler.update(sampler.plan.indices, 1.0 + sampler.plan.indices)
            >>> sampler.grow(120)
            >>> sampler.set_epoch(1)
            >>> len(sampler), int((sampler.plan.indices >= 100).sum())
            (60, 20)
        """
        op, size = f"{_OP}.grow", self.table.num_samples
        num_samples = _check.integer(op, "num_samples", num_samples, size, 2**62)
        windows = self._units.windows_in(op, num_samples)
        planner = self._planner.grown(op, strata, num_samples - size, 1, min_per_stratum)
        self._units.grow(windows, self.num_nodes, **node_settings)
        self._take_size(planner, 1)

    def grow_nodes(self, num_nodes: int, strata: torch.Tensor | None = None, **node_settings: Any) -> None:
        """Give every window more nodes, which follow the old ones; between epochs.

        Under granularity "node" ceil(node_ratio * num_nodes) nodes are drawn from then on. Under "pair" the scores move to the
        samples' new ids, new pairs are unknown, and the plan holds the same pairs by their new ids (a plan that lists nothing
        is as large, another draw). Otherwise as `grow`.

        Args:
            num_nodes: nodes in every window then, at least as many as now.
            strata: [new samples] int64 labels of the new pairs, window by window, where the sampler has strata; else None.
            node_settings: what the node sampler must be told about the new nodes: `groups` of "stratified".

        Raises:
            TypeError, ValueError: an argument breaks its rule; nothing is changed.
            RuntimeError: in the middle of an epoch, whose batches would change their meaning.
        """
        op, before, pairs = f"{_OP}.grow_nodes", self.num_nodes, self.granularity == "pair"
        if before is None:
            raise ValueError(f"{op}: num_nodes must be given to the sampler first, got None")
        num_nodes = _check.integer(op, "num_nodes", num_nodes, before, 2**31 - 1)
        if self._running is not None and self._running.under_way:
            raise RuntimeError(
                f"{op}: the epoch must be over or not begun, got epoch {self.epoch} in the middle: set_epoch first"
            )
        rows = max(1, self.num_windows) if pairs else 1
        new = self.num_windows * (num_nodes - before) if pairs else 0
        planner = self._planner.grown(op, strata, new, rows)
        self._units.grow(self.num_windows, num_nodes, **node_settings)
        self._take_size(planner, rows)
        if pairs and self._running is not None:
            self._running.renumber(before, num_nodes)

    def _take_size(self, planner: Planner, rows: int) -> None:
        """Come to the size that the granularity has grown to."""
        self._planner, self.min_per_stratum, units = planner, planner.min_per_stratum, self._units
        self.num_windows, self.num_nodes = units.num_windows, units.num_nodes
        units.node_sampler.to(self.table.device)
        self.table.grow(units.num_samples, rows=rows)
        self._memory = PlanMemory(units.num_samples)
        if self._running is not None:
            self._running.place()

    def forget(self, index: torch.Tensor) -> None:
        """Make samples unknown, as if never scored: their slots hold other data from now on.

        The next score replaces the unknown one. The epoch under way goes on as planned: see `ScoreTable.forget`. Every rank
        forgets alike, or the next `set_epoch` raises a ValueError on all of them.

        Args:
            index: [B] int64 sample ids; not modified.

        Raises:
            TypeError, ValueError: `index` is no such vector; nothing is changed.
        """
        self.table.forget(index)
        if self.granularity == "node":
            self.node_sampler.forget(index)
        self._ranks.forgot(index)

    def synchronize(self) -> None:
        """Exchange scores between ranks; `set_epoch` does it. A collective where torch.distributed spans the ranks.

        Call it on every rank before `state_dict()` of a distributed run, in the middle of an epoch or at its end: a state
        without it lacks the other ranks' scores of this epoch, and nothing says so.
        """
        if self._ranks.exchange or self.sharded:
            self.table.synchronize(self._ranks.group)
        if self._ranks.exchange:
            self.node_sampler.synchronize(self._ranks.group)

    @property
    def num_replicas(self) -> int:  # type: ignore[override]
        """Number of ranks."""
        return self._ranks.both[0]

    @property
    def rank(self) -> int:  # type: ignore[override]
        """This process's rank."""
        return self._ranks.both[1]

    @property
    def strata(self) -> torch.Tensor | None:
        """[num_samples] int64 labels, made now of fewer bytes each, on the table's device; None without strata."""
        strata = self._planner.strata
        return None if strata is None else strata.labels.long()

    @property
    def plan(self) -> Plan:
        """The current epoch's plan, on the device of its scores; epoch 0 is planned at first use. It never changes."""
        plan = self._now.plan
        self._memory.keep()
        return plan

    @property
    def next_epoch(self) -> int:
        """The epoch at which a loop begins or goes on: the current one, or the one after it once all of it was trained on."""
        return self.epoch + self._now.over

    def keep_ratio_at(self, epoch: int) -> float:
        """The share of samples the schedule asks for in `epoch`."""
        return self._planner.keep_ratio_at(epoch)

    def _make_plan(self, scheduled: float) -> Plan:
        """The current epoch's plan, for which the schedule asks for this keep ratio."""
        # The last epoch's plan leaves its memory to this one, unless somebody still looks at it.
        self._running = None
        return self._planner.plan(self.table, self._memory, epoch=self.epoch, scheduled=scheduled)

    # --- ids ---------------------------------------------------------------------------------------------------------

    @property
    def reach(self) -> int:
        """Position of the epoch's order at which every rank has delivered its share."""
        return self._now.reach

    @property
    def num_samples(self) -> int:  # type: ignore[override]
        """Samples this rank delivers in the current epoch, as DistributedSampler calls it."""
        return self._now.share

    @property
    def total_size(self) -> int:  # type: ignore[override]
        """Samples all ranks deliver together in the current epoch."""
        return self._now.reach

    def __len__(self) -> int:
        return self._now.share

    def __iter__(self) -> Iterator[int]:
        """A pass over the epoch's ids, which begins with its first `next`; it has `state_dict` and `load_state_dict`."""
        return Pass(self, None, self.drop_last, None)

    def batches(
        self, batch_size: int, *, drop_last: bool | None = None, order: torch.Tensor | None = None, device: Any = None
    ) -> Batches:
        """The epoch's ids as arrays, without a Python int per sample.

        Args:
            batch_size: ids per batch, at least 1.
            drop_last: drop a last batch that is not full; None takes the sampler's own.
            order: [len(plan)] int64, the plan's ids in another order (see `chunk_order`); None takes the plan's own.
            device: yield tensors on this device, which ids of a table there never leave; None yields arrays.

        Returns:
            An object with `len` that yields [batch_size] int64 NumPy arrays, or tensors; DataLoader takes it as
            `batch_sampler`.
        """
        batch_size = _check.integer(f"{_OP}.batches", "batch_size", batch_size, 1)
        return Batches(self, batch_size, self.drop_last if drop_last is None else bool(drop_last), order, device)

    def begin_pass(self, position: int | None, order: torch.Tensor | None = None) -> tuple[Plan, int]:
        """The plan of a pass that begins now, and the position of its order at which it does.

        Args:
            position: where the pass goes on in the current epoch; None begins where the sampler says, and the next epoch where
                the state of a finished one was loaded.
            order: see `batches`.
        """
        if position is None and self._now.finished and self.epoch + 1 < (self.num_epochs or 2**32):
            self.set_epoch(self.epoch + 1)
        if not self._agreed:
            self._agree(self.epoch)
        running = self._now
        begin = running.begin_pass()
        self.last_pass = self.last_pass[0] + 1, begin if position is None else position, order
        return running.plan, self.last_pass[1]

    @property
    def begin_position(self) -> int:
        """Position of the epoch's order at which the next pass begins."""
        return self._now.begin_position

    def end_pass(self, plan: Plan, end: int) -> None:
        """A pass over this plan has delivered its last id, up to position `end`."""
        if self._running is not None and self._running.plan is plan:
            self._running.end_pass(end)

    def reading(self) -> AbstractContextManager[None]:
        """A stretch of code that reads the current plan, whose memory is not used again before its end."""
        return self._memory.reading()

    def windows(self, index: torch.Tensor) -> torch.Tensor:
        """The windows [B] int64 of samples [B] int64: the samples themselves unless the granularity is "pair"."""
        return self._units.windows(index)

    def draw_nodes(self, index: torch.Tensor) -> Draw:
        """The nodes of samples, and what each counts for beside its window's weight (eq. 12).

        Args:
            index: [B] int64 sample ids; not modified.

        Returns:
            node [B, m] int64 as `nodes` gives them; weight [B, m] float32 with mean 1, or None where all are 1.
        """
        return self._units.draw(index, self.epoch)

    def nodes(self, index: torch.Tensor | np.ndarray[Any, Any]) -> torch.Tensor:
        """The nodes of samples: ceil(node_ratio * num_nodes) distinct ones of each window, new every epoch; a pair's own one.

        A pure function of (seed, epoch, window), and under "priority" of the pairs' scores of earlier epochs: every rank,
        device and worker draws the same, as often as it is asked.

        Args:
            index: [B] int64 sample ids, tensor or array.

        Returns:
            [B, m] int64, ascending in each row, on the device of `index`.
        """
        return self.draw_nodes(torch.from_numpy(index) if isinstance(index, np.ndarray) else index)[0]

    def node_draw(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """`nodes` for the current epoch, also after another one has begun: for loaders that work ahead."""
        return self._units.drawn_in(self.epoch, lambda: self.epoch)

    def node_weights(self, index: torch.Tensor, node: torch.Tensor) -> torch.Tensor | None:
        """What each drawn node counts for beside its window's weight (eq. 12): [B, m] float32 with mean 1, None if all are 1.

        Args:
            index: [B] int64 sample ids; node: [B, m] int64, what `nodes` gave for them. Neither is modified.
        """
        return self._units.weights(index, node, self.epoch)

    def draw_next(self, num_drawn: int) -> None:
        """Draw so many nodes of every window from the next epoch that `set_epoch` begins: with node_ratio="auto" only.

        Only the number of nodes changes; how many samples an epoch has does not. Where ranks exchange scores all take what
        rank 0 was told, so that it is enough to tell that one. States hold the number.

        Args:
            num_drawn: in [1, num_nodes].

        Raises:
            TypeError, ValueError: node_ratio is not "auto", `num_drawn` is out of range, or the node sampler cannot draw so
                many; nothing is changed.

        Example:
            >>> import torch, stprune
            >>> sampler = stprune.PruningSampler(8, num_epochs=4, num_nodes=10, node_ratio="auto")
            >>> sampler.draw_next(3)
            >>> before = sampler.nodes(torch.arange(2)).shape[1]
            >>> sampler.set_epoch(1)
            >>> before, sampler.nodes(torch.arange(2)).shape[1]
            (10, 3)
        """
        self._units.draw_next(f"{_OP}.draw_next", num_drawn)

    @property
    def draws_some(self) -> bool:
        """Whether this epoch trains on some nodes of each window, so that a criterion needs `node`: not for pairs."""
        return self._units.draws_some

    @property
    def constant_length(self) -> bool:
        """Whether every epoch has the same number of samples, whatever the scores."""
        return self._planner.constant_length

    def total_steps(self, batch_size: int, accumulate: int = 1) -> int:
        """Optimizer steps of the whole run on this rank: what OneCycleLR asks for.

        Exact for methods with an exact count as long as every sample of a full epoch gets a score; an upper bound for
        methods whose counts depend on the scores. For the data set as large as it is now.

        Args:
            batch_size: samples of a batch on this rank, at least 1.
            accumulate: batches whose gradients make one step, at least 1. An epoch's last step has those that are left, as in
                Lightning (`accumulate_grad_batches`), in Accelerate (`gradient_accumulation_steps` with its default
                `sync_with_dataloader=True`) and in transformers' Trainer: ceil(batches / accumulate) steps an epoch.

        Raises:
            TypeError, ValueError: an argument breaks its rule.
            ValueError: the run has no end (num_epochs=None).
        """
        op = f"{_OP}.total_steps"
        batch_size = _check.integer(op, "batch_size", batch_size, 1)
        accumulate = _check.integer(op, "accumulate", accumulate, 1)
        if self.num_epochs is None:
            raise ValueError(f"{op}: num_epochs must be given to the sampler, got None: a run without an end has no total")
        steps = 0
        for epoch in range(self.num_epochs):
            local = self._share(self._planner.most_at(epoch, self.table.num_samples))
            batches = local // batch_size if self.drop_last else -(-local // batch_size)
            steps += -(-batches // accumulate)
        return steps

    # --- training steps ----------------------------------------------------------------------------------------------

    def step_arguments(self, *, per_step: bool) -> tuple[Any, ...]:
        """What an op looks weights up in and takes scores into, on the table's device.

        Args:
            per_step: weights are divided by the plan's mean weight.

        Returns:
            ids [K] int64 of the plan, or None where every id in [0, num_samples) is in it; weights [K] or [1] float32; their
            divisor [] float32 or None; num_samples; the table's scores, marks, variance, count and beta.
        """
        return self._now.step_arguments(per_step)

    def places(self, index: torch.Tensor) -> torch.Tensor:
        """What an op takes as index beside `step_arguments`: rows of the table, which are the ids unless it is sharded.

        Args:
            index: [B] int64 sample ids on the table's device; not modified.

        Raises:
            ValueError: an id is not in this rank's share of a sharded plan (looked at on the CPU).
        """
        return self._now.places(index)

    def weights_of(self, index: torch.Tensor, *, per_step: bool = True) -> torch.Tensor:
        """The weights of samples in the current plan, for losses that no criterion of stprune can compute.

        `PrunedMean` is made of this, a mean of weight x loss, and `update`.

        Args:
            index: [B] int64 sample ids; not modified.
            per_step: divide by the plan's mean weight.

        Returns:
            [B] float32, on the device of `index`.

        Raises:
            ValueError: an id is not in the plan (looked at on the CPU).
        """
        return self._now.weights_of(index, per_step)

    @property
    def wants_pair_scores(self) -> bool:
        """Whether `take_in` has any use for scores of pairs."""
        return self._units.wants_scores

    def update(self, index: torch.Tensor, scores: torch.Tensor) -> None:
        """Take in the scores of a batch that was trained on, for losses that no criterion of stprune can compute.

        Args:
            index: [B] int64 ids; scores: [B] floating, on the table's device. Neither is modified. Samples that were trained
                on in this epoch before keep their scores.
        """
        self.table.update(index, scores, trained=True)
        self.take_in(index)

    def take_in(self, index: torch.Tensor, node: torch.Tensor | None = None, pair_scores: torch.Tensor | None = None) -> None:
        """End a training step whose scores the table has; criteria call it.

        Args:
            index: [B] int64 ids of the batch; not modified.
            node: [B, m] int64 drawn nodes, or None.
            pair_scores: [B, m] float32 scores of these nodes where `wants_pair_scores`, or None.
        """
        if node is not None and pair_scores is not None:
            self.node_sampler.update(index, node, pair_scores)
        if (word := self._now.take_in(index, self.draws_some)) is not None:
            self._warn(*word)

    def _warn(self, name: str, message: str) -> None:
        if name not in self._warned:
            self._warned |= {name}
            warnings.warn(f"stprune: {message}. Reported once.", RuntimeWarning, stacklevel=4)

    def _report_nonfinite(self) -> None:
        if count := self.table.num_nonfinite():
            self._warn(
                "nonfinite",
                f"{count} of {self.table.num_samples} samples were scored NaN or infinite. They are kept, with weight 1, and "
                "enter no mean; see sampler.table.num_nonfinite()",
            )

    def to(self, device: torch.device | str) -> PruningSampler:
        """Move the table to the training device, in place; criteria do it with the first batch."""
        self.table.to(device)
        self.node_sampler.to(self.table.device)
        self._planner = self._planner.to(self.table.device)
        if self._running is not None:
            self._running.place()
        return self

    # --- state -------------------------------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        """What must be the same on every rank, and in a sampler that continues; the number of ranks may differ."""
        own = {"num_samples": self.table.num_samples, "drop_last": self.drop_last, "sharded": self.sharded}
        return own | self._units.settings() | self._planner.settings()

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue bit for bit, also in the middle of an epoch and with another number of ranks.

        The position counts distinct samples whose scores came in (`PrunedLoss` or `update`), so batches that a loader has
        prefetched but nobody trained on are delivered again. Loads under torch.load(weights_only=True). As in the states of
        torch's modules the tensors are the sampler's own, so that a state costs nothing each batch: `copy.deepcopy` it to
        keep it beside a run that goes on. With several ranks call `synchronize` on each of them first.

        Raises:
            ValueError: a batch on a GPU held an id that is not in the plan; told once.
        """
        running = self._now
        running.refuse_wrong_ids()
        self._memory.keep()
        return {
            "version": _VERSION,
            "settings": self._settings(),
            "epoch": self.epoch,
            "position": running.position,
            "finished": running.over,
            "table": self.table.state_dict(),
            "node_sampler": self._units.state_dict(),
            "warned": sorted(self._warned),
            **self._planner.saved(running.plan),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`: the next pass over the epoch begins at the saved position; `len` counts all of it.

        A state whose epoch was over begins the next epoch, or the epoch that `set_epoch` then names, anew: a loop goes on
        with `next_epoch`.

        Raises:
            TypeError: `state` is no dictionary.
            ValueError: the state was saved with other settings, by name; nothing is changed.
        """
        op = f"{_OP}.load_state_dict"
        version = state.get("version") if isinstance(state, dict) else None
        if version is not None and version != _VERSION:
            raise ValueError(f"{op}: version must be {_VERSION}, got {version}")
        _check.same_keys(op, state, _ENTRIES)
        _check.same_settings(op, "sampler", self._settings(), state["settings"])
        self.table.check_state(state["table"])
        epoch = self._checked_epoch(op, state["epoch"])
        position = _check.integer(op, "position", state["position"], 0)
        plan = self._planner.restored(op, self.table, state)
        self._ranks.settle(needs_scores=self._needs_scores)
        self.node_ratio = self._units.load_state_dict(op, state["node_sampler"])
        self.table.load_state_dict(state["table"])
        self.epoch = epoch
        self._warned = frozenset(state["warned"])
        self._agreed = False
        self._memory.keep()
        self.table.restart()
        self._begin(plan, position, finished=_check.flag(op, "finished", state["finished"]))


_ENTRIES = (
    "version", "settings", "epoch", "position", "finished", "count", "planned", "indices", "weights", "mean_weight", "table",
    "node_sampler", "warned",
)  # fmt: skip
