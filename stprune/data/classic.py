"""The header of classic netCDF files, read to learn how long the file must be.

The netCDF library returns zeros for what is missing at the end of such a file; here that is an error.
"""

from __future__ import annotations

import math
from pathlib import Path

from stprune.data.series import damaged, failure

# Bytes of the types byte, char, short, int, float, double, and of CDF-5's unsigned and 64-bit ones.
ITEMSIZE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8, 7: 1, 8: 2, 9: 4, 10: 8, 11: 8}


def check_length(path: Path) -> None:
    """Refuses a classic netCDF file (CDF-1, 2 or 5) that is shorter than its header says; other files pass."""
    with path.open("rb") as file:
        magic = file.read(4)
    if magic in (b"CDF\x01", b"CDF\x02", b"CDF\x05"):
        with damaged(path, "file", "be a complete netCDF file"):
            needed = _length(path, magic[3])
        if path.stat().st_size < needed:
            raise failure(path, "file", f"be a complete netCDF file of {needed} bytes", path.stat().st_size)


def _length(path: Path, version: int) -> int:
    """The bytes a file must have, from its big-endian header: a list of dimensions, of attributes, of variables."""
    wide = 8 if version == 5 else 4
    with path.open("rb") as file:
        file.seek(4)

        def number(width: int = wide) -> int:
            data = file.read(width)
            if len(data) < width:
                raise EOFError("the header ends early")
            return int.from_bytes(data, "big")

        def skip(size: int) -> None:
            file.seek(-(-size // 4) * 4, 1)

        def items() -> range:
            # A tag, which is 0 for an empty list, and a count.
            tag, count = number(4), number()
            if tag not in (0, 10, 11, 12) or (tag == 0 and count):
                raise ValueError(f"list tag {tag}")
            return range(count)

        def skip_attributes() -> None:
            for _ in items():
                skip(number())
                itemsize = ITEMSIZE[number(4)]
                skip(number() * itemsize)

        records, lengths, ends, rows = number(), [], [0], []
        for _ in items():
            skip(number())
            lengths.append(number())
        skip_attributes()
        for _ in items():
            skip(number())
            sizes = [lengths[number()] for _ in range(number())]
            skip_attributes()
            itemsize = ITEMSIZE[number(4)]
            number()  # the stored size overflows for large variables; the shape does not
            begin = number(4 if version == 1 else 8)
            # Length 0 marks the record dimension, which can only be the first.
            if sizes[:1] == [0]:
                rows.append((begin, math.prod(sizes[1:]) * itemsize))
            else:
                ends.append(begin + math.prod(sizes) * itemsize)
    streaming = records == 256**wide - 1
    if rows and records and not streaming:
        # Each record holds one row of every such variable, padded unless there is only one.
        stride = rows[0][1] if len(rows) == 1 else sum(-(-size // 4) * 4 for _, size in rows)
        ends += [begin + (records - 1) * stride + size for begin, size in rows]
    return max(ends)
