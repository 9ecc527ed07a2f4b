"""UnscoredTable: stands where a ScoreTable would, for methods that look at no score."""

from __future__ import annotations

from typing import Any

import torch

from stprune.ops import _check


class UnscoredTable:
    """Counts the samples trained on and forgets their scores: a few bytes whatever the number of samples.

    Args:
        num_samples: how many samples the training set has.
        device: the training device; None means the CPU.
    """

    def __init__(self, num_samples: int, *, device: torch.device | str | None = None) -> None:
        self.num_samples = num_samples
        self.epoch = 0
        self._state = torch.zeros(3, dtype=torch.int64, device=device)

    def __repr__(self) -> str:
        return f"UnscoredTable(num_samples={self.num_samples}, device={self.device})"

    @property
    def device(self) -> torch.device:
        """The training device."""
        return self._state.device

    @property
    def scores(self) -> torch.Tensor:
        """[num_samples] float32: +inf, one value expanded."""
        return torch.full((1,), torch.inf, device=self.device).expand(self.num_samples)

    @property
    def num_counted(self) -> int:
        """Samples of counted updates since `restart_count`. Waits for the device."""
        return int(self._state[2])

    @property
    def columns(self) -> tuple[None, None, None, torch.Tensor]:
        """What an update modifies, as `table_update` takes it."""
        return None, None, None, self._state

    def restart_count(self) -> None:
        """Set `num_counted` to 0."""
        self._state.zero_()

    def update(self, index: torch.Tensor, scores: torch.Tensor, *, counted: bool = False) -> None:
        """Count a batch; `index` [B] int64, `scores` are not looked at."""
        index = _check.index("UnscoredTable.update", "index", index)
        if counted:
            self._state[2] += index.numel()

    def advance(self, num_epochs: int = 1) -> None:
        """End an epoch."""
        self.epoch += num_epochs

    def num_nonfinite(self) -> int:
        """0: scores are not kept."""
        return 0

    def synchronize(self, group: Any = None) -> None:
        """Nothing to exchange."""

    def to(self, device: torch.device | str) -> UnscoredTable:
        """Move the counter."""
        self._state = self._state.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        """The epoch and the size."""
        return {"num_samples": self.num_samples, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`.

        Raises:
            ValueError: the state belongs to a table of another size.
        """
        if state["num_samples"] != self.num_samples:
            raise ValueError(
                f"UnscoredTable.load_state_dict: num_samples must be {self.num_samples} as in this table, "
                f"got {state['num_samples']}"
            )
        self.epoch = int(state["epoch"])
