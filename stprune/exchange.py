"""Sparse exchange between ranks: only rows that somebody has measured travel, as bytes beside their int64 ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import distributed

PIECE = 1 << 20
"""Rows whose measurements travel together: bounds a message of scores to 12 MB where ranks measure rows of their own."""


def message_device(group: Any, device: torch.device) -> torch.device:
    """Where messages of this group lie: beside the data where its backend takes them, else on the device that it takes.

    Args:
        group: torch.distributed process group; None is the default group.
        device: of the data. A group of NCCL alone takes nothing from the host: then it is this process's current GPU.
    """
    kinds = [entry.partition(":")[0] for entry in str(distributed.get_backend_config(group)).split(",")]
    return device if device.type in kinds else torch.device(kinds[0])


def packed(columns: list[torch.Tensor]) -> torch.Tensor:
    """Columns [K, ...] of any dtypes side by side as bytes: [K, bytes of a row] uint8."""
    rows = columns[0].shape[0]
    return torch.cat([column.contiguous().view(torch.uint8).reshape(rows, row_bytes(column)) for column in columns], 1)


def unpacked(rows: torch.Tensor, like: list[torch.Tensor]) -> list[torch.Tensor]:
    """The columns that `packed` put into rows [K, bytes]; of `like` dtypes and shapes of a row are taken."""
    parts = rows.split([row_bytes(column) for column in like], 1)
    return [
        part.contiguous().flatten().view(column.dtype).reshape(rows.shape[0], *column.shape[1:])
        for part, column in zip(parts, like, strict=True)
    ]


def row_bytes(column: torch.Tensor) -> int:
    """Bytes of a row of a column [K, ...]."""
    return column.shape[1:].numel() * column.element_size()


def gathered(message: torch.Tensor, world: int, group: Any) -> torch.Tensor:
    """Every rank's message [m, ...], one after another: [world * m, ...]. A collective for messages of one size."""
    everyone = message.new_empty(world * len(message), *message.shape[1:])
    # Into one tensor, without the collective for that: torch 2.13 has renamed it.
    distributed.all_gather(list(everyone.chunk(world)), message, group=group)
    return everyone


def exchanged(
    fresh: Callable[[slice], torch.Tensor], columns: list[torch.Tensor], group: Any, *, piece: int = PIECE
) -> Iterator[tuple[torch.Tensor, list[torch.Tensor]]]:
    """What the ranks measured, the same on every rank: one message of counts, and one for each piece that has any.

    A collective: every rank takes all that is yielded. A rank sends 8 bytes of id and the row itself for each row that it
    measured, and as many bytes more as the rank that measured most in the piece has more of them.

    Args:
        fresh: which rows of a piece this rank has measured, [rows of the piece] bool.
        columns: [n, ...] each, all on one device. Rows that several ranks measured become their mean where a column is
            floating, added up in the order of the ranks; of another column the first rank's row is taken. Not modified here.
        group: torch.distributed process group; None is the default group.
        piece: rows that are looked at together: bounds memory.

    Yields:
        ids [K] int64, ascending, and the columns' rows [K, ...], for each piece in which a rank measured any.
    """
    size, device = columns[0].shape[0], columns[0].device
    there = message_device(group, device)
    parts = [slice(start, min(start + piece, size)) for start in range(0, size, piece)]
    if not parts:
        return
    most = torch.stack([fresh(part).count_nonzero() for part in parts]).to(there)
    distributed.all_reduce(most, op=distributed.ReduceOp.MAX, group=group)
    world = distributed.get_world_size(group)
    for part, rows in zip(parts, most.tolist(), strict=True):
        if rows == 0:
            continue
        mine = fresh(part).nonzero().flatten() + part.start
        like = [mine, *columns]
        message = packed([mine, *(column[mine] for column in columns)]).to(there)
        # Every rank's message has the same size; bytes of 255 are the id -1.
        message = torch.cat([message, message.new_full((rows - len(mine), message.shape[1]), 255)])
        everyone = gathered(message, world, group)
        ids, *values = unpacked(everyone.to(device), like)
        known = ids >= 0
        yield mean_by_id(ids[known], [column[known] for column in values])


def mean_by_id(ids: torch.Tensor, columns: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Distinct ids, ascending, and their rows; see `exchanged`."""
    ids, order = ids.sort(stable=True)  # rows of one id stay in the order of the ranks
    first = torch.ones_like(ids, dtype=torch.bool)
    first[1:] = ids[1:] != ids[:-1]
    start = first.nonzero().flatten()
    group = first.cumsum(0) - 1
    turn = torch.arange(len(ids), device=ids.device) - start[group]
    count = torch.diff(start, append=start.new_tensor([len(ids)]))
    merged = []
    for column in columns:
        rows = column[order]
        total = rows[start]
        if column.is_floating_point():
            first_row, apart = total.clone(), torch.zeros_like(total, dtype=torch.bool)
            for again in range(1, int(count.max()) if len(count) else 0):
                now = turn == again
                total[group[now]] += rows[now]
                apart[group[now]] |= rows[now] != first_row[group[now]]
            # Equal ones keep their bits: several ranks may have loaded one state.
            total = torch.where(apart, total / count.view(-1, *[1] * (column.dim() - 1)), first_row)
        merged.append(total)
    return ids[start], merged
