"""Passes over an epoch's ids, one by one or in batches."""

from __future__ import annotations

import operator
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from stprune.ops import _check
from stprune.plan import Plan, share_of

_STRETCH = 1 << 16
"""Ids taken from the plan at a time: 0.5 MB of int64, enough to hide the call."""


def num_parts(count: int, size: int, *, drop_last: bool = False) -> int:
    """Into how many parts of `size` so many things go: a last part that is smaller counts, or is dropped."""
    return count // size if drop_last else -(-count // size)


class Share(Protocol):
    """What a pass asks of its sampler: this rank's share of the epoch.

    Attributes:
        rank, num_replicas, drop_last: as `PruningSampler` has them.
        total_size: position of the epoch's order at which every rank has delivered its share.
        begin_position: position at which the next pass begins.
    """

    drop_last: bool

    @property
    def rank(self) -> int: ...
    @property
    def num_replicas(self) -> int: ...
    @property
    def total_size(self) -> int: ...
    @property
    def begin_position(self) -> int: ...
    def __len__(self) -> int: ...
    def begin_pass(self, position: int | None, order: torch.Tensor | None) -> tuple[Plan, int]: ...
    def end_pass(self, plan: Plan, end: int) -> None: ...
    def reading(self) -> AbstractContextManager[None]: ...
    def resume_at(self, position: int) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Batches:
    """The current epoch's ids in batches; see `PruningSampler.batches`. Its state is the sampler's."""

    def __init__(
        self,
        sampler: Share,
        batch_size: int,
        drop_last: bool,
        order: torch.Tensor | None,
        device: torch.device | None = None,
    ) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.order = order
        self.device = device

    def __len__(self) -> int:
        return num_parts(len(self.sampler), self.batch_size, drop_last=self.drop_last)

    def __iter__(self) -> Iterator[Any]:
        return Pass(self.sampler, self.batch_size, self.drop_last, self.order, self.device)

    def state_dict(self) -> dict[str, Any]:
        """The sampler's state."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.sampler.load_state_dict(state)


class Pass:
    """One pass over the epoch's share of a rank: ids one by one, or arrays of them.

    It begins with its first `next`: trainers ask for an iterator before they load a state or set the epoch. Plan and
    position are settled then, and another epoch does not change them. Loaders that save their own position (torchdata's
    StatefulDataLoader) use `state_dict` and `load_state_dict`.

    Args:
        sampler: the sampler.
        batch_size: ids in an array; None yields Python ints.
        drop_last: leave out a last array that is not full.
        order, device: see `PruningSampler.batches`.
        again: plan and position of a pass that has begun, whose ids are only looked at: the sampler is told nothing of it.
    """

    def __init__(
        self,
        sampler: Share,
        batch_size: int | None,
        drop_last: bool,
        order: torch.Tensor | None,
        device: torch.device | None = None,
        *,
        again: tuple[Plan, int] | None = None,
    ) -> None:
        self._sampler = sampler
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._order = order
        self._device = device
        self._again = again
        self._start: int | None = None  # position in the order; None: wherever the sampler begins
        self._stretches: Generator[list[Any], None, None] | None = None
        # Items of a stretch are handed out by a list's own iterator: a step of a generator each would take ten times as long.
        self._items: list[Any] = []
        self._now: Iterator[Any] = iter(self._items)
        self._before = 0  # ids delivered before `_items`
        self._ended = False

    def __iter__(self) -> Pass:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._now)
        except StopIteration:
            return self._next_stretch()

    def _next_stretch(self) -> Any:
        self._stretches = self._begin() if self._stretches is None else self._stretches
        self._before, self._items = self._delivered, []
        self._items = next(self._stretches, [])
        self._now = iter(self._items)
        item = next(self._now, None)
        # Trainers stop with the last item, without asking whether another one comes: it is a stretch of its own.
        if not self._ended and self._before + self._size(item) == self._total:
            self._ended = True
            self._stretches.close()
            if self._again is None:
                self._sampler.end_pass(self._plan, self._at(self._total))
        if item is None:
            raise StopIteration
        return item

    def _size(self, item: Any) -> int:
        return 0 if item is None else 1 if self._batch_size is None else len(item)

    def _at(self, delivered: int) -> int:
        """The position in the order after so many ids."""
        assert self._start is not None
        return self._start + delivered * self._sampler.num_replicas

    @property
    def _delivered(self) -> int:
        """Ids delivered since the start."""
        taken = self._items[: len(self._items) - operator.length_hint(self._now)]
        return self._before + (len(taken) if self._batch_size is None else sum(map(len, taken)))

    def _begin(self) -> Generator[list[Any], None, None]:
        sampler = self._sampler
        self._plan, self._start = self._again or sampler.begin_pass(self._start, self._order)
        replicas, size = sampler.num_replicas, self._batch_size
        left = num_parts(max(0, sampler.total_size - self._start), replicas, drop_last=sampler.drop_last)
        if size is not None and self._drop_last:
            left -= left % size
        self._total = left
        return self._make(self._plan, self._start, sampler.rank, replicas)

    def _make(self, plan: Plan, start: int, rank: int, replicas: int) -> Generator[list[Any], None, None]:
        """Stretches of items; the last item of all is the only one of the last stretch."""
        size, order, left = self._batch_size, self._order, self._total
        count = len(plan)
        if order is not None and _check.index("PruningSampler.batches", "order", order).numel() != count:
            raise ValueError(f"PruningSampler.batches: order must have the plan's {count} ids, got {order.numel()}")
        # Whole batches, so that none straddles two stretches.
        step = _STRETCH if size is None else max(1, _STRETCH // size) * size
        with self._sampler.reading():
            for first in range(0, left, step):
                begin = start + first * replicas
                number = min(step, left - first)
                if order is None:
                    part = plan.share(begin, number, rank, replicas, self._device or torch.device("cpu"))
                else:
                    part = share_of(lambda start, stop: order[start:stop], count, begin, number, rank, replicas)
                ids: Any = part.cpu().numpy() if self._device is None else part.to(self._device)
                items = ids.tolist() if size is None else [ids[at : at + size] for at in range(0, len(ids), size)]
                if first + step < left:
                    yield items
                else:
                    yield from (part for part in (items[:-1], items[-1:]) if part)

    def state_dict(self) -> dict[str, int]:
        """Where the pass stands in the epoch's order."""
        if self._ended:  # also where a tail was dropped
            return {"position": self._sampler.total_size}
        return {"position": self._sampler.begin_position if self._start is None else self._at(self._delivered)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on at a saved position, and let the sampler count from there."""
        self._start = int(state["position"])
        self._sampler.resume_at(self._start)
