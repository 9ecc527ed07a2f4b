"""SIGTERM as an exception, so that what runs ends in order: as a batch system or a container stops a long study."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

EXIT_STATUS = 128 + signal.SIGTERM
"""As a shell reports a process that SIGTERM has ended."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came; like an interrupt from the keyboard, no `except Exception` takes it."""


@contextlib.contextmanager
def raised_when_terminated() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` inside the block, once; a second one is ignored, as everything is ending already.

    Without effect outside of the main thread, which alone receives signals, and where the caller handles SIGTERM. Behind the
    block SIGTERM is handled as before.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
