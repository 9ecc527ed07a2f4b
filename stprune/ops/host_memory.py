"""Host memory for tables that are read and written at random places."""

from __future__ import annotations

import contextlib
import mmap

import torch

HUGE_PAGE = 2 << 20


def filled(size: int, value: float, dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """[size] of one value, like torch.full; on the host in pages of 2 MiB where the system grants them.

    Every id of a batch lies on a page of its own. With pages of 4 KiB the processor looks up each one's address first, which
    takes longer than the memory access.
    """
    bytes_needed = size * dtype.itemsize
    if torch.device(device).type != "cpu" or bytes_needed < 2 * HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.full((size,), value, dtype=dtype, device=device)
    memory = mmap.mmap(-1, bytes_needed, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # of a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=size).fill_(value)
