"""PruningSampler: the epoch plan as a torch sampler: its settings, ids and nodes, and what training steps ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any

import numpy as np
import torch

from stprune.epochs import OP, Epochs
from stprune.granularity import Granularity, length_of
from stprune.methods import Method, resolve
from stprune.nodes import Draw, NodeSampler
from stprune.ops import _check
from stprune.ops.strata import checked_strata
from stprune.passes import Batches, Pass, num_parts
from stprune.plan_memory import PlanMemory
from stprune.planner import Planner
from stprune.quota import checked_quota
from stprune.ranks import Ranks
from stprune.schedule import Schedule
from stprune.sharded.plan import ShardedPlanner, check_sharded


class PruningSampler(Epochs):
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
        size = length_of(OP, data_source)
        num_epochs = None if num_epochs is None else _check.integer(OP, "num_epochs", num_epochs, 1, 2**32 - 1)
        self.keep_ratio = _check.real(OP, "keep_ratio", keep_ratio, 0.0, 1.0, low_open=True)
        self.seed, _ = _check.seed_and_epoch(OP, seed, 0)
        units = Granularity(
            OP, granularity, num_windows=size, num_nodes=num_nodes, node_ratio=node_ratio, node_sampler=node_sampler, seed=seed
        )
        self.granularity, self.draws_nodes, self.auto_nodes = units.kind, units.draws_nodes, units.auto
        self.anneal = _check.real(OP, "anneal", anneal, 0.0, 1.0)
        rule = resolve(OP, method)
        scheduled = Schedule(schedule, num_epochs, self.keep_ratio, self.anneal)
        labels = None if strata is None else checked_strata(OP, strata, units.num_samples)
        self.min_per_stratum = checked_quota(OP, min_per_stratum, labels, rule)
        ranks = Ranks(OP, num_replicas, rank, process_group)
        drop_last = _check.flag(OP, "drop_last", drop_last)
        self.fixed_length = _check.flag(OP, "fixed_length", fixed_length)
        if self.fixed_length and not rule.exact_count:
            raise ValueError(f"{OP}: fixed_length must be False for a method without an exact count, got {rule.name!r}")
        sharded = _check.flag(OP, "sharded", sharded)
        # Of methods that look at no score there is nothing to spread over ranks.
        kind = ShardedPlanner if sharded and not rule.uniform else Planner
        planner = kind(rule, scheduled, self.seed, self.fixed_length, labels, self.min_per_stratum)
        if sharded:
            check_sharded(OP, planner, ranks, units.node_sampler)
        super().__init__(planner, units, ranks, drop_last=drop_last, sharded=sharded)

    def __repr__(self) -> str:
        return (
            f"PruningSampler({self.table.num_samples} samples, epoch {self.epoch} of {self.num_epochs or 'a stream'}, "
            f"method={self.method.name!r}, keep_ratio={self.keep_ratio:g}, "
            f"{self._units}rank {self.rank} of {self.num_replicas})"
        )

    # --- the data set ------------------------------------------------------------------------------------------------

    @property
    def num_windows(self) -> int:
        """Windows of the data set."""
        return self._units.num_windows

    @property
    def num_nodes(self) -> int | None:
        """Nodes in every window; None where the sampler was not told."""
        return self._units.num_nodes

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
        op, size = f"{OP}.grow", self.table.num_samples
        num_samples = _check.integer(op, "num_samples", num_samples, size, 2**62)
        windows = self._units.windows_in(op, num_samples)
        planner = self._planner.grown(op, strata, num_samples - size, 1, min_per_stratum)
        self._take_size(planner, 1, windows, self.num_nodes, node_settings)

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
        op, before, pairs = f"{OP}.grow_nodes", self.num_nodes, self.granularity == "pair"
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
        self._take_size(planner, rows, self.num_windows, num_nodes, node_settings)
        if pairs and self._running is not None:
            self._running.renumber(before, num_nodes)

    def _take_size(
        self, planner: Planner, rows: int, num_windows: int, num_nodes: int | None, node_settings: dict[str, Any]
    ) -> None:
        """Come to another size; a sample's scores stand in so many rows, each of which grows at its end."""
        units = self._units
        units.grow(num_windows, num_nodes, **node_settings)
        self._planner, self.min_per_stratum = planner, planner.min_per_stratum
        self.table.grow(units.num_samples, rows=rows)
        self._memory = PlanMemory(units.num_samples)
        if self._running is not None:
            self._running.place()

    def forget(self, index: torch.Tensor) -> None:
        """Make samples unknown, as if never scored: their slots hold other data from now on.

        The next score replaces the unknown one. The epoch under way goes on as planned: see `ScoreTable.forget`. Nodes that
        "priority" drew of these windows in this epoch must be drawn again. Every rank forgets alike, or the next `set_epoch`
        raises a ValueError on all of them.

        Args:
            index: [B] int64 sample ids; not modified.

        Raises:
            TypeError, ValueError: `index` is no such vector; nothing is changed.
        """
        self.table.forget(index)
        if self.granularity == "node":
            self.node_sampler.forget(index)
        self._ranks.forgot(index)

    @property
    def strata(self) -> torch.Tensor | None:
        """[num_samples] int64 labels, made now of fewer bytes each, on the table's device; None without strata."""
        strata = self._planner.strata
        return None if strata is None else strata.labels.long()

    def to(self, device: torch.device | str) -> PruningSampler:
        """Move the table to the training device, in place; criteria do it with the first batch."""
        self.table.to(device)
        self._units.to(self.table.device)
        self._planner = self._planner.to(self.table.device)
        if self._running is not None:
            self._running.place()
        return self

    def keep_ratio_at(self, epoch: int) -> float:
        """The share of samples the schedule asks for in `epoch`."""
        return self._planner.keep_ratio_at(epoch)

    # --- ids ---------------------------------------------------------------------------------------------------------

    @property
    def num_samples(self) -> int:  # type: ignore[override]
        """Samples this rank delivers in the current epoch, as DistributedSampler calls it."""
        return self.running.share

    @property
    def total_size(self) -> int:  # type: ignore[override]
        """Samples all ranks deliver together in the current epoch."""
        return self.running.reach

    def __len__(self) -> int:
        return self.running.share

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
        batch_size = _check.integer(f"{OP}.batches", "batch_size", batch_size, 1)
        return Batches(self, batch_size, self.drop_last if drop_last is None else bool(drop_last), order, device)

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

    @property
    def node_ratio(self) -> float:
        """Share of the nodes that this epoch draws in every window; of pairs 1."""
        return self._units.node_ratio

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
        self._units.draw_next(f"{OP}.draw_next", num_drawn)

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
        op = f"{OP}.total_steps"
        batch_size = _check.integer(op, "batch_size", batch_size, 1)
        accumulate = _check.integer(op, "accumulate", accumulate, 1)
        if self.num_epochs is None:
            raise ValueError(f"{op}: num_epochs must be given to the sampler, got None: a run without an end has no total")
        steps = 0
        for epoch in range(self.num_epochs):
            count = self._planner.most_at(epoch, self.table.num_samples)
            for size in (self.num_replicas, batch_size):
                count = num_parts(count, size, drop_last=self.drop_last)
            steps += num_parts(count, accumulate)
        return steps

    # --- training steps ----------------------------------------------------------------------------------------------

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
        op, plan = f"{OP}.weights_of", self.running.plan
        index = _check.index(op, "index", index)
        weight, known = plan.lookup(index.cpu())
        _check.members(op, "index", index.cpu(), known, f"the plan of epoch {plan.epoch}")
        mean = torch.tensor(plan.mean_weight, dtype=torch.float32)
        return (weight / mean if per_step else weight).to(index.device, torch.float32)

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
        if (word := self.running.take_in(index, self.draws_some)) is not None:
            self._warn(*word)
