"""ShardedTable: the scores of all samples, each on the rank that owns it; a rank also holds those that it trains on."""

from __future__ import annotations

from typing import Any

import torch

from stprune.exchange import mean_by_id
from stprune.ops import _check
from stprune.ops.plan_lookup import rows_of
from stprune.ops.table_age import count_nonfinite, table_age
from stprune.ops.table_update import FRESH, KNOWN, SCORED
from stprune.ranks import Ranks
from stprune.sharded.owners import Owners
from stprune.sharded.rules import finite_mean
from stprune.table import ScoreTable

_OP = "ShardedTable"
_STATE = ("settings", "epoch", "range", "scores", "marks", "known")


class ShardedTable:
    """What `ScoreTable` is for the sampler, with n / ranks scores on each rank.

    During an epoch a rank trains on a copy of the scores of its own share of the plan, which the owners sent it beside the
    ids (`deal`); `synchronize` sends them back. Both are collectives.

    Args:
        num_samples: of the training set.
        ranks: who they are; settled at the first use.
        beta, decay: as in `ScoreTable`.
    """

    stored = True

    def __init__(self, num_samples: int, ranks: Ranks, *, beta: float, decay: float) -> None:
        self.num_samples = _check.integer(_OP, "num_samples", num_samples, 0, 2**40)
        self.beta, self.decay, self.epoch = beta, decay, 0
        self._ranks = ranks
        self._owners: Owners | None = None
        self._own = ScoreTable(0, beta=beta, decay=decay)
        # Of this epoch: ids of the rank's share, ascending, and their table.
        self.ids = torch.empty(0, dtype=torch.int64)
        self.share = ScoreTable(0, beta=beta, decay=decay)
        self.known = False  # some sample has been scored

    def __repr__(self) -> str:
        return f"ShardedTable(num_samples={self.num_samples}, device={self.device}, beta={self.beta}, decay={self.decay})"

    @property
    def owners(self) -> Owners:
        """Who owns what."""
        if self._owners is None:
            num_ranks, rank = self._ranks.both
            self._owners = Owners(self.num_samples, self._ranks.group, num_ranks=num_ranks, rank=rank)
            size = self._owners.stop - self._owners.start
            self._own = ScoreTable(size, device=self.device, beta=self.beta, decay=self.decay)
        return self._owners

    @property
    def device(self) -> torch.device:
        """Where the table lives."""
        return self.share.device

    @property
    def own(self) -> ScoreTable:
        """The scores of this rank's own range of samples, [owners.stop - owners.start]."""
        _ = self.owners
        return self._own

    @property
    def scores(self) -> torch.Tensor:
        """[owners.stop - owners.start] float32, of this rank's own samples as of the last exchange; read it only."""
        return self.own.scores

    def to(self, device: torch.device | str) -> ShardedTable:
        """Move the table to `device` in place."""
        self._own.to(device)
        self.share.to(device)
        self.ids = self.ids.to(device)
        return self

    def places(self, index: torch.Tensor) -> torch.Tensor:
        """Where samples [B] of this rank's share stand in its table: see `rows_of`."""
        return rows_of(self.ids, index)[0]

    def update(self, index: torch.Tensor, scores: torch.Tensor, *, trained: bool = False) -> None:
        """As `ScoreTable.update`, of samples of this rank's share of the epoch.

        Raises:
            ValueError: besides what `ScoreTable.update` says, an id on the host is not in the share.
        """
        op = f"{_OP}.update"
        index = _check.index(op, "index", index)
        place = self.places(index.to(self.device))
        if place.is_cpu and bool((missing := place < 0).any()):
            raise ValueError(f"{op}: index must hold ids of this rank's share of the epoch, got {int(index[missing.cpu()][0])}")
        self.share.update(place, scores, trained=trained)

    def deal(self, ids: torch.Tensor, scores: torch.Tensor) -> None:
        """Begin to train on samples [m] int64, ascending, whose scores [m] float32 the owners sent."""
        self.ids = ids.to(self.device)
        share = ScoreTable(len(ids), device=self.device, beta=self.beta, decay=self.decay)
        share.load_state_dict(share.state_dict() | {"scores": scores})
        self.share = share

    def synchronize(self, group: Any = None) -> None:
        """Send the scores measured since the last call to the samples' owners: 12 bytes each, in one message.

        A collective. A sample scored by several ranks (padding) gets the mean of their values, added up by rank.

        Args:
            group: as the sampler's; not looked at.
        """
        owners, share = self.owners, self.share
        values, marks = _columns(share)
        own_values, own_marks = _columns(self.own)
        fresh = (marks & FRESH).nonzero().flatten()
        index = self.ids[fresh]
        index, values = owners.route(owners.of(index), [index, values[fresh]])
        index, (values,) = mean_by_id(index, [values])
        place = index - owners.start
        own_values[place] = values
        own_marks[place] |= SCORED | KNOWN
        marks &= ~FRESH
        self.known = True

    def advance(self, num_epochs: int = 1) -> None:
        """End an epoch, as `ScoreTable.advance`; the mean is that of all ranks' scores. A collective."""
        num_epochs = _check.integer(_OP, "num_epochs", num_epochs, 1)
        scores, marks = _columns(self.own)
        mean = finite_mean(self.owners, scores) if self.decay < 1.0 else None
        table_age(scores, marks, mean=mean, keep=self.decay**num_epochs)
        self.epoch += num_epochs

    def restart(self) -> None:
        """Begin the epoch anew: nothing counts as trained on in it; scores stay."""
        self.share.restart()

    def forget(self, index: torch.Tensor) -> None:
        """As `ScoreTable.forget`; every rank is given the same ids, and forgets those that it owns or trains on."""
        index = _check.index(f"{_OP}.forget", "index", index)
        _check.ids(f"{_OP}.forget", "index", index.cpu(), self.num_samples - 1)
        index = index.to(self.device)
        place = self.places(index)
        self.share.forget(place[place >= 0])
        self.own.forget(index[self.owners.of(index) == self.owners.rank] - self.owners.start)

    def num_nonfinite(self) -> int:
        """How many of this rank's own samples were scored NaN or infinite last time."""
        scores, marks = _columns(self.own)
        return count_nonfinite(scores, marks)

    def settings(self) -> dict[str, Any]:
        """What must be the same in a saved state."""
        return {name: getattr(self, name) for name in ("num_samples", "beta", "decay")}

    def state_dict(self) -> dict[str, Any]:
        """This rank's own samples; `reshard` joins and splits the states of all ranks for another number of them."""
        scores, marks = _columns(self.own)
        place = [self.owners.start, self.owners.stop, self.owners.num_ranks]
        return dict(zip(_STATE, (self.settings(), self.epoch, place, scores, marks, self.known), strict=True))

    def check_state(self, state: dict[str, Any]) -> None:
        """Refuse, on every rank, a state of other settings or of another rank, before anything is changed. A collective.

        Raises:
            ValueError: a rank's state does not fit; the message names what differs.
        """
        op = f"{_OP}.load_state_dict"
        _check.same_keys(op, state, _STATE)
        _check.same_settings(op, "table", self.settings(), state["settings"])
        owners, given = self.owners, list(state["range"])
        mine = [owners.start, owners.stop, owners.num_ranks]
        wrong = [rank for rank, (fits,) in enumerate(owners.numbers(int(mine == given))) if not fits]
        if wrong:
            raise ValueError(
                f"{op}: range must be {mine} (first, end, number of ranks) on rank {owners.rank}, got {given}; it does not fit "
                f"on ranks {wrong}. stprune.reshard(states, num_replicas, rank) makes a state for another number of ranks"
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`.

        Raises:
            ValueError: see `check_state`; nothing is changed.
        """
        self.check_state(state)
        self.epoch, self.known = int(state["epoch"]), _check.flag(_OP, "known", state["known"])
        own = self.own
        own.load_state_dict(own.state_dict() | {"scores": state["scores"], "marks": state["marks"]})
        self.deal(self.ids[:0], own.scores[:0])


def _columns(table: ScoreTable) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and marks of a table that has them."""
    scores, marks, *_ = table.columns
    assert scores is not None
    assert marks is not None
    return scores, marks
