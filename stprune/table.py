"""ScoreTable: the latest score of every sample, on the training device (eq. 5)."""

from __future__ import annotations

from typing import Any

import torch

from stprune.ops import _check
from stprune.ops.finite_mean import finite_mean
from stprune.ops.table_update import table_update

NEVER = -1
"""Epoch stamp of a sample that was never scored."""

_CHUNK = 1 << 22  # passes over the table work in pieces of this size, so that temporaries stay under 100 MB


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
        self._scores = torch.full((self.num_samples,), float("inf"), dtype=torch.float32, device=device)
        self._stamp = torch.full((self.num_samples,), NEVER, dtype=torch.int32, device=device)
        # Scored here since the last exchange between ranks.
        self._fresh = torch.zeros(self.num_samples, dtype=torch.bool, device=device)
        self._variance = torch.zeros_like(self._scores) if track_variance else None
        # The epoch, and the samples counted since `restart_count`, beside the scores: an update reads and writes them without
        # asking the host, also when a captured graph replays it.
        self._state = torch.zeros(2, dtype=torch.int64, device=device)

    def __repr__(self) -> str:
        return f"ScoreTable(num_samples={self.num_samples}, device={self.device}, beta={self.beta}, decay={self.decay})"

    @property
    def epoch(self) -> int:
        """How many epochs have ended."""
        return self._epoch

    @property
    def num_counted(self) -> int:
        """Samples of counted updates since `restart_count`. Waits for the table's device."""
        return int(self._state[1])

    def restart_count(self) -> None:
        """Set `num_counted` to 0."""
        self._state[1] = 0

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
        return torch.where(self._stamp == NEVER, self._stamp, self.epoch - self._stamp)

    def to(self, device: torch.device | str) -> ScoreTable:
        """Move the table to `device` in place; scores keep their bits."""
        self._scores = self._scores.to(device)
        self._stamp = self._stamp.to(device)
        self._fresh = self._fresh.to(device)
        self._state = self._state.to(device)
        if self._variance is not None:
            self._variance = self._variance.to(device)
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
        arguments = (self._scores, self._stamp, self._fresh, self._variance, self._state, index, values)
        if torch.compiler.is_compiling():
            table_update(*arguments, beta=self.beta, counted=counted)
            return
        try:
            table_update(*arguments, beta=self.beta, counted=counted)
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
        if self.decay < 1.0:
            mean = finite_mean(self._scores)
            keep = self.decay**num_epochs
            for scores, stamp in zip(self._scores.split(_CHUNK), self._stamp.split(_CHUNK), strict=True):
                # +inf and NaN stay what they are; with no finite score at all there is no mean and nothing to move.
                idle = (stamp != self.epoch) & torch.isfinite(scores)
                scores.copy_(torch.where(idle, mean + keep * (scores - mean), scores))
        self._set_epoch(self.epoch + num_epochs)

    def _set_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        self._state[0] = epoch

    def num_nonfinite(self) -> int:
        """How many samples were scored NaN or infinite last time (never scored ones do not count)."""
        pairs = zip(self._scores.split(_CHUNK), self._stamp.split(_CHUNK), strict=True)
        return int(sum(((stamp != NEVER) & ~torch.isfinite(scores)).sum() for scores, stamp in pairs))

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
            count = self._fresh[part].to(torch.float32)
            distributed.all_reduce(count, group=group)
            for buffer in [self._scores] if self._variance is None else [self._scores, self._variance]:
                total = torch.where(self._fresh[part], buffer[part], 0.0)
                distributed.all_reduce(total, group=group)
                buffer[part] = torch.where(count > 0, total / count, buffer[part])
            self._stamp[part] = torch.where(count > 0, self.epoch, self._stamp[part])
        self._fresh.zero_()

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything, loadable under torch.load(weights_only=True)."""
        return {
            "num_samples": self.num_samples,
            "beta": self.beta,
            "decay": self.decay,
            "epoch": self.epoch,
            "scores": self._scores.detach().clone(),
            "stamp": self._stamp.detach().clone(),
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
        self._set_epoch(int(state["epoch"]))
        self._scores.copy_(state["scores"])
        self._stamp.copy_(state["stamp"])
        if self._variance is not None:
            self._variance.copy_(state["variance"])
