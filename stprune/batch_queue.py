"""BatchQueue: the ids of delivered batches, in order, for loops that cannot carry them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler

from stprune.ops import _check
from stprune.passes import Batches, Pass
from stprune.sampler import PruningSampler

_OP = "BatchQueue"


class BatchQueue:
    """Pairs the batches of a loader with their losses, in order, where the loop has no place for the ids.

    Iterate it in place of the loader; it yields the loader's batches as they are. For each loss `take` gives the ids of the
    oldest batch that had none. Where batches can carry their ids (`IndexedDataset`, `indexed`), let them: nothing can go out
    of order then.

    The ids are those of the pass that the loader makes over the sampler, batch by batch: with workers, after a resume in the
    middle of an epoch, and on each rank. Batches and losses are counted and their sizes compared, and an error names both
    numbers as soon as they do not fit: a batch is delivered while an earlier one had no loss (it was skipped, or the loop
    looks ahead); a loss comes without a batch (of validation, or a second one); sizes differ; a pass ends with losses
    missing, with a batch too few or too many; or the epoch has changed. Take a batch's ids once: two losses of a batch use
    the same. To skip a batch, take its ids and leave them.

    Args:
        sampler: the run's sampler.
        loader: a DataLoader, or what iterates one, that draws from the sampler (`sampler=sampler` or
            `batch_sampler=sampler.batches(size)`).
        batch_size: ids in a batch, for a loader without a batch sampler that says it; None asks the loader.
        ahead: how many batches, at most, the loop fetches before the loss of an earlier one: 1 where it looks at the next
            batch to know which is the last. Each one allowed here is one batch later that an error is found.

    Raises:
        TypeError: the sampler is no PruningSampler, or the loader cannot be iterated.
        ValueError: the loader draws from another sampler, or its batch size is not known.

    Example:
        >>> import torch, stprune
        >>> from torch.utils.data import DataLoader
        >>> data = torch.arange(6.0)
        >>> sampler = stprune.PruningSampler(6, num_epochs=2)
        >>> criterion = stprune.PrunedMean(sampler)
        >>> queue = stprune.BatchQueue(sampler, DataLoader(data, sampler=sampler, batch_size=4))
        >>> scale = torch.ones((), requires_grad=True)
        >>> for x in queue:
        ...     values = scale * x
        ...     loss = criterion(values, queue.take(values.shape[0]))  # in validation: criterion(values)
        >>> sampler.table.scores
        tensor([0., 1., 2., 3., 4., 5.])
    """

    def __init__(
        self, sampler: PruningSampler, loader: Iterable[Any], *, batch_size: int | None = None, ahead: int = 0
    ) -> None:
        if not isinstance(sampler, PruningSampler):
            raise TypeError(f"{_OP}: sampler must be a PruningSampler, got {type(sampler).__name__}")
        if not hasattr(loader, "__iter__"):
            raise TypeError(f"{_OP}: loader must be iterable, got {type(loader).__name__}")
        self.sampler = sampler
        self.loader = loader
        self.ahead = _check.integer(_OP, "ahead", ahead, 0)
        batches = getattr(loader, "batch_sampler", None)
        drawn_from = getattr(batches, "sampler", sampler)
        if drawn_from is not sampler:
            raise ValueError(f"{_OP}: loader must draw from the sampler given, got one that draws from {drawn_from!r}")
        if batches is not None and not _keeps_order(batches):
            raise ValueError(
                f"{_OP}: loader must batch the ids as they come, by torch's BatchSampler or sampler.batches(size), got "
                f"{type(batches).__name__}, which may order them anew: let its batches carry their ids (IndexedDataset)"
            )
        if batch_size is None:
            batch_size = getattr(batches, "batch_size", None) or getattr(loader, "batch_size", None)
        if batch_size is None:
            raise ValueError(f"{_OP}: batch_size must be given for a loader that does not say it, got None")
        self.batch_size = _check.integer(_OP, "batch_size", batch_size, 1)
        self._drop_last = bool(getattr(batches, "drop_last", getattr(loader, "drop_last", False)))
        self._pass = 0  # which of the passes is the current one
        self._epoch = 0  # of the current pass
        self.clear()

    def __len__(self) -> int:
        """Batches of the loader."""
        return len(self.loader)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        """How many batches wait."""
        return f"BatchQueue({self._taken} losses for {self._delivered} batches, ahead={self.ahead})"

    def clear(self) -> None:
        """Forget the batches that were delivered: after a pass that was abandoned on purpose, with losses missing."""
        self._waiting: deque[np.ndarray[Any, Any]] = deque()
        self._delivered = self._taken = 0

    def __iter__(self) -> Iterator[Any]:
        """A pass over the loader, which begins with its first `next`.

        Raises:
            RuntimeError: batches and losses do not fit.
        """
        self._refuse_missing(0, "every batch of the pass before must have had its loss")
        self.clear()
        self._pass += 1
        mine, passes, ids = self._pass, self.sampler.last_pass[0], None
        for batch in self.loader:
            if mine != self._pass:
                raise RuntimeError(f"{_OP}: one pass must end before the next begins, got pass {self._pass} inside of {mine}")
            if ids is None:
                if self.sampler.last_pass[0] == passes:
                    raise RuntimeError(f"{_OP}: loader must draw from the sampler given, got a batch without a pass over it")
                # The loader's pass has begun, and the sampler knows where.
                self._epoch = self.sampler.epoch
                _, position, order = self.sampler.last_pass
                ids = Pass(self.sampler, self.batch_size, self._drop_last, order, again=(self.sampler.plan, position))
            found = next(ids, None)
            if found is None:
                raise RuntimeError(
                    f"{_OP}: loader must deliver the {self._delivered} batches of the sampler's pass, got {self._delivered + 1}"
                )
            self._refuse_missing(self.ahead, f"at most {self.ahead + 1} batches may wait for their loss (ahead={self.ahead})")
            self._waiting.append(found)
            self._delivered += 1
            yield batch
        left = 0 if ids is None else sum(1 for _ in ids)
        if left and mine == self._pass:
            total = self._delivered + left
            raise RuntimeError(f"{_OP}: loader must deliver the {total} batches of the sampler's pass, got {self._delivered}")
        if mine == self._pass:
            self._refuse_missing(self.ahead, "every batch must have had its loss at the end of a pass")

    def _refuse_missing(self, allowed: int, rule: str) -> None:
        if len(self._waiting) > allowed:
            raise RuntimeError(
                f"{_OP}: {rule}, got {self._taken} losses for {self._delivered} batches. A batch that is skipped needs take, "
                "a loop that looks ahead needs ahead=, a pass that is abandoned on purpose clear()"
            )

    def take(self, batch_size: int) -> torch.Tensor:
        """The ids of the oldest delivered batch that had no loss; it has one now.

        Args:
            batch_size: samples of the loss.

        Returns:
            [batch_size] int64, on the host; the loss brings it to its device.

        Raises:
            ValueError: the batch has another size.
            RuntimeError: no batch waits, the epoch has changed since, or gradients are off: such a loss is not of training.
        """
        op = f"{_OP}.take"
        batch_size = _check.integer(op, "batch_size", batch_size, 0)
        if not torch.is_grad_enabled():
            raise RuntimeError(f"{op}: the loss must be one of training, got gradients off: evaluation needs no index")
        if not self._waiting:
            raise RuntimeError(
                f"{op}: every loss must have a batch, got loss {self._taken + 1} for {self._delivered} batches. Is it one of "
                "validation, or a second one of a batch?"
            )
        if self._epoch != self.sampler.epoch:
            raise RuntimeError(f"{op}: the sampler must be in epoch {self._epoch} of the batch, got {self.sampler.epoch}")
        expected = len(self._waiting[0])
        if batch_size != expected:
            raise ValueError(
                f"{op}: batch_size must be {expected} as of batch {self._taken + 1} of {self._delivered} delivered, "
                f"got {batch_size}"
            )
        self._taken += 1
        # A copy: ids are a stretch of an array that serves other batches, too.
        return torch.from_numpy(self._waiting.popleft().copy())


def _keeps_order(batches: Any) -> bool:
    """Whether a batch sampler is one that hands out its sampler's ids in their order: not a class of the user's own."""
    kind = type(batches)
    return kind in (BatchSampler, Batches) or (kind.__name__ == "BatchSampler" and kind.__module__.startswith("torchdata."))
