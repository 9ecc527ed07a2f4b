"""The committed study: its rows from the folders of `stprune study`, and from them README's block and the report.

    stprune study benchmarks/studies/stid.json --output /tmp/stid     # hours; a stopped study goes on where it was
    python benchmarks/study.py --collect /tmp/stid /tmp/law ...       # results/study.jsonl: rows of all folders, rounded
    python benchmarks/study.py --collect-demo stprune-demo            # results/demo.jsonl, of `make demo`
    python benchmarks/study.py --write                                # the blocks in the READMEs, results/study.html
    python benchmarks/study.py --check                                # whether they are what the rows say

A grid reads ../shared/data, which is not part of the project; where a series is absent, its block cannot be repeated.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Iterable
from typing import Any

from stprune.study import rows, table
from stprune.study.command import LABELS, page
from stprune.study.presets import DEMO
from stprune.study.rows import Row
from stprune.study.sentences import headline, sentences
from stprune.study.summary import summarize

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TITLE = "Where drawing nodes makes training cheaper than a smaller batch"
_DIGITS = 6


def main() -> int:
    """Collect rows, write what is made of them, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", type=pathlib.Path, nargs="+", metavar="FOLDER", help="folders of studies")
    parser.add_argument("--collect-demo", type=pathlib.Path, metavar="FOLDER", help="folder of a demo")
    parser.add_argument("--write", action="store_true", help="write the READMEs' blocks and the report")
    parser.add_argument("--check", action="store_true", help="fail where they differ from the rows")
    options = parser.parse_args()
    if options.collect:
        collect(options.collect, RESULTS / "study.jsonl")
    if options.collect_demo:
        collect([options.collect_demo], RESULTS / "demo.jsonl")
    if options.write:
        for path, text in blocks().items():
            path.write_text(text, encoding="utf-8")
        (RESULTS / "study.html").write_text(page(committed("study"), TITLE), encoding="utf-8")
    stale = [str(path.relative_to(ROOT)) for path, text in blocks().items() if path.read_text(encoding="utf-8") != text]
    if options.check and stale:
        print(f"{', '.join(stale)}: not what the rows say; run python benchmarks/study.py --write", file=sys.stderr)
        return 1
    return 0


def collect(folders: Iterable[pathlib.Path], target: pathlib.Path) -> None:
    """Write the rows of some folders into one file, numbers rounded to 6 digits."""
    lines = []
    for folder in folders:
        for row in rows.read(folder / "rows.jsonl"):
            values = json.loads(row.as_json())
            versions = {name: row.machine["versions"][name] for name in ("stprune", "torch")}
            values["machine"] = {name: row.machine[name] for name in ("processor", "device", "threads")}
            values["machine"]["versions"] = versions
            short = {name: _rounded(name, value) for name, value in values.items()}
            lines.append(json.dumps(short, separators=(",", ":")) + "\n")
    target.write_text("".join(lines), encoding="utf-8")


def _rounded(name: str, value: Any) -> Any:
    if name in ("learning_rate", "cost", "keep_ratio"):
        return value  # what was asked: it must stay the same spec
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    return [_rounded("", each) for each in value] if isinstance(value, list) else value


def committed(name: str) -> list[Row]:
    """Rows of a file in results/."""
    return rows.read(RESULTS / f"{name}.jsonl")


def blocks() -> dict[pathlib.Path, str]:
    """Every file with a block of the study, as it must be."""
    study = summarize(committed("study"), LABELS)
    scope, *found = headline(study)
    tried = summarize(committed("demo"), LABELS)
    demo, (tried_scope, *_) = tried.cells[0], headline(tried)
    if demo.data != DEMO.data[0]:
        raise ValueError(f"results/demo.jsonl must hold a demo of {DEMO.data[0]}, got {demo.data}")
    made = {
        ROOT / "README.md": {
            "study": "\n".join([f"**{scope}**", *(f"- {text}" for text in found)]),
            "demo": "\n".join([f"{demo.title}. {tried_scope}", "", *(f"- {text}" for text in sentences(demo))]),
        },
        ROOT / "benchmarks" / "README.md": {"study": table.markdown(study.rows, LABELS).strip()},
    }
    return {path: _filled(path.read_text(encoding="utf-8"), parts) for path, parts in made.items()}


def _filled(text: str, parts: dict[str, str]) -> str:
    for name, part in parts.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        if (text.count(begin), text.count(end)) != (1, 1):
            raise ValueError(f"{begin.strip()} and its end must stand once, got {text.count(begin)} and {text.count(end)}")
        text = f"{text[: text.index(begin)]}{begin}{part}\n{text[text.index(end) :]}"
    return text


if __name__ == "__main__":
    sys.exit(main())
