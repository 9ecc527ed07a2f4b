"""Running a study: processes side by side, rows on disk as runs finish, and on from where it stopped."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import multiprocessing
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import torch

from stprune.study import rows as storage
from stprune.study.grid import Grid
from stprune.study.machine import device_name
from stprune.study.problem import Problem, prepare
from stprune.study.progress import State, TimeLeft
from stprune.study.rows import Row
from stprune.study.series import load
from stprune.study.spec import Spec
from stprune.study.train import train

ROWS = "rows.jsonl"
# A worker keeps this many series ready.
_KEPT_PROBLEMS = 2


def run(
    grid: Grid,
    folder: pathlib.Path,
    *,
    processes: int = 1,
    minutes: float | None = None,
    device: str = "cpu",
    report: Callable[[State], None] = lambda state: None,
) -> list[Row]:
    """Make the runs of a grid that have no row yet.

    Args:
        grid: what to run.
        folder: of rows.jsonl; made where absent. One study at a time runs in a folder.
        processes: runs side by side, each with one thread.
        minutes: no run is begun after so many; None for no limit.
        device: where the runs train, which is the grid's device from then on.
        report: called with every finished run, and with what runs then.

    Returns:
        All rows of the folder, in the order in which they were finished.

    Raises:
        ValueError: a setting cannot be run; the rows of runs that finished before are on disk.
        RuntimeError: another study runs in the folder, or a process of this one was killed.
    """
    if processes < 1:
        raise ValueError(f"study: processes must be at least 1, got {processes}")
    if minutes is not None and not minutes >= 0:
        raise ValueError(f"study: minutes must not be negative, got {minutes}")
    grid = replace(grid, device=device_name(torch.device(device)))
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        path = folder / ROWS
        rows = storage.read(path)
        deadline = None if minutes is None else time.monotonic() + 60 * minutes
        specs, left = grid.pending(rows, num_nodes)
        clock = TimeLeft(processes)

        def tell(last: Row | None) -> None:
            seconds = clock.seconds(grid.own(rows), left)
            report(State(len(rows), len(rows) + left.total(), tuple(running.values()), last, seconds))

        running: dict[Future[Row], Spec] = {}
        tell(None)
        if not specs or minutes == 0:
            return rows
        with _workers(processes) as pool:
            while True:
                late = deadline is not None and time.monotonic() > deadline
                taken = set(running.values())
                waiting = [] if late else [spec for spec in specs if spec not in taken]
                for spec in waiting[: processes - len(running)]:
                    running[pool.submit(_train, spec, device)] = spec
                    clock.began(spec)
                if not running:
                    return rows
                tell(None)
                try:
                    finished, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        row = future.result()
                        del running[future]
                        storage.append(path, [row])
                        rows.append(row)
                        clock.finished(row)
                        specs, left = grid.pending(rows, num_nodes)
                        tell(row)
                except BrokenProcessPool:
                    names = ", ".join(f"{spec.family} on {spec.data}" for spec in running.values())
                    raise RuntimeError(f"study: a process was killed while it ran {names}; finished runs are kept") from None


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"study: another study runs in {folder}") from None
        yield


@contextlib.contextmanager
def _workers(processes: int) -> Iterator[ProcessPoolExecutor]:
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_begin_worker)
    try:
        yield pool
    except BaseException:
        # An interrupted study ends at once; its open runs are made again by the next call.
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    torch.set_num_threads(1)
    # Nobody tells a worker that its study was killed: it would wait for the next run for ever, and keep its memory.
    threading.Thread(target=_end_with_study, daemon=True).start()


def _end_with_study() -> None:
    study = multiprocessing.parent_process()
    assert study is not None
    study.join()
    os._exit(1)


def _train(spec: Spec, device: str) -> Row:
    return train(spec, problem_of(spec.data, device))


@functools.lru_cache(maxsize=_KEPT_PROBLEMS)
def problem_of(data: str, device: str = "cpu") -> Problem:
    """The prepared series of a name; the last two are kept."""
    return prepare(load(data), device=torch.device(device))


@functools.cache
def num_nodes(data: str) -> int:
    """Nodes of a series, which is prepared for it: a series that no run could use is refused before the first one."""
    return prepare(load(data), device=torch.device("cpu")).num_nodes
