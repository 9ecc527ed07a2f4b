"""ScoreTable: the latest score of every sample, on the training device (eq. 5)."""

from __future__ import annotations

from typing import Any

import torch

from stprune.exchange import exchanged
from stprune.ops import _check
from stprune.ops.finite_mean import finite_mean
from stprune.ops.host_memory import filled
from stprune.ops.table_age import count_nonfinite, table_age
from stprune.ops.table_update import FRESH, KNOWN, SCORED, TRAINED, table_update, wrong_id

_OP = "ScoreTable"
_COLUMNS = ("scores", "marks", "variance")
LAYOUT = 1
"""Of pickled tables and samplers: one more with every change of what their attributes hold."""
Columns = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor]


class ScoreTable:
    """The latest score of every sample, smoothed over epochs.

    A visited sample moves to `beta * old + (1 - beta) * new`; at the end of an epoch an unvisited one decays towards the
    mean of all finite scores by the factor `decay`. A sample never scored holds +inf, so that every rule keeps it. NaN and
    infinite scores are stored as they come, enter no mean, and the next finite score replaces them.

    Args:
        num_samples: how many samples the training set has.
        device: where the table lives; the training device. None means the CPU.
        beta: weight of the old score, in [0, 1); 0 means the last score wins.
        decay: kappa of eq. 5, in (0, 1]; 1 keeps old scores unchanged.
        track_variance: also keep a running variance of each sample's scores (the "ucb" method needs it).
        stored: False keeps no scores, only counts: a few bytes whatever the number of samples, for methods that look at none.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument lies outside its range.

    Example:
        >>> import torch, stprune
        >>> table = stprune.ScoreTable(4, beta=0.5)
        >>> table.update(torch.tensor([1, 2]), torch.tensor([4.0, 8.0]))
        >>> table.update(torch.tensor([1]), torch.tensor([2.0]))
        >>> table.scores
        tensor([inf, 3., 8., inf])

    Source:
        Eq. 5, our definition; beta = 0 with decay = 1 is InfoBatch's table. 5 bytes a sample, 9 with variances.
    """

    @torch.inference_mode(False)  # or no training step could write into the table
    def __init__(
        self,
        num_samples: int,
        *,
        device: torch.device | str | None = None,
        beta: float = 0.5,
        decay: float = 0.97,
        track_variance: bool = False,
        stored: bool = True,
    ) -> None:
        self.num_samples = _check.integer(_OP, "num_samples", num_samples, 0, 2**62)
        self.beta = _check.real(_OP, "beta", beta, 0.0, 1.0)
        if self.beta == 1.0:
            raise ValueError(f"{_OP}: beta must lie in [0, 1), got 1")
        self.decay = _check.real(_OP, "decay", decay, 0.0, 1.0, low_open=True)
        self.epoch = 0
        self.stored = bool(stored)
        device = "cpu" if device is None else device
        self._scores = filled(self.num_samples, torch.inf, torch.float32, device) if self.stored else None
        # SCORED, FRESH, TRAINED and KNOWN. An update writes one byte beside a score, as every array more is a cache line
        # more for each id.
        self._marks = filled(self.num_samples, 0, torch.uint8, device) if self.stored else None
        self._variance = filled(self.num_samples, 0.0, torch.float32, device) if self.stored and track_variance else None
        # Of this epoch: distinct samples trained on, a number of the kernel's own, samples of all training batches, and a wrong
        # id. Beside the scores: an update adds to them without asking the host, also when a captured graph replays it.
        self._count = torch.zeros(4, dtype=torch.int64, device=device)

    def __repr__(self) -> str:
        return f"ScoreTable(num_samples={self.num_samples}, device={self.device}, beta={self.beta}, decay={self.decay})"

    def __getstate__(self) -> dict[str, Any]:
        """State for copies."""
        return self.__dict__ | {"layout": LAYOUT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a copy; a pickle of another version of stprune is refused."""
        self.__dict__.update(unpickled(_OP, state))

    @property
    def device(self) -> torch.device:
        """Where the table lives."""
        return self._count.device

    @property
    def scores(self) -> torch.Tensor:
        """[num_samples] float32, +inf where never scored. The table's own storage: read it, do not write it."""
        return self._nothing(torch.inf) if self._scores is None else self._scores

    @property
    def variance(self) -> torch.Tensor:
        """[num_samples] float32 running variance of each sample's scores; zeros unless track_variance was set."""
        return self._nothing(0.0) if self._variance is None else self._variance

    def _nothing(self, value: float) -> torch.Tensor:
        return torch.full((1,), value, dtype=torch.float32, device=self.device).expand(self.num_samples)

    @property
    def columns(self) -> Columns:
        """What an update modifies, as `table_update` takes it: scores, marks, variance and count."""
        return self._scores, self._marks, self._variance, self._count

    @property
    def num_trained(self) -> int:
        """Distinct samples trained on in this epoch (0 where nothing is stored). Waits for the table's device."""
        return int(self._count[0])

    @property
    def num_losses(self) -> int:
        """Samples of all training batches of this epoch, each as often as it came. Waits for the table's device."""
        return int(self._count[2])

    def counts(self) -> tuple[int, int, str]:
        """`num_trained`, `num_losses`, and what is to be said, once, of a wrong id that came on a GPU; waits once."""
        trained, _, losses, noted = self._count.tolist()
        wrong = wrong_id(noted)
        if wrong is None:
            return trained, losses, ""
        self._count[3:].zero_()
        text = f"table_update: index must hold ids of the table and the epoch's plan, got {wrong} in a batch on {self.device}. "
        return trained, losses, text + "Nothing was stored for the id, and a loss of that batch was NaN"

    def num_trained_of(self, index: torch.Tensor) -> int:
        """How many of the samples [B] int64, all distinct, were trained on in this epoch. Waits for the table's device."""
        return 0 if self._marks is None else int((self._marks[index.to(self.device)] & TRAINED).count_nonzero())

    def to(self, device: torch.device | str) -> ScoreTable:
        """Move the table to `device` in place; scores keep their bits."""
        self._scores, self._marks, self._variance = (
            None if column is None else column.to(device) for column in (self._scores, self._marks, self._variance)
        )
        self._count = self._count.to(device)
        return self

    def update(self, index: torch.Tensor, scores: torch.Tensor, *, trained: bool = False) -> None:
        """Take in the scores of a batch: one op, nothing is copied to the host.

        Args:
            index: [B] int64 sample ids in [0, num_samples); not modified. Where an id repeats, the last one wins.
            scores: [B] of any floating dtype, on the table's device; not modified.
            trained: the batch was trained on: it counts towards `num_trained`, and samples that were trained on in this
                epoch before are left alone, so that a second loss of one batch moves nothing.

        Raises:
            TypeError: `index` is not int64 or `scores` not floating.
            ValueError: shapes differ, an id lies outside the table (checked where `index` lives on the CPU; on a GPU nothing
                is stored for it, and `counts` says so), or `scores` lives on another device.
        """
        op = f"{_OP}.update"
        index = _check.index(op, "index", index)
        scores = _check.vector(op, "scores", _check.floating(op, "scores", scores))
        if scores.shape != index.shape:
            raise ValueError(f"{op}: scores must have the shape of index {tuple(index.shape)}, got {tuple(scores.shape)}")
        if scores.device != self.device:
            raise ValueError(f"{op}: scores must live on the table's device {self.device}, got {scores.device}")
        if not index.is_cpu or self.device.type != "cpu":
            _check.ids(op, "index", index, self.num_samples - 1)
            index = index.to(self.device, non_blocking=True)
        values = scores.detach().to(torch.float32).contiguous()
        try:
            table_update(*self.columns, index.contiguous(), values, beta=self.beta, trained=trained)
        except RuntimeError:
            # The op looks at the ids before it writes: only its error is explained, so that none is looked at twice.
            _check.ids(op, "index", index, self.num_samples - 1)
            raise

    def advance(self, num_epochs: int = 1) -> None:
        """End an epoch: samples not scored in it decay towards the mean, and nothing counts as trained on any more.

        Args:
            num_epochs: how many epochs have passed, at least 1.
        """
        num_epochs = _check.integer(_OP, "num_epochs", num_epochs, 1)
        if self._scores is not None and self._marks is not None:
            mean = finite_mean(self._scores) if self.decay < 1.0 else None
            table_age(self._scores, self._marks, mean=mean, keep=self.decay**num_epochs)
        self._count[:3].zero_()
        self.epoch += num_epochs

    def restart(self) -> None:
        """Begin the epoch anew: nothing counts as trained on in it; scores stay."""
        if self._marks is not None:
            self._marks &= SCORED | FRESH | KNOWN
        self._count[:3].zero_()

    @torch.inference_mode(False)  # or no training step could write into what is made here
    def grow(self, num_samples: int, *, rows: int = 1) -> None:
        """Hold more samples, in place: the new ones were never scored, all others keep everything.

        Args:
            num_samples: how many samples there are then; at least as many as now, and a multiple of `rows`.
            rows: the samples stand in so many rows of one length, and each row grows at its end: pairs, one row a window.

        Raises:
            TypeError, ValueError: a number breaks its rule; nothing is changed.
        """
        op = f"{_OP}.grow"
        rows = _check.integer(op, "rows", rows, 1)
        num_samples = _check.integer(op, "num_samples", num_samples, self.num_samples, 2**62)
        if num_samples % rows or self.num_samples % rows:
            raise ValueError(f"{op}: num_samples must be a multiple of {rows} rows, got {num_samples} after {self.num_samples}")
        grown = []
        for column, value in zip(self.columns[:3], (torch.inf, 0, 0.0), strict=True):
            if column is not None:
                old = column.view(rows, self.num_samples // rows)
                column = filled(num_samples, value, old.dtype, old.device)
                column.view(rows, num_samples // rows)[:, : old.shape[1]] = old
            grown.append(column)
        self._scores, self._marks, self._variance = grown
        self.num_samples = num_samples

    def forget(self, index: torch.Tensor) -> None:
        """Make samples unknown, as if never scored: their slots hold other data from now on.

        The next score replaces the unknown one. Of the epoch under way nothing is undone: who was trained on in it counts as
        trained, and is not scored by training again before the next. Where ranks exchange scores, every rank forgets alike:
        a score that another rank measured before and still holds would come back.

        Args:
            index: [B] int64 ids in [0, num_samples), in any order, also repeated; not modified.

        Raises:
            TypeError, ValueError: `index` is no such vector; nothing is changed.
        """
        op = f"{_OP}.forget"
        index = _check.index(op, "index", index)
        # Also on a GPU, which is waited for: indexing there would end the process's use of it.
        _check.ids(op, "index", index.cpu(), self.num_samples - 1)
        index = index.to(self.device)
        if self._scores is not None and self._marks is not None:
            self._scores[index] = torch.inf
            self._marks[index] &= TRAINED
        if self._variance is not None:
            self._variance[index] = 0.0

    def num_nonfinite(self) -> int:
        """How many samples were scored NaN or infinite last time (never scored ones do not count)."""
        if self._scores is None or self._marks is None:
            return 0
        return count_nonfinite(self._scores, self._marks)

    def synchronize(self, group: Any = None) -> None:
        """Give every rank the scores that the others measured since the last call; nothing else travels.

        A collective: every rank must call it. A sample scored by several ranks (padding) gets the mean of their values, added
        up in the order of the ranks. Every rank sends 12 bytes for each sample that it scored, 16 with variances.

        Args:
            group: torch.distributed process group; None is the default group.
        """
        if self._scores is None or self._marks is None:
            return
        marks = self._marks
        buffers = [self._scores] if self._variance is None else [self._scores, self._variance]
        for index, values in exchanged(lambda part: (marks[part] & FRESH) > 0, buffers, group):
            for buffer, value in zip(buffers, values, strict=True):
                buffer[index] = value
            marks[index] |= SCORED | KNOWN
        marks &= SCORED | TRAINED | KNOWN

    def settings(self) -> dict[str, Any]:
        """What must be the same in a saved state."""
        names = ("num_samples", "beta", "decay", "stored")
        return {name: getattr(self, name) for name in names} | {"track_variance": self._variance is not None}

    def state_dict(self) -> dict[str, Any]:
        """Everything but the counts of the epoch, loadable under torch.load(weights_only=True): the table's own tensors."""
        return {"settings": self.settings(), "epoch": self.epoch} | dict(zip(_COLUMNS, self.columns[:3], strict=True))

    def check_state(self, state: dict[str, Any]) -> None:
        """Refuse a state of other settings or sizes, before anything is changed.

        Raises:
            ValueError: the state does not fit; the message names what differs.
        """
        op = f"{_OP}.load_state_dict"
        _check.same_keys(op, state, ("settings", "epoch", *_COLUMNS))
        _check.same_settings(op, "table", self.settings(), state["settings"])
        for name, column in zip(_COLUMNS, self.columns[:3], strict=True):
            mine, given = (None if one is None else (tuple(one.shape), one.dtype) for one in (column, state[name]))
            if mine != given:
                raise ValueError(f"{op}: {name} must be {mine} as in this table, got {given}")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`; the table keeps its device, and the counts of the epoch begin at 0.

        Raises:
            ValueError: the state belongs to a table of another size, or with other settings; nothing is changed.
        """
        self.check_state(state)
        self.epoch = int(state["epoch"])
        for name, column in zip(_COLUMNS, self.columns[:3], strict=True):
            if column is not None:
                column.copy_(state[name])
        if self._marks is not None:
            # What was scored in the epoch is news to the other ranks where each loads a state of its own.
            self._marks &= (SCORED | TRAINED | KNOWN) | (self._marks & SCORED) * FRESH
        self._count[:3].zero_()


def unpickled(op: str, state: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a copy, from its `__getstate__`.

    Pickles hold attributes as they are, for copies and other processes; states are for files that outlive a version.

    Raises:
        ValueError: another version of stprune made the pickle, in which attributes may mean something else.
    """
    if (layout := state.get("layout")) != LAYOUT:
        raise ValueError(
            f"{op}: layout of the pickle must be {LAYOUT}, got {layout}: another version of stprune made it. Load it there and "
            "save its state_dict(), which a new sampler or table takes by load_state_dict()"
        )
    return {name: value for name, value in state.items() if name != "layout"}
