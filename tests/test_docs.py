"""Every Markdown file: its tables render, its links lead somewhere, its code runs; every cited equation is stated."""

import doctest
import itertools
import pathlib
import re
from urllib.parse import unquote

import pytest
import torch
from markdown_it import MarkdownIt
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import stprune
from stprune.integrations import requirements

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted(
    path.relative_to(ROOT)
    for depth in ("*.md", "*/*.md", "*/*/*.md")
    for path in ROOT.glob(depth)
    if not any(part.startswith((".", "build")) for part in path.relative_to(ROOT).parts)
)
GFM = MarkdownIt("commonmark").enable("table")
by_file = pytest.mark.parametrize("path", FILES, ids=str)


def parsed(path):
    """The tokens of a file, those inside of lines too."""
    for token in GFM.parse((ROOT / path).read_text()):
        yield token
        yield from token.children or ()


def cells(line):
    """How many cells a written row of a table has: a `|` that no backslash escapes ends one, also inside of code."""
    return len(re.findall(r"(?<!\\)\|", line.strip().strip("|"))) + 1


@by_file
def test_every_table_renders_as_it_is_written(path):
    lines = (ROOT / path).read_text().splitlines()
    code = {at for token in parsed(path) if token.type == "fence" for at in range(*token.map)}
    written = [at for at, line in enumerate(lines) if line.startswith("|") and at not in code]
    rendered = []
    for token in parsed(path):
        if token.type == "table_open":
            rows = range(*token.map)
            rendered += rows
            assert {cells(lines[at]) for at in rows} == {cells(lines[rows[0]])}, (
                f"a row of {path}:{rows[0] + 1} has other cells"
            )
    assert written == rendered, f"{path}: these lines are no table: {sorted(set(written) ^ set(rendered))[:3]}"


def test_a_table_whose_delimiter_row_does_not_match_is_none():
    """What GitHub does, and what the test above relies on."""
    table = "| a | b |\n| --- | --- |{} \n| 1 | 2 |\n"
    kinds = [{token.type for token in GFM.parse(table.format(more))} for more in ("", " --- |")]
    assert "table_open" in kinds[0]
    assert "table_open" not in kinds[1]


def anchors(path):
    """The anchors GitHub gives to the headings of a file."""
    tokens = GFM.parse((ROOT / path).read_text())
    titles = [after.content for token, after in itertools.pairwise(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@by_file
def test_links_lead_somewhere(path):
    links = [token.attrGet("href") or token.attrGet("src") for token in parsed(path) if token.type in ("link_open", "image")]
    for link in links:
        if not link.startswith(("http:", "https:")):
            file, _, anchor = unquote(link).partition("#")
            target = (ROOT / path).parent / file if file else ROOT / path
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@by_file
def test_python_runs(path):
    blocks = [token.content for token in parsed(path) if token.type == "fence" and token.info == "python"]
    if not blocks:
        pytest.skip("no Python in it")
    torch.manual_seed(0)
    series = torch.rand(60, 5, 1)
    model = torch.nn.Linear(1, 1)
    store = pytest.importorskip("h5py").File("series.h5", "w", driver="core", backing_store=False)
    names = {
        "stprune": stprune,
        "torch": torch,
        "F": functional,
        "DataLoader": DataLoader,
        "labelled_set": TensorDataset(torch.rand(60, 4), torch.arange(60) % 3),
        "classifier": torch.nn.Linear(4, 3),
        "train_set": stprune.WindowDataset(series, history=12, horizon=12),
        "series": series,
        "N": 5,
        "file": {"series": store.create_dataset("series", data=series, chunks=(10, 5, 1))},
        "model": lambda x, node=None: model(x),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }
    for code in blocks:
        exec(code, names)
    assert "loss" not in names or bool(torch.isfinite(names["loss"]))


@by_file
def test_make_targets_exist(path):
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for token in parsed(path):
        if token.type in ("fence", "code_inline") and token.info in ("", "sh"):
            assert set(re.findall(r"^make (\w+)", token.content, re.MULTILINE)) <= targets


def test_the_ways_through_the_code_are_short_and_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for way in ("one batch", "one epoch change"):
        section = text.split(f"## The way of {way}")[1].split("\n## ")[0]
        files = re.findall(r"`([\w/]+\.(?:py|cpp))`", section)
        assert 4 <= len(re.findall(r"^\d+\. ", section, re.MULTILINE)) <= 8
        assert not [file for file in files if not (ROOT / file).is_file()]


def test_every_cited_equation_is_stated_and_every_stated_one_is_cited():
    method = (ROOT / "stprune/methods/README.md").read_text()
    stated = {int(number) for number in re.findall(r"^\((\d+)\) ", method, re.MULTILINE)}
    assert stated == set(range(1, 16))
    cited = set()
    for room, suffix in itertools.product(("stprune", "csrc", "kernels"), (".py", ".cpp", ".h", ".inc", ".cu")):
        for path in (ROOT / room).rglob(f"*{suffix}"):
            # A citation may be cut by the end of a comment's line.
            text = re.sub(r"\s*\n\s*(//|#)?\s*", " ", path.read_text())
            assert "method.md" not in text, path
            for numbers in re.findall(r"\b[Ee]q\. ?(\d+(?:(?:-|, | and )\d+)*)", text):
                for part in re.split(", | and ", numbers):
                    first, _, last = part.partition("-")
                    cited |= set(range(int(first), int(last or first) + 1))
    assert cited == stated


def test_the_examples_of_what_integrations_require_run():
    """Pytest passes that folder over, as its other files import their frameworks."""
    found = doctest.testmod(requirements)
    assert (found.failed, found.attempted > 0) == (0, True)
