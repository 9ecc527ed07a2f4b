"""Passes over an epoch's ids, one by one or in batches."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import torch

from stprune.plan import Plan

_STRETCH = 1 << 16
"""Ids taken from the plan at a time: 0.5 MB of int64, enough to hide the call."""


class Share(Protocol):
    """What a pass asks of its sampler: this rank's share of the epoch.

    Attributes:
        rank, num_replicas, drop_last: as `PruningSampler` has them.
        reach: position of the epoch's order at which every rank has delivered its share.
        begin_position: position at which the next pass begins.
    """

    drop_last: bool

    @property
    def rank(self) -> int: ...
    @property
    def num_replicas(self) -> int: ...
    @property
    def reach(self) -> int: ...
    @property
    def begin_position(self) -> int: ...
    def __len__(self) -> int: ...
    def begin_pass(self, position: int | None) -> tuple[Plan, int]: ...
    def end_pass(self, plan: Plan) -> None: ...
    def reading(self) -> AbstractContextManager[None]: ...
    def resume_at(self, position: int) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Batches:
    """The current epoch's ids in batches; see `PruningSampler.batches`. Its state is the sampler's."""

    def __init__(self, sampler: Share, batch_size: int, drop_last: bool, order: torch.Tensor | None) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.order = order

    def __len__(self) -> int:
        full, over = divmod(len(self.sampler), self.batch_size)
        return full + (over > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[np.ndarray[Any, Any]]:
        return Pass(self.sampler, self.batch_size, self.drop_last, self.order)

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
        order: see `PruningSampler.batches`.
    """

    def __init__(self, sampler: Share, batch_size: int | None, drop_last: bool, order: torch.Tensor | None) -> None:
        self._sampler = sampler
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._order = order
        self._items: Generator[Any, None, None] | None = None
        self._left = 0  # ids that are still to come, without those that drop_last leaves out
        self._position: int | None = None  # in the order; None: wherever the sampler begins

    def __iter__(self) -> Pass:
        return self

    def __next__(self) -> Any:
        if self._items is None:
            self._items = self._begin()
        item = next(self._items)
        size = 1 if self._batch_size is None else len(item)
        self._left -= size
        assert self._position is not None
        self._position += size * self._sampler.num_replicas
        # Trainers stop with the last batch, without asking whether another one comes.
        if self._left == 0:
            self._items.close()
            self._sampler.end_pass(self._plan)
        return item

    def _begin(self) -> Generator[Any, None, None]:
        sampler = self._sampler
        self._plan, start = sampler.begin_pass(self._position)
        self._position = start
        replicas, size = sampler.num_replicas, self._batch_size
        left = sampler.reach - start
        left = max(0, left // replicas if sampler.drop_last else -(-left // replicas))
        if size is not None and self._drop_last:
            left -= left % size
        self._left = left
        return self._arrays(self._plan, start, left, sampler.rank, replicas)

    def _arrays(self, plan: Plan, start: int, left: int, rank: int, replicas: int) -> Generator[Any, None, None]:
        size, order = self._batch_size, self._order
        ordered = plan.order if order is None else lambda begin, end: order[begin:end]
        count = len(plan)
        # Whole batches, so that none straddles two stretches.
        step = _STRETCH if size is None else max(1, _STRETCH // size) * size
        with self._sampler.reading():
            for first in range(0, left, step):
                begin = start + first * replicas
                end = begin + min(step, left - first) * replicas
                parts = [ordered(min(begin, count), min(end, count))]
                # Padding: the order's first ids again (they may have to go round more than once on tiny epochs).
                parts += [ordered(at % count, at % count + 1) for at in range(max(begin, count), end)]
                ids = torch.cat(parts)[rank::replicas].contiguous().cpu().numpy()
                if size is None:
                    yield from ids.tolist()
                else:
                    yield from (ids[at : at + size] for at in range(0, len(ids), size))

    def state_dict(self) -> dict[str, int]:
        """Where the pass stands in the epoch's order."""
        position = self._sampler.begin_position if self._position is None else self._position
        return {"position": position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on at a saved position, and let the sampler count from there."""
        self._position = int(state["position"])
        self._sampler.resume_at(self._position)
