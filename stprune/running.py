"""Running: the epoch that is being trained, what its steps look up, and how far it has come."""

from __future__ import annotations

from typing import Any

import torch

from stprune.ops import _check
from stprune.ops.plan_lookup import rows_of
from stprune.plan import Plan
from stprune.table import ScoreTable

_VALIDATION = "probably the criterion is called in validation, without criterion.eval() before"


class Running:
    """An epoch under way.

    Args:
        table: the scores, which count what is trained on.
        plan: the epoch's plan.
        share: samples that a rank delivers in the whole epoch, padding included.
        num_replicas, rank: number of ranks, and which this is.
        position: of the plan's order, where the next pass begins and from which trained samples are counted.

    Attributes:
        plan, share: as given.
        reach: position at which every rank has delivered its share.
        begin_position: position at which the next pass begins: 0 as soon as one has come to its end.
        finished: the epoch was over when it was resumed.
    """

    def __init__(self, table: ScoreTable, plan: Plan, *, share: int, num_replicas: int, rank: int, position: int = 0) -> None:
        self.table = table
        self.plan = plan
        self.share = share
        self.num_replicas, self.rank = num_replicas, rank
        self.reach = share * num_replicas
        self.begin_position = self._base = position
        self.finished = 0 < position >= self.reach
        self._end: int | None = None  # position at which the last pass ended: before `reach` where it dropped a tail
        self._recent: list[torch.Tensor] = []  # ids of the last batches, where nothing is stored
        self._furthest = position  # position up to which they came before
        self._passes = 0  # passes that came to their end
        self._again = False  # another one has begun since
        self._losses = 0  # samples of losses since then
        self._open = False  # a pass has begun and has ids left
        self._batch = 0  # samples of the last batch of losses; 0: not known
        self._seen = 0  # samples of all batches that came here: no compiled or captured step's
        self.place()

    @torch.inference_mode(False)  # or no training step could use what is made here
    def place(self) -> None:
        """Bring what steps look up to the table's device."""
        ids, weights = self.plan.columns()
        if ids is None and self.table.stored and self.table.num_samples > self.plan.num_samples:
            ids = self.plan.indices  # of every sample that there was when the epoch was planned
        device = self.table.device
        # A tensor: a number would be a constant of a compiled step, which would be compiled again every epoch.
        mean = torch.tensor(self.plan.mean_weight, dtype=torch.float32, device=device)
        self._columns = None if ids is None else ids.to(device), weights.to(device), mean
        self._local = None if self.plan.local is None else self.plan.local.to(device)

    def places(self, index: torch.Tensor) -> torch.Tensor:
        """What an op takes as index beside `step_arguments`: rows of the table, which are the ids unless it is sharded.

        Args:
            index: [B] int64 sample ids on the table's device; not modified.

        Raises:
            ValueError: an id is not in this rank's share of a sharded plan (looked at on the CPU).
        """
        if self._local is None:
            return index
        place, known = rows_of(self._local, index)
        if not torch.compiler.is_compiling() and index.is_cpu:
            _check.members("PruningSampler", "index", index, known, "this rank's share of the epoch")
        return place

    def step_arguments(self, *, per_step: bool) -> tuple[Any, ...]:
        """What an op looks weights up in and takes scores into, on the table's device.

        Args:
            per_step: weights are divided by the plan's mean weight.

        Returns:
            ids [K] int64 of the plan, or None where every id in [0, num_samples) is in it; weights [K] or [1] float32; their
            divisor [] float32 or None; num_samples; the table's scores, marks, variance, count and beta.
        """
        ids, weights, mean = self._columns
        size = self.plan.num_samples if ids is None and self._local is None else self.table.num_samples
        return ids, weights, mean if per_step else None, size, *self.table.columns, self.table.beta

    # --- how far it has come -----------------------------------------------------------------------------------------

    @property
    def num_trained(self) -> int:
        """Distinct samples of this rank, from where the epoch was resumed, that were trained on."""
        if self.table.stored:
            return self.table.num_trained
        # Nothing is stored of the samples; but batches come in the plan's order, in which the furthest tells the position.
        for index in self._recent:
            at = self.plan.positions(index.cpu())
            # Padding, which belongs to another rank or comes a second time, ends the share.
            padding = ((at - self._base) % self.num_replicas != self.rank) | (at < self._base)
            self._furthest = max(
                self._furthest, self.reach if bool(padding.any()) else int(at.max()) + self.num_replicas - self.rank
            )
        self._recent = []
        return -(-(self._furthest - self._base) // self.num_replicas)

    @property
    def position(self) -> int:
        """Position of the plan's order up to which samples were trained on, on all ranks."""
        position = self._base + self.num_trained * self.num_replicas
        return self.reach if self._end is not None and position >= self._end else min(position, self.reach)

    @property
    def over(self) -> bool:
        """Whether all of the epoch was trained on."""
        return 0 < self.position == self.reach

    @property
    def planned(self) -> int:
        """Samples that this rank delivers from where the epoch was resumed."""
        return -(-((self.reach if self._end is None else self._end) - self._base) // self.num_replicas)

    @property
    def under_way(self) -> bool:
        """Whether ids of the epoch are handed out, or some samples were trained on and whole batches were not."""
        trained = self.num_trained
        return self._open or (self._base + trained > 0 and self.planned - trained >= max(1, self._batch))

    @torch.inference_mode(False)
    def renumber(self, before: int, after: int) -> None:
        """Go on with windows of `after` nodes instead of `before`."""
        _ = self.num_trained  # of batches that hold old ids
        self.plan = self.plan.renumbered(before, after)
        self.place()

    def begin_pass(self) -> int:
        """A pass over the epoch begins; the position at which it does."""
        if self._end is not None and self.table.num_losses == 0 and not self._recent:
            # Somebody only looked at the ids of the last pass: what is trained on now comes from a pass over the whole epoch.
            self._base, self._furthest, self._end = 0, 0, None
        self._again, self._losses, self._open = self._passes > 0, 0, True
        return self.begin_position

    def end_pass(self, end: int) -> None:
        """A pass has delivered its last id, up to position `end`; the next one delivers the whole epoch."""
        self._end, self.begin_position, self._open = end, 0, False
        if self.table.num_losses > 0:
            self._passes += 1

    # --- what came in, against the plan --------------------------------------------------------------------------------

    def take_in(self, index: torch.Tensor, draws_some: bool) -> tuple[str, str] | None:
        """Notice a batch of losses, of drawn nodes or not; what is to be said about it, by a name and in words, or None."""
        size = index.numel()
        if size == 0:
            return None
        if not self.table.stored:
            # A compiled step keeps the last batch alone, as it would be compiled anew for each length of the list.
            self._recent = [index] if torch.compiler.is_compiling() else [*self._recent, index]
        self._batch = size
        if torch.compiler.is_compiling():
            return None
        if len(self._recent) > 64:
            _ = self.num_trained  # which empties the list
        left = self.planned - self._seen
        self._seen += size
        if self._again:
            self._losses += size
            if self._losses >= self.share:
                self._losses = self.table.num_losses - self.num_trained
            if self._losses < self.share:
                return None
            return "set_epoch", (
                f"PruningSampler: epoch {self.plan.epoch} was trained on a second time. Nothing is pruned or scored anew"
                f"{', and of each window the same nodes are drawn,' * draws_some} until sampler.set_epoch(epoch) begins the "
                "next epoch"
            )
        # Every id was handed out, and this batch brings more than can be left of them. Where a batch has two losses or more,
        # at most half of the samples seen, and this batch, were trained on.
        last = self._end is not None and not self._open and 0 <= left < size
        if not last or self._seen <= 4 * size or self.num_trained < self._seen - size:
            return None
        return "counts", self._words(self._seen, self._seen - size, _VALIDATION)

    def refuse_wrong_ids(self) -> None:
        """Raise a ValueError, once, if an id came on a GPU that is not in the plan or the table."""
        if wrong := self.table.counts()[2]:
            raise ValueError(wrong)

    def fault(self, needs_scores: bool, *, at_end: bool) -> tuple[str, bool]:
        """What the samples counted in the epoch say against its plan, and whether it must be raised; "" where they agree.

        They agree where all that were trained on were planned and had the same number of losses (two criteria, SAM, gradient
        checkpointing), and less than a batch is missing (which loaders drop). An epoch without any loss was only looked at,
        unless the run ends, `needs_scores`, and all its samples were delivered.
        """
        trained, losses, wrong = self.table.counts()
        if wrong:
            return wrong, True
        planned, trained = self.planned, trained if self.table.stored else self.num_trained
        if losses == 0:
            if not (at_end and needs_scores) or planned == 0 or self._end is None:
                return "", False
            return self._words(0, 0, "the criterion has another sampler, or is not in training mode"), False
        ids, missing = self._columns[0], planned - trained
        foreign = 0 if ids is None else trained - self.table.num_trained_of(ids)
        if foreign:
            return self._words(
                losses, trained, f"{foreign} of these are not in the plan, but of another data set or epoch"
            ), False
        if self.table.stored and trained < losses == planned:
            # Passes that were broken off may give the same numbers, but train on the first samples of the order.
            left = min(self.reach, len(self.plan)) - self._base - self.rank
            number = min(trained, max(0, -(-left // self.num_replicas)))
            first = self.plan.share(self._base, number, self.rank, self.num_replicas)
            if self.table.num_trained_of(self.places(first.to(self.table.device))) < trained:
                return (
                    f"PruningSampler: index must name every sample of epoch {self.plan.epoch} by an id of its own, got "
                    f"{trained} ids for {losses} samples. Joined data sets go inside: IndexedDataset(ConcatDataset([a, b]))"
                ), not at_end
        if 0 < self._batch <= missing:
            return self._words(
                losses, trained, f"{missing} were left out, as the epoch was cut short or a batch skipped"
            ), False
        return self._words(losses, trained, _VALIDATION) if losses % trained else "", False

    def _words(self, losses: int, trained: int, why: str) -> str:
        return (
            f"PruningSampler: epoch {self.plan.epoch} has {self.planned} samples for this rank, and {losses} losses of "
            f"{trained} distinct samples came: {why}"
        )
