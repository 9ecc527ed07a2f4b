"""`stprune study` and `stprune demo`: from a grid to rows, a table and a report."""

from __future__ import annotations

import importlib.util
import pathlib
import shutil
import textwrap
from dataclasses import replace

from stprune.study import machine
from stprune.study.families import FAMILIES
from stprune.study.grid import Grid
from stprune.study.progress import Bar
from stprune.study.rows import Row
from stprune.study.run import ROWS, run
from stprune.study.sentences import headline, sentences
from stprune.study.summary import Cell, summarize

LABELS = {name: (family.label, family.kind) for name, family in FAMILIES.items()}
"""Name of every family -> (label for people, kind), in the report's order."""


def run_study(
    grid: Grid,
    folder: pathlib.Path,
    *,
    processes: int | None = None,
    minutes: float | None = None,
    device: str = "auto",
    command: str = "study",
) -> list[Row]:
    """Make the runs of a grid, print the table, write report.html and table.md.

    Args:
        grid: what to run.
        folder: of rows.jsonl and the report; runs whose rows are there already are not made again, and rows of another grid
            stay there but do not enter the report.
        processes: runs side by side; None: one per processor core, at most 8.
        minutes: no run is begun after so many; None for no limit, 0 only writes the report.
        device: "auto" (CUDA where present, else the CPU) or a torch device name.
        command: name in error messages.

    Returns:
        The grid's rows.

    Raises:
        ValueError: a setting or the data is not usable.
        OSError: the data cannot be read or the output not written.
        ModuleNotFoundError: tqdm, matplotlib, jinja2 or the data's package is not installed.
        RuntimeError: no run has finished, or see `stprune.study.run.run`.
    """
    for module in ("tqdm", "matplotlib", "jinja2"):
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(f"stprune {command}: needs {module}; install it with `pip install 'stprune[study]'`")
    where = machine.choose_device(device)
    grid = replace(grid, device=machine.device_name(where))
    processes = min(8, machine.cores()) if processes is None else processes
    with Bar() as bar:
        rows = run(grid, folder, processes=processes, minutes=minutes, device=str(where), report=bar.show)
    own = grid.own(rows)
    if not own:
        raise RuntimeError(f"no run has finished in {folder} on {grid.device}: give it more --minutes")
    print(_write(own, grid, folder), flush=True)
    if len(own) < len(rows):
        print(f"Left out: {len(rows) - len(own)} rows of other grids in {folder / ROWS}.", flush=True)
    return own


def page(rows: list[Row], title: str, note: str = "") -> str:
    """The report of some rows, with the sources of their families; see `stprune.study.report.render`."""
    from stprune.study import report

    sources = dict.fromkeys(source for row in rows if (source := FAMILIES[row.spec.family].source))
    return report.render(rows, LABELS, title=title, note=note, sources=tuple(sources))


def _write(rows: list[Row], grid: Grid, folder: pathlib.Path) -> str:
    """Write report and table, and return what the terminal shows."""
    from stprune.study import table

    (folder / "report.html").write_text(page(rows, grid.title, grid.note), encoding="utf-8")
    (folder / "table.md").write_text(table.markdown(rows, LABELS), encoding="utf-8")
    study = summarize(rows, LABELS)
    parts = [grid.note, *(_cell(cell) for cell in study.cells)] if len(study.cells) == 1 else [grid.note, *headline(study)]
    closing = f"Report: {folder / 'report.html'}, table: {folder / 'table.md'}, rows: {folder / ROWS}"
    return "\n".join(part for part in (*parts, closing) if part)


def _cell(cell: Cell) -> str:
    from stprune.study import table

    width = min(120, shutil.get_terminal_size().columns)
    layout, _ = table.texts(cell)
    found = [textwrap.fill(text, width, initial_indent="- ", subsequent_indent="  ") for text in sentences(cell)]
    return "\n\n".join([f"\n{table.as_text(cell)}", textwrap.fill(table.legend(layout), width), "\n".join(found), ""])
