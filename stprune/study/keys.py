"""Keys that a user may misspell."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any


def unknown(key: str, known: Sequence[str]) -> str:
    """What an error says it got in place of one of the known keys: the nearest one first, then all.

    Example:
        >>> unknown("node", ["steps", "nodes"])
        "'node'; the nearest is 'nodes', all are steps, nodes"
    """
    (nearest,) = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"{key!r}; the nearest is {nearest!r}, all are {', '.join(known)}"


def check_keys(what: str, values: Any, known: Sequence[str], *, needed: str) -> None:
    """Refuse what is no JSON object with the needed key and no unknown one.

    Raises:
        ValueError: `values` of `what` are not so.
    """
    if not isinstance(values, dict):
        raise ValueError(f"study: {what} must be a JSON object with the key {needed!r}, got {short(values)}")
    for key in values:
        if key not in known:
            raise ValueError(f"study: {what} must have known keys, got {unknown(key, known)}")
    if needed not in values:
        raise ValueError(f"study: {what} must have the key {needed!r}, got {', '.join(values) or 'no key'}")


def short(values: Any) -> str:
    """What a message shows of JSON of any length."""
    return repr(values)[:80]
