"""Work done ahead in a thread, and memory that is lent again once nobody uses it."""

from __future__ import annotations

import atexit
import collections
import math
import queue
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")

_WORDS = {size: np.dtype(f"i{size}") for size in (1, 2, 4, 8)}
"""Types by bytes: torch reads the same bytes as any type of that size."""


class Memory:
    """CPU tensors on memory that comes back when the last tensor, view or autograd graph on it is gone.

    New memory costs a page fault every 4 KiB at its first use: for batches of some megabytes as much as filling them.

    Args:
        spare: how many blocks to keep for later at most.
    """

    def __init__(self, spare: int) -> None:
        self._spare: collections.deque[np.ndarray[Any, Any]] = collections.deque(maxlen=spare)
        # id(reference): the reference to what was lent, and its block.
        self._lent: dict[int, tuple[weakref.ref[Any], np.ndarray[Any, Any]]] = {}

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, *, capacity: int = 0) -> Tensor:
        """An uninitialised contiguous tensor; a new block is made for at least `capacity` elements."""
        size = math.prod(shape) * dtype.itemsize
        try:
            # No look before: another iterator's thread may take the last one in between.
            block = self._spare.pop()
        except IndexError:
            block = None
        if block is None or block.size < size:
            # Of torch, which aligns it to cache lines.
            block = torch.empty(max(size, capacity * dtype.itemsize), dtype=torch.uint8).numpy()
        # torch holds on to this array object for as long as anything uses its storage; then the block is spare again. A
        # bare reference: weakref.finalize costs more than all the rest.
        shaped = block[:size].view(_WORDS[dtype.itemsize]).reshape(shape)
        reference = weakref.ref(shaped, self._take_back)
        self._lent[id(reference)] = reference, block
        return torch.from_numpy(shaped).view(dtype)

    def _take_back(self, reference: weakref.ref[Any]) -> None:
        self._spare.append(self._lent.pop(id(reference))[1])

    def __reduce__(self) -> tuple[Any, ...]:
        """State for copies and other processes: no memory."""
        return Memory, (self._spare.maxlen,)


class _Worker(Generic[Item, Result]):
    """A thread that makes one result after the other, at most `depth` ahead of whoever takes them."""

    def __init__(self, items: Iterator[Item], make: Callable[[Item], Result], depth: int) -> None:
        self._ready: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
        self._room = threading.Semaphore(depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(items, make), daemon=True, name="stprune-prefetch")
        self._thread.start()

    def _run(self, items: Iterator[Item], make: Callable[[Item], Result]) -> None:
        try:
            self._room.acquire()
            for item in items:
                if self._stopped.is_set():
                    return
                self._ready.put((True, make(item)))
                self._room.acquire()
                if self._stopped.is_set():
                    return
            self._ready.put((False, None))
        except BaseException as error:  # whatever it is, it belongs to whoever waits for the next result
            self._ready.put((False, error))

    def take(self) -> tuple[bool, Any]:
        """(True, result), or (False, None or the error) at the end."""
        taken = self._ready.get()
        self._room.release()
        return taken

    def stop(self) -> None:
        """End the thread, after the result it is at."""
        self._stopped.set()
        self._room.release()
        # A thread that is frozen because the interpreter shuts down never ends, and one cannot wait for itself (the garbage
        # collector may run anywhere).
        if not sys.is_finalizing() and threading.current_thread() is not self._thread:
            self._thread.join()


_workers: weakref.WeakSet[_Worker[Any, Any]] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    # Before the interpreter takes away the memory that a worker writes to.
    for worker in list(_workers):
        worker.stop()


def in_background(items: Iterator[Item], make: Callable[[Item], Result], depth: int) -> Iterator[Result]:
    """make(item) for every item, in order, made by a thread up to `depth` results ahead.

    The thread begins with the first `next` and ends with the iterator: exhausted, closed, or dropped half-way. What `items`
    or `make` raise is raised here, at its place in the order.
    """
    worker = _Worker(items, make, depth)
    _workers.add(worker)
    try:
        while True:
            going, result = worker.take()
            if not going:
                if result is not None:
                    raise result
                return
            yield result
            # Not kept alive while the next one is waited for.
            del result
    finally:
        worker.stop()
