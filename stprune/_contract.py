"""What the Python code and a compiled library must agree on, as one short text: op schemas and shared constants.

cmake/contract.py makes the same text from the source files when a library is built. It loads this file alone, without torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

PACKAGES = ("ops", "reference")
"""Packages of stprune whose schemas and public constants C++ repeats."""


def is_shared(name: str, value: object) -> bool:
    """Whether a module's variable is a shared constant: a public name in capitals of numbers, text or a tuple of these."""
    parts = value if isinstance(value, tuple) else (value,)
    return name.isupper() and not name.startswith("_") and all(isinstance(part, (int, float, str)) for part in parts)


def digest(schemas: Iterable[str], constants: Mapping[str, object]) -> str:
    """16 hexadecimal digits that change with any schema and any constant."""
    lines = [*sorted(schemas), *(f"{name} = {value!r}" for name, value in sorted(constants.items()))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
