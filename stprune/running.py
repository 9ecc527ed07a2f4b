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
        num_replicas: number of ranks.
        position: of the plan's order, where the next pass begins and from which trained samples are counted.

    Attributes:
        plan, share: as given.
        reach: position at which every rank has delivered its share.
        begin_position: position at which the next pass begins: 0 as soon as one has come to its end.
        finished: the epoch was over when it was resumed.
    """

    def __init__(self, table: ScoreTable, plan: Plan, *, share: int, num_replicas: int, position: int = 0) -> None:
        self.table = table
        self.plan = plan
        self.share = share
        self.num_replicas = num_replicas
        self.reach = share * num_replicas
        self.begin_position = self._base = position
        self.finished = 0 < position >= self.reach
        self._last: torch.Tensor | None = None  # ids of the last batch, where nothing is stored
        self._passes = 0  # passes that came to their end
        self._losses = 0  # samples of losses since the first of them
        self.place()

    def place(self) -> None:
        """Bring what steps look up to the table's device."""
        ids, weights = self.plan.columns()
        device = self.table.device
        # A tensor: a number would be a constant of a compiled step, which would be compiled again every epoch.
        mean = torch.tensor(self.plan.mean_weight, dtype=torch.float32, device=device)
        self._columns = None if ids is None else ids.to(device), weights.to(device), mean

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
        if self._last is None:
            return 0
        # Nothing is stored of the samples; but batches come in the plan's order, of which the last one tells the position.
        return (int(self.plan.positions(self._last).max()) - self._base) // self.num_replicas + 1

    @property
    def position(self) -> int:
        """Position of the plan's order up to which samples were trained on, on all ranks."""
        return min(self._base + self.num_trained * self.num_replicas, self.reach)

    def end_pass(self) -> None:
        """A pass has delivered its last id; the next one delivers the whole epoch."""
        self.begin_position = 0
        # Somebody may only have looked at the ids.
        if self.table.num_losses > 0:
            self._passes += 1

    def take_in(self, index: torch.Tensor) -> bool:
        """Notice a batch of losses; True where with it a whole second pass over the epoch's ids was trained on."""
        if not self.table.stored:
            self._last = index
        if self._passes == 0 or torch.compiler.is_compiling():
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
        if losses == self.share and trained < losses - self.num_replicas:
            raise ValueError(
                f"PruningSampler: index must name every sample of epoch {self.plan.epoch} by an id of its own, got {trained} "
                f"ids for {losses} samples. Joined data sets go inside: IndexedDataset(ConcatDataset([a, b]))"
            )
