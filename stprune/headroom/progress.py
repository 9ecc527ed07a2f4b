"""Progress bars where tqdm is installed; nothing where it is not."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def bar(title: str, total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, in a terminal, that is gone when the work is done.

    Args:
        title: what is going on.
        total: steps.
        shown: False for no bar.

    Yields:
        A function that takes the number of steps just done.
    """
    if not shown or importlib.util.find_spec("tqdm") is None:
        yield lambda done: None
        return
    from tqdm import tqdm

    # disable=None: a log file gets none.
    with tqdm(total=total, desc=f"{title:<22}", leave=False, dynamic_ncols=True, disable=None) as line:

        def advance(done: int) -> None:
            line.update(done)

        yield advance
