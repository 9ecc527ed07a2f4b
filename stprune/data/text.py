"""CSV: a header of node names, one row for each time, an optional first column of times. pandas reads the cells."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stprune.data.series import Array, Series, as_float32, check_bytes, check_nodes, damaged, failure, require
from stprune.data.times import check_times, looks_like_time, parse_times

DELIMITERS = (",", ";", "\t")
TIME_NAMES = {"", "time", "times", "timestamp", "timestamps", "date", "datetime", "index", "unnamed: 0"}
MISSING = ("", "na", "n/a", "nan", "null")
# Lines parsed at a time.
LINES = 2048


def read_csv(path: Path, name: str, header: bool, max_bytes: int) -> Series:
    """[time, node, 1] of a text file; empty cells and NA, N/A, NaN, null are missing."""
    pandas = require("pandas", path)
    skipped = int(header)
    head = list(itertools.islice(_lines(path), skipped + 1))
    if len(head) <= skipped or not head[-1].strip():
        raise failure(path, "file", "have a row of numbers" + (" below its header" if header else ""), f"{len(head)} lines")
    delimiter = _delimiter(path, head)
    cells = _split(path, head[-1], delimiter)
    names = _split(path, head[0], delimiter) if header else [str(column) for column in range(len(cells))]
    if header and all(_is_fraction(cell) for cell in names):
        raise failure(path, "header", "name the nodes (a file without header needs header=False)", f"{head[0][:80]!r}")
    has_dates = looks_like_time(cells[0])
    # A numeric first column with such a name counts rows: it is checked and left out.
    has_times = has_dates or (header and names[0].strip().lower() in TIME_NAMES)
    label = names[0] or "time"
    num_times, num_nodes = _count_lines(path, delimiter, len(names)) - skipped, len(names) - has_times
    if num_nodes < 1:
        raise failure(path, "header", "name at least one node", f"{names}")
    check_bytes(path, "file", (num_times, num_nodes), 4, max_bytes)
    node_ids = check_nodes(path, "header", [n.strip() for n in names[has_times:]], num_nodes) if header else None

    values: Array = np.empty((num_times, num_nodes, 1), dtype=np.float32)
    stamps: list[str] = []
    row = 0
    with (
        damaged(path, "file", "be readable text"),
        pandas.read_csv(
            path,
            sep=delimiter,
            header=None,
            skiprows=skipped,
            index_col=False,
            chunksize=LINES,
            dtype={0: str} if has_times else None,
            na_values=["", "NA", "NaN"],
            keep_default_na=False,
            low_memory=False,
            encoding="utf-8-sig",
        ) as frames,
    ):
        for frame in frames:
            if has_times:
                stamps += frame.pop(0).fillna("").str.strip().tolist()
            numbers = _numbers(path, frame, row + skipped + 1)
            part = values[row : row + len(frame)]
            as_float32(path, "values", numbers, part.shape, part, row)
            row += len(frame)
    if row != num_times:
        raise failure(path, "file", "have one row in every line", f"{row} rows in {num_times} lines")
    times: Array | None = None
    steps_per_day: int | None = None
    notes: list[str] = []
    if has_dates:
        parsed, notes = parse_times(path, label, stamps, "line", skipped + 1)
        times, steps_per_day, more = check_times(path, label, parsed, num_times)
        notes += more
    elif has_times:
        counter = pandas.to_numeric(pandas.Series(stamps), errors="coerce").to_numpy(np.float64)
        # Not a number is not greater either.
        good = np.diff(counter, prepend=-np.inf) > 0
        if not good.all():
            bad = int(good.argmin())
            raise failure(
                path, label, "hold times, or row numbers that increase", f"{stamps[bad]!r} in line {bad + skipped + 1}"
            )
        notes = [f"column {names[0]!r} counts rows and is left out"]
    return Series(values, name, timestamps=times, node_ids=node_ids, steps_per_day=steps_per_day, notes=tuple(notes))


def _lines(path: Path) -> Iterator[str]:
    with damaged(path, "file", "be UTF-8 text"), path.open(encoding="utf-8-sig", newline=None) as file:
        yield from file


def _count_lines(path: Path, delimiter: str, width: int) -> int:
    """Lines up to the last that is not blank. pandas fills short lines and skips blank ones; both would move data."""
    last = 0
    for count, line in enumerate(_lines(path), 1):
        if "\0" in line:
            raise failure(path, "file", "be text", f"a NUL character in line {count}")
        if not line.strip():
            continue
        if last != count - 1:
            raise failure(path, "file", "have no blank line between its rows", f"line {last + 1}")
        last = count
        cells = len(_split(path, line, delimiter)) if '"' in line else line.count(delimiter) + 1
        if cells != width:
            raise failure(path, f"line {count}", f"have {width} cells", cells)
    return last


def _split(path: Path, line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter))
    except csv.Error as error:
        raise failure(path, "file", "have readable cells", f"{line[:80]!r} ({error})") from error


def _delimiter(path: Path, head: list[str]) -> str:
    """The delimiter that cuts the first lines into equally many cells, the most of them; comma for a single column."""
    counts = {d: [len(_split(path, line, d)) for line in head] for d in DELIMITERS}
    equal = {d: max(cells) if len(set(cells)) == 1 else 0 for d, cells in counts.items()}
    best = max(DELIMITERS, key=lambda d: equal[d])
    # One column is only believed when no delimiter cuts either line.
    if equal[best] <= 1 and any(max(cells) > 1 for cells in counts.values()):
        raise failure(path, "header", "have as many cells as the row below", f"{head[0][:80]!r}, {head[-1][:80]!r}")
    return best


def _is_fraction(cell: str) -> bool:
    """Whether a header cell is a number that no sensor is called: 0.52, but not 773869."""
    try:
        float(cell)
    except ValueError:
        return False
    return not cell.strip().isdigit()


def _numbers(path: Path, frame: Any, first_line: int) -> Array:
    """A block's cells as float64; columns that pandas left as text are stripped, and their first bad cell is named."""
    pandas = require("pandas", path)
    for column in frame.columns:
        if frame[column].dtype.kind in "fiu":
            continue
        text = frame[column].astype(object).where(frame[column].notna(), "").astype(str).str.strip()
        missing = text.str.lower().isin(MISSING)
        numbers = pandas.to_numeric(text.mask(missing), errors="coerce")
        bad = numbers.isna() & ~missing
        if bad.any():
            row = int(bad.to_numpy().argmax())
            got = f"{text.iloc[row][:80]!r}"
            raise failure(path, f"line {first_line + row}", f"hold a number in cell {column + 1}", got)
        frame[column] = numbers
    numbers_only: Array = frame.to_numpy(dtype=np.float64)
    return numbers_only
