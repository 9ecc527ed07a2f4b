"""What every example is: one short file that a user can copy."""

import re

import pytest
from example_checks import EXAMPLES


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_opens_no_connection_and_uses_public_names(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 120
    assert not re.search(r"https?://(?!arxiv)|urllib|requests|download=True", text)
    assert not re.search(r"stprune\._|from stprune\.(?!integrations)|\bsampler\._|\btable\._", text)
