"""CSV: a header of node names, one row for each time, an optional first column of times."""

from __future__ import annotations

import csv
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stprune.data.series import Array, Series, check_bytes, check_nodes, failure, fill_float32
from stprune.data.times import check_times, looks_like_time, parse_times

DELIMITERS = (",", ";", "\t")
TIME_NAMES = {"", "time", "times", "timestamp", "timestamps", "date", "datetime", "index", "unnamed: 0"}
MISSING = {"", "na", "n/a", "nan", "null"}
# Lines parsed at a time: enough to make NumPy's parser the cost, few enough to hold as text.
LINES = 2048


def read_csv(path: Path, name: str, header: bool, max_bytes: int) -> Series:
    """[time, node, 1] of a text file; empty cells and NA, N/A, NaN, null are missing."""
    lines = _count_lines(path)
    first_row = 1 if header else 0
    if lines <= first_row:
        raise failure(path, "file", "have a row of numbers" + (" below its header" if header else ""), f"{lines} lines")
    reader = _lines(path)
    head = list(itertools.islice(reader, 2 if header else 1))
    delimiter = _sniff(path, head)
    cells = _split(path, head[-1], delimiter)
    names = _split(path, head[0], delimiter) if header else [str(column) for column in range(len(cells))]
    if header and all(_is_fraction(cell) for cell in names):
        raise failure(path, "header", "name the nodes (a file without header needs header=False)", f"{head[0][:80]!r}")

    has_dates = looks_like_time(cells[0])
    # A numeric first column with such a name counts rows: it is checked and left out.
    has_times = has_dates or (header and names[0].strip().lower() in TIME_NAMES)
    num_times, num_nodes = lines - first_row, len(names) - has_times
    if num_nodes < 1:
        raise failure(path, "header", "name at least one node", f"{names}")
    # Every cell but the last of a line costs a delimiter, so a short file cannot claim a large table.
    if num_times * (len(names) - 1) > path.stat().st_size:
        raise failure(path, "file", f"have {len(names)} cells in every line", "shorter lines")
    check_bytes(path, "file", (num_times, num_nodes), 4, max_bytes)
    node_ids = check_nodes(path, "header", [n.strip() for n in names[has_times:]], num_nodes) if header else None

    values: Array = np.empty((num_times, num_nodes, 1), dtype=np.float32)
    stamps: list[str] = []
    reader = itertools.islice(_lines(path), first_row, None)
    for row in range(0, num_times, LINES):
        chunk = list(itertools.islice(reader, min(LINES, num_times - row)))
        numbers, column = _parse(path, chunk, delimiter, len(names), bool(has_times), row + first_row + 1)
        fill_float32(path, "values", values[row : row + len(chunk)], numbers[:, :, None], row)
        stamps += column
    times: Array | None = None
    steps_per_day: int | None = None
    notes: list[str] = []
    if has_dates:
        parsed, notes = parse_times(path, names[0] or "time", stamps, first_row + 1)
        times, steps_per_day, more = check_times(path, names[0] or "time", parsed, num_times)
        notes += more
    elif has_times:
        _check_counter(path, names[0] or "index", stamps, first_row + 1)
        notes = [f"column {names[0]!r} counts rows and is left out"]
    return Series(values, name, timestamps=times, node_ids=node_ids, steps_per_day=steps_per_day, notes=tuple(notes))


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", newline=None) as file:
        try:
            yield from file
        except UnicodeDecodeError as error:
            raise failure(path, "file", "be UTF-8 text", f"{error}") from error


def _count_lines(path: Path) -> int:
    """Lines up to the last that is not blank; a blank one before it would silently drop a time."""
    last = 0
    blank: int | None = None
    for count, line in enumerate(_lines(path), 1):
        if "\0" in line:
            raise failure(path, "file", "be text", f"a NUL character in line {count}")
        if line.strip():
            if blank is not None:
                raise failure(path, "file", "have no blank line between its rows", f"line {blank}")
            last = count
        elif blank is None:
            blank = count
    return last


def _split(path: Path, line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter))
    except csv.Error as error:
        raise failure(path, "file", "have readable cells", f"{line[:80]!r} ({error})") from error


def _sniff(path: Path, head: list[str]) -> str:
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


def _parse(
    path: Path, chunk: list[str], delimiter: str, width: int, has_times: bool, first_line: int
) -> tuple[Array, list[str]]:
    """(numbers [rows, width - has_times] float64, first column as text); the fast parser, then the explaining one."""
    rest, stamps = chunk, []
    if has_times:
        parts = [line.partition(delimiter) for line in chunk]
        rest, stamps = [part[2] for part in parts], [part[0].strip().strip('"') for part in parts]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            numbers: Any = np.loadtxt(rest, delimiter=delimiter, comments=None, ndmin=2, dtype=np.float64)
        if numbers.shape == (len(chunk), width - has_times):
            return numbers, stamps
    except (ValueError, UserWarning):
        pass
    return _parse_slowly(path, chunk, delimiter, width, has_times, first_line)


def _parse_slowly(
    path: Path, chunk: list[str], delimiter: str, width: int, has_times: bool, first_line: int
) -> tuple[Array, list[str]]:
    numbers: Array = np.empty((len(chunk), width - has_times))
    stamps = []
    for row, line in enumerate(chunk):
        cells = _split(path, line, delimiter)
        if len(cells) != width:
            raise failure(path, f"line {first_line + row}", f"have {width} cells", f"{len(cells)}")
        if has_times:
            stamps.append(cells[0].strip())
        for column, cell in enumerate(cells[has_times:]):
            text = cell.strip()
            try:
                # float() reads 1_000, which no other reader of these files does.
                numbers[row, column] = np.nan if text.lower() in MISSING else float(text.replace("_", "?"))
            except ValueError as error:
                rule = f"hold a number in cell {column + 1 + has_times}"
                raise failure(path, f"line {first_line + row}", rule, f"{text!r}") from error
    return numbers, stamps


def _check_counter(path: Path, key: str, stamps: list[str], first_line: int) -> None:
    previous = -np.inf
    for row, text in enumerate(stamps):
        try:
            number = float(text)
        except ValueError as error:
            raise failure(path, key, "hold times or row numbers", f"{text!r} in line {first_line + row}") from error
        if not number > previous:
            raise failure(path, key, "increase strictly", f"{text} in line {first_line + row}")
        previous = number
