"""Running: the epoch that is being trained, what its steps look up, and how far it has come."""

from __future__ import annotations

from typing import Any

import torch

from stprune.ops import _check
from stprune.plan import Plan
from stprune.table import ScoreTable


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
        self.place()

    def place(self) -> None:
        """Bring what steps look up to the table's device."""
        ids, weights = self.plan.columns()
        device = self.table.device
        # A tensor: a number would be a constant of a compiled step, which would be compiled again every epoch.
        mean = torch.tensor(self.plan.mean_weight, dtype=torch.float32, device=device)
        self._columns = None if ids is None else ids.to(device), weights.to(device), mean
        self._local = None if self.plan.local is None else self.plan.local.to(device)

    def places(self, index: torch.Tensor) -> torch.Tensor:
        """See `PruningSampler.places`."""
        local = self._local
        if local is None:
            return index
        place = torch.searchsorted(local, index)
        found = local[place.clamp_max(len(local) - 1)] == index if len(local) else torch.zeros_like(index, dtype=torch.bool)
        if not torch.compiler.is_compiling() and index.is_cpu and not bool(found.all()):
            bad = int(index[~found][0])
            raise ValueError(f"PruningSampler: index must hold ids of this rank's share of the epoch, got {bad}")
        return torch.where(found, place, len(local))

    def step_arguments(self, per_step: bool) -> tuple[Any, ...]:
        """See `PruningSampler.step_arguments`."""
        ids, weights, mean = self._columns
        return ids, weights, mean if per_step else None, self.table.num_samples, *self.table.columns, self.table.beta

    def weights_of(self, index: torch.Tensor, per_step: bool) -> torch.Tensor:
        """See `PruningSampler.weights_of`."""
        op = "PruningSampler.weights_of"
        index = _check.index(op, "index", index)
        weight, known = self.plan.lookup(index.cpu())
        if not bool(known.all()):
            bad = int(index.cpu()[~known][0])
            raise ValueError(f"{op}: index must hold ids of the plan of epoch {self.plan.epoch}, got {bad}")
        mean = torch.tensor(self.plan.mean_weight, dtype=torch.float32)
        return (weight / mean if per_step else weight).to(index.device, torch.float32)

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
            padding = (at % self.num_replicas != self.rank) | (at < self._base)
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

    def begin_pass(self) -> int:
        """A pass over the epoch begins; the position at which it does."""
        if self._end is not None and self.table.num_losses == 0 and not self._recent:
            # Somebody only looked at the ids of the last pass: what is trained on now comes from a pass over the whole epoch.
            self._base, self._furthest, self._end = 0, 0, None
        self._again, self._losses = self._passes > 0, 0
        return self.begin_position

    def end_pass(self, end: int) -> None:
        """A pass has delivered its last id, up to position `end`; the next one delivers the whole epoch."""
        self._end, self.begin_position = end, 0
        if self.table.num_losses > 0:
            self._passes += 1

    def take_in(self, index: torch.Tensor) -> bool:
        """Notice a batch of losses; True where with it a whole second pass over the epoch's ids was trained on."""
        if not self.table.stored and index.numel() > 0:
            # A compiled step keeps the last batch alone, as it would be compiled anew for each length of the list.
            self._recent = [index] if torch.compiler.is_compiling() else [*self._recent, index]
        if torch.compiler.is_compiling():
            return False
        if len(self._recent) > 64:
            _ = self.num_trained  # which empties the list
        if not self._again:
            return False
        self._losses += index.numel()
        if self._losses < self.share:
            return False
        self._losses = self.table.num_losses - self.num_trained
        return self._losses >= self.share

    def check_ids(self) -> None:
        """Refuse an epoch of which every delivered sample had one loss, but ids came back: they do not name samples.

        Raises:
            ValueError: it is so.
        """
        if self._passes != 1 or not self.table.stored:
            return
        losses, trained = self.table.num_losses, self.table.num_trained
        if losses != self.share or trained >= losses - self.num_replicas:
            return
        # The first half of the epoch trained on with two losses a batch gives the same numbers, and is in order.
        first = self.plan.share(0, trained, self.rank, self.num_replicas)
        if not self.table.were_trained(self.places(first.to(self.table.device))):
            raise ValueError(
                f"PruningSampler: index must name every sample of epoch {self.plan.epoch} by an id of its own, got {trained} "
                f"ids for {losses} samples. Joined data sets go inside: IndexedDataset(ConcatDataset([a, b]))"
            )
