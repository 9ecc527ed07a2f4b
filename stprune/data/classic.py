"""The header of classic netCDF files, read to learn how long the file must be.

The netCDF library returns zeros for what is missing at the end of such a file; here that is an error.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO

from stprune.data.series import failure

# Bytes of the types byte, char, short, int, float, double, and of CDF-5's unsigned and 64-bit ones.
ITEMSIZE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8, 7: 1, 8: 2, 9: 4, 10: 8, 11: 8}


class _Header:
    """A cursor over the big-endian fields of a header."""

    def __init__(self, file: IO[bytes], version: int) -> None:
        self.file = file
        self.count_bytes = 8 if version == 5 else 4
        self.offset_bytes = 4 if version == 1 else 8

    def number(self, width: int) -> int:
        data = self.file.read(width)
        if len(data) < width:
            raise EOFError("the header ends early")
        return int.from_bytes(data, "big")

    def count(self) -> int:
        return self.number(self.count_bytes)

    def skip(self, size: int) -> None:
        """Passes over bytes padded to a multiple of four, which must be there."""
        padded = -(-size // 4) * 4
        if len(self.file.read(padded)) < padded:
            raise EOFError("the header ends early")

    def items(self) -> range:
        """The entries of a list: a tag, 0 for an empty list, and a count."""
        tag, count = self.number(4), self.count()
        if tag not in (0, 10, 11, 12) or (tag == 0 and count):
            raise ValueError(f"list tag {tag}")
        return range(count)

    def skip_attributes(self) -> None:
        for _ in self.items():
            self.skip(self.count())
            itemsize = ITEMSIZE[self.number(4)]
            self.skip(self.count() * itemsize)


def check_length(path: Path) -> None:
    """Refuses a classic netCDF file (CDF-1, 2 or 5) that is shorter than its header says; other files pass."""
    with path.open("rb") as file:
        magic = file.read(4)
        if magic not in (b"CDF\x01", b"CDF\x02", b"CDF\x05"):
            return
        try:
            needed = _length(_Header(file, magic[3]))
        except (EOFError, ValueError, KeyError, IndexError, OverflowError, MemoryError) as error:
            raise failure(path, "file", "be a complete netCDF file", f"a damaged header ({error})") from error
    size = path.stat().st_size
    if size < needed:
        raise failure(path, "file", f"be a complete netCDF file of {needed} bytes", size)


def _length(header: _Header) -> int:
    records = header.count()
    lengths = []
    for _ in header.items():
        header.skip(header.count())
        lengths.append(header.count())
    header.skip_attributes()
    ends, rows = [0], []
    for _ in header.items():
        header.skip(header.count())
        dims = [header.count() for _ in range(header.count())]
        header.skip_attributes()
        itemsize = ITEMSIZE[header.number(4)]
        header.count()  # the stored size overflows for large variables; the shape does not
        begin = header.number(header.offset_bytes)
        sizes = [lengths[d] for d in dims]
        # Length 0 marks the record dimension, which can only be the first.
        if sizes[:1] == [0]:
            rows.append((begin, math.prod(sizes[1:]) * itemsize))
        else:
            ends.append(begin + math.prod(sizes) * itemsize)
    streaming = records == 256**header.count_bytes - 1
    if rows and records and not streaming:
        # Each record holds one row of every such variable, padded unless there is only one.
        stride = rows[0][1] if len(rows) == 1 else sum(-(-size // 4) * 4 for _, size in rows)
        ends += [begin + (records - 1) * stride + size for begin, size in rows]
    return max(ends)
