"""The code that README shows for a framework, to be run against the real package."""

import pathlib

from markdown_it import MarkdownIt

README = pathlib.Path(__file__).resolve().parents[2] / "README.md"


def code_of(framework):
    """The code (fence ```py) in README's section of a framework: at most six lines that are not blank."""
    text = README.read_text()
    section = text.split(f"<!-- {framework}: begin -->")[1].split(f"<!-- {framework}: end -->")[0]
    (code,) = [
        token.content for token in MarkdownIt("commonmark").parse(section) if token.type == "fence" and token.info == "py"
    ]
    assert len([line for line in code.splitlines() if line.strip()]) <= 6, code
    return code
