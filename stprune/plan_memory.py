"""PlanMemory: buffers that one epoch's plan leaves to the next."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch

from stprune.methods import Method, asked_count
from stprune.ops.plan_budget import Buffers
from stprune.ops.strata import Strata
from stprune.plan import EpochPlan, planned

_SETS = 2
"""Sets that are remembered: one in use by somebody else, and one to go on with."""
_GENEROUS = 2
"""A set is kept for a smaller plan as long as it holds no more than so many times its memory."""


class PlanMemory:
    """Buffers on the host for the kept samples of one epoch after another.

    A set of buffers is handed out again only when no tensor or array that shares its memory is left: a plan that somebody
    holds, or a loader that still works through its order, never changes. Another set takes its place then.

    Args:
        num_samples: elements of every buffer. What no plan touches takes no memory.

    Example:
        >>> from stprune.plan_memory import PlanMemory
        >>> memory = PlanMemory(100)
        >>> held = memory.take(50).indices[:50]
        >>> memory.take(50).indices.data_ptr() == held.data_ptr()
        False
    """

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self._sets: list[_Set] = []

    def __reduce__(self) -> tuple[type[PlanMemory], tuple[int]]:
        # A copy, also one in another process, begins with no memory.
        return PlanMemory, (self.num_samples,)

    def take(self, expected: int) -> Buffers:
        """Buffers of `num_samples` elements that nobody looks at.

        Args:
            expected: how many elements the plan will probably have; a set in which a much larger one was made is given back
                to the system instead of being held for the rest of the run.
        """
        # A set in use lives on with its users, whether it is remembered here or not.
        in_use = [one for one in self._sets if not one.is_free]
        fit = [one for one in self._sets if one.is_free and one.used <= _GENEROUS * max(1, expected)]
        chosen = fit[-1] if fit else _Set(self.num_samples)
        self._sets = [*in_use[1 - _SETS :], chosen]
        return chosen.buffers()

    def made(self, count: int) -> None:
        """Say how many samples the plan has for which buffers were taken last."""
        self._sets[-1].used = max(self._sets[-1].used, count)

    def planned(
        self, scores: torch.Tensor, rule: Method, *, keep_ratio: float, epoch: int, seed: int, strata: Strata | None = None
    ) -> EpochPlan:
        """`stprune.plan.planned` in buffers of this memory, on the host: loaders ask for ids there.

        Args:
            scores, rule, keep_ratio, epoch, seed, strata: see `stprune.plan.planned`.
        """
        out = self.take(asked_count(keep_ratio, self.num_samples))
        on_host = scores.device.type == "cpu"
        plan = planned(scores, rule, keep_ratio=keep_ratio, epoch=epoch, seed=seed, strata=strata, out=out if on_host else None)
        self.made(len(plan))
        # From another device the kept ids come over once per epoch.
        return plan if on_host else plan.copied_into(out)


class _Set:
    """One set of buffers, as arrays whose reference counts tell whether a tensor shares their memory."""

    def __init__(self, size: int) -> None:
        # Left to the system until something is written. NumPy asks it for large pages.
        self._arrays: tuple[np.ndarray[Any, Any], ...] = (
            np.empty(size, dtype=np.int64),
            np.empty(size, dtype=np.float32),
            np.empty(size, dtype=np.int32),
        )
        self.used = 0
        self._alone = self._references()

    def _references(self) -> list[int]:
        return [sys.getrefcount(array) for array in self._arrays]

    @property
    def is_free(self) -> bool:
        # A tensor made of an array holds a reference to it as long as its storage lives, and so does every view of it.
        return self._references() == self._alone

    def buffers(self) -> Buffers:
        return Buffers(*(torch.from_numpy(array) for array in self._arrays))
