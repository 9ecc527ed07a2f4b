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
from stprune.study.run import ROWS, num_nodes, run
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
    left = grid.pending(rows, num_nodes).left.total()
    unfinished = f"Unfinished: {left:,} of {len(own) + left:,} runs are still to be made, and nothing can be concluded yet."
    doubt = " ".join(text for text in (grid.note, unfinished * bool(left)) if text)
    print(_write(own, grid.title, doubt, folder), flush=True)
    if len(own) < len(rows):
        print(f"Left out: {len(rows) - len(own)} rows of other grids in {folder / ROWS}.", flush=True)
    return own


def page(rows: list[Row], title: str, doubt: str = "") -> str:
    """The report of some rows, with the sources of their families; see `stprune.study.report.render`.

    Args:
        rows: of a study.
        title: heading.
        doubt: why nothing can be concluded from them, which stands first; "" where something can.
    """
    from stprune.study import report

    sources = dict.fromkeys(source for row in rows if (source := FAMILIES[row.spec.family].source))
    return report.render(rows, LABELS, title=title, note=doubt, firm=not doubt, sources=tuple(sources))


def _write(rows: list[Row], title: str, doubt: str, folder: pathlib.Path) -> str:
    """Write report and table, and return what the terminal shows."""
    from stprune.study import table

    (folder / "report.html").write_text(page(rows, title, doubt), encoding="utf-8")
    (folder / "table.md").write_text(table.markdown(rows, LABELS, doubt=doubt), encoding="utf-8")
    study = summarize(rows, LABELS)
    one, firm = len(study.cells) == 1, not doubt
    parts = [doubt, *(_cell(cell, firm) for cell in study.cells)] if one else [doubt, *headline(study, firm=firm)]
    closing = f"Report: {folder / 'report.html'}, table: {folder / 'table.md'}, rows: {folder / ROWS}"
    return "\n".join(part for part in (*parts, closing) if part)


def _cell(cell: Cell, firm: bool) -> str:
    from stprune.study import table

    width = min(120, shutil.get_terminal_size().columns)
    layout, _ = table.texts(cell)
    found = [textwrap.fill(text, width, initial_indent="- ", subsequent_indent="  ") for text in sentences(cell, firm=firm)]
    return "\n\n".join([f"\n{table.as_text(cell)}", textwrap.fill(table.legend(layout), width), "\n".join(found), ""])
