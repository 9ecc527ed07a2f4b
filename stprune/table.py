"""ScoreTable: the latest score of every sample, on the training device (eq. 5)."""

from __future__ import annotations

from typing import Any

import torch

from stprune.ops import _check
from stprune.ops.finite_mean import finite_mean
from stprune.ops.host_memory import filled
from stprune.ops.table_age import NEVER, count_nonfinite, table_age
from stprune.ops.table_update import table_update

_CHUNK = 1 << 22  # ranks exchange the table in pieces of this size, so that temporaries stay under 100 MB


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
        Eq. 5, our definition; beta = 0 with decay = 1 is InfoBatch's table.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        device: torch.device | str | None = None,
        beta: float = 0.5,
        decay: float = 0.97,
        track_variance: bool = False,
    ) -> None:
        self.num_samples = _check.integer("ScoreTable", "num_samples", num_samples, 0, 2**62)
        self.beta = _check.real("ScoreTable", "beta", beta, 0.0, 1.0)
        if self.beta == 1.0:
            raise ValueError("ScoreTable: beta must lie in [0, 1), got 1")
        self.decay = _check.real("ScoreTable", "decay", decay, 0.0, 1.0, low_open=True)
        self._epoch = 0
        device = "cpu" if device is None else device
        self._scores = filled(self.num_samples, float("inf"), torch.float32, device)
        # An update writes one byte beside a score, as every array more is a cache line more for each id. Whether an id was
        # scored in this epoch (1) goes into the stamps when the epoch ends; whether it was scored since the last exchange
        # between ranks (2) is for `synchronize`.
        self._marks = filled(self.num_samples, 0, torch.uint8, device)
        # The last epoch before this one in which each id was scored.
        self._stamp = torch.full((self.num_samples,), NEVER, dtype=torch.int32, device=device)
        self._variance = filled(self.num_samples, 0.0, torch.float32, device) if track_variance else None
        # Samples counted since `restart_count`, and a number of the kernel's own, beside the scores: an update adds to them
        # without asking the host, also when a captured graph replays it.
        self._count = torch.zeros(3, dtype=torch.int64, device=device)
        self._columns = self._scores, self._marks, self._variance, self._count
        self._on_host = self._scores.is_cpu

    def __repr__(self) -> str:
        return f"ScoreTable(num_samples={self.num_samples}, device={self.device}, beta={self.beta}, decay={self.decay})"

    @property
    def epoch(self) -> int:
        """How many epochs have ended."""
        return self._epoch

    @property
    def num_counted(self) -> int:
        """Samples of counted updates since `restart_count`. Waits for the table's device."""
        return int(self._count[0])

    def restart_count(self) -> None:
        """Set `num_counted` to 0."""
        self._count.zero_()

    @property
    def device(self) -> torch.device:
        """Where the table lives."""
        return self._scores.device

    @property
    def scores(self) -> torch.Tensor:
        """[num_samples] float32, +inf where never scored. The table's own storage: read it, do not write it."""
        return self._scores

    @property
    def variance(self) -> torch.Tensor:
        """[num_samples] float32 running variance of each sample's scores; zeros unless track_variance was set."""
        return torch.zeros_like(self._scores) if self._variance is None else self._variance

    @property
    def age(self) -> torch.Tensor:
        """[num_samples] int32: epochs since a sample was last scored, -1 where never."""
        stamp = self._stamps()
        return torch.where(stamp == NEVER, stamp, self.epoch - stamp)

    @property
    def columns(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """What an update modifies, as `table_update` takes it: scores, marks, variance and count."""
        return self._columns

    def _stamps(self) -> torch.Tensor:
        """[num_samples] int32: the epoch in which each id was last scored, this one included."""
        return torch.where((self._marks & 1).bool(), self.epoch, self._stamp)

    def to(self, device: torch.device | str) -> ScoreTable:
        """Move the table to `device` in place; scores keep their bits."""
        self._scores = self._scores.to(device)
        self._stamp = self._stamp.to(device)
        self._marks = self._marks.to(device)
        self._count = self._count.to(device)
        if self._variance is not None:
            self._variance = self._variance.to(device)
        self._columns = self._scores, self._marks, self._variance, self._count
        self._on_host = self._scores.is_cpu
        return self

    def update(self, index: torch.Tensor, scores: torch.Tensor, *, counted: bool = False) -> None:
        """Take in the scores of a batch: one op, nothing is copied to the host.

        Args:
            index: [B] int64 sample ids in [0, num_samples); not modified. Where an id repeats, the last one wins.
            scores: [B] of any floating dtype, on the table's device; not modified.
            counted: whether the batch counts towards `num_counted`.

        Raises:
            TypeError: `index` is not int64 or `scores` not floating.
            ValueError: shapes differ, an id lies outside the table (checked where the table and `index` live on the CPU; on a
                GPU the device asserts; a RuntimeError under torch.compile), or `scores` lives on another device.
        """
        op = "ScoreTable.update"
        index = _check.index(op, "index", index)
        scores = _check.vector(op, "scores", _check.floating(op, "scores", scores))
        if scores.shape != index.shape:
            raise ValueError(f"{op}: scores must have the shape of index {tuple(index.shape)}, got {tuple(scores.shape)}")
        if scores.device != self.device:
            raise ValueError(f"{op}: scores must live on the table's device {self.device}, got {scores.device}")
        if index.device != self.device:
            _check.ids(op, "index", index, self.num_samples - 1)
            index = index.to(self.device, non_blocking=True)
        index, values = index.contiguous(), scores.detach().contiguous()
        if values.dtype != torch.float32:
            values = values.float()
        if torch.compiler.is_compiling():
            table_update(*self._columns, index, values, beta=self.beta, trained=counted)
            return
        try:
            table_update(*self._columns, index, values, beta=self.beta, trained=counted)
        except RuntimeError:
            # The op looks at the ids before it writes; what it says is said again as an error of the argument.
            _check.ids(op, "index", index, self.num_samples - 1)
            raise

    def advance(self, num_epochs: int = 1) -> None:
        """End an epoch: samples not scored in it decay towards the mean, and every age grows.

        Args:
            num_epochs: how many epochs have passed, at least 1.
        """
        num_epochs = _check.integer("ScoreTable.advance", "num_epochs", num_epochs, 1)
        mean = finite_mean(self._scores) if self.decay < 1.0 else None
        table_age(self._scores, self._stamp, self._marks, epoch=self.epoch, mean=mean, keep=self.decay**num_epochs)
        self._epoch += num_epochs

    def num_nonfinite(self) -> int:
        """How many samples were scored NaN or infinite last time (never scored ones do not count)."""
        return count_nonfinite(self._scores, self._stamp, self._marks)

    def synchronize(self, group: Any = None) -> None:
        """Give every rank the scores that the others measured since the last call (one all-reduce over the table).

        A collective: every rank must call it. Ids are positions in the table and never travel, so they cannot lose
        precision. A sample scored by several ranks (padding) gets the mean of their values.

        Args:
            group: torch.distributed process group; None is the default group.
        """
        from torch import distributed

        for start in range(0, self.num_samples, _CHUNK):
            part = slice(start, start + _CHUNK)
            fresh = (self._marks[part] & 2).bool()
            count = fresh.to(torch.float32)
            distributed.all_reduce(count, group=group)
            for buffer in [self._scores] if self._variance is None else [self._scores, self._variance]:
                total = torch.where(fresh, buffer[part], 0.0)
                distributed.all_reduce(total, group=group)
                buffer[part] = torch.where(count > 0, total / count, buffer[part])
            self._stamp[part] = torch.where(count > 0, self.epoch, self._stamp[part])
        self._marks &= 1

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything, loadable under torch.load(weights_only=True)."""
        return {
            "num_samples": self.num_samples,
            "beta": self.beta,
            "decay": self.decay,
            "epoch": self.epoch,
            "scores": self._scores.detach().clone(),
            "stamp": self._stamps(),
            "variance": None if self._variance is None else self._variance.detach().clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`; the table keeps its device.

        Raises:
            ValueError: the state belongs to a table of another size, or with other settings; nothing is changed.
        """
        for name in ("num_samples", "beta", "decay"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"ScoreTable.load_state_dict: {name} must be {getattr(self, name)} as in this table, got {state[name]}"
                )
        if (state["variance"] is None) != (self._variance is None):
            raise ValueError("ScoreTable.load_state_dict: track_variance must be the same in state and table")
        self._epoch = int(state["epoch"])
        self._scores.copy_(state["scores"])
        self._stamp.copy_(state["stamp"])
        self._marks.zero_()
        if self._variance is not None:
            self._variance.copy_(state["variance"])
