"""Keep ratio as a function of the epoch (eq. 11): the share of samples an epoch trains on."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass

SCHEDULES = ("step", "cosine", "none")


@dataclass(frozen=True)
class Schedule:
    """The keep ratio of every epoch of a run.

    `step` keeps the ratio up to epoch floor(anneal * num_epochs) and trains on everything from there on; `cosine` rises
    smoothly to 1 over those last epochs; `none` never rises. A run without an end has no last epochs: `step` keeps the ratio
    throughout, like `none`, and `cosine` is refused. Epochs are compared as integers.

    Args:
        kind: "step", "cosine", "none", or a function of the epoch that returns a ratio in (0, 1].
        num_epochs: length of the run, or None where it has no end.
        keep_ratio: the ratio before annealing, in (0, 1].
        anneal: share of the run before annealing begins, in [0, 1].

    Example:
        >>> from stprune.schedule import Schedule
        >>> schedule = Schedule("step", num_epochs=8, keep_ratio=0.5, anneal=0.875)
        >>> [schedule(epoch) for epoch in (0, 6, 7)]
        [0.5, 0.5, 1.0]

    Source:
        Eq. 11, our definition; `step` with anneal 0.875 is InfoBatch's (Qin et al., ICLR 2024, section 3.3).
    """

    kind: str | Callable[[int], float]
    num_epochs: int | None
    keep_ratio: float
    anneal: float

    def __post_init__(self) -> None:
        if not callable(self.kind) and self.kind not in SCHEDULES:
            raise ValueError(f"PruningSampler: schedule must be one of {', '.join(SCHEDULES)} or a function, got {self.kind!r}")
        if self.kind == "cosine" and self.num_epochs is None:
            raise ValueError("PruningSampler: schedule must be step, none or a function for num_epochs=None, got 'cosine'")

    @property
    def first_annealed(self) -> int | None:
        """First epoch of the annealing phase; None where the run has no end."""
        if self.num_epochs is None:
            return None
        # Rounded before the floor: 0.29 * 100 is 28.999999999999996 in binary.
        return math.floor(round(self.anneal * self.num_epochs, 9))

    @property
    def constant(self) -> bool:
        """Whether the ratio is the same in every epoch; not known of a function where the run has no end."""
        if self.num_epochs is None:
            return not callable(self.kind)
        return len({self(epoch) for epoch in range(self.num_epochs)}) == 1

    def __call__(self, epoch: int) -> float:
        """The keep ratio of `epoch`, in (0, 1]."""
        if callable(self.kind):
            ratio = self.kind(epoch)
            if isinstance(ratio, bool) or not isinstance(ratio, numbers.Real):
                raise TypeError(f"PruningSampler: schedule({epoch}) must be a number, got {ratio!r}")
            ratio = float(ratio)
            if not 0.0 < ratio <= 1.0:
                raise ValueError(f"PruningSampler: schedule({epoch}) must lie in (0, 1], got {ratio:g}")
            return ratio
        first = self.first_annealed
        if self.num_epochs is None or first is None or self.kind == "none" or epoch < first:
            return self.keep_ratio
        if self.kind == "step":
            return 1.0
        # The last epoch reaches 1 exactly; a single annealed epoch is that last one.
        progress = (epoch - first + 1) / (self.num_epochs - first)
        if progress >= 1.0:
            return 1.0
        return self.keep_ratio + (1.0 - self.keep_ratio) * (1.0 - math.cos(math.pi * progress)) / 2.0
