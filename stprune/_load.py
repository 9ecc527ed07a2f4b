"""Find and load the compiled libraries; without them every op runs on its reference implementation."""

from __future__ import annotations

import ctypes
import os
import pathlib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch

ABI_VERSION = 1
"""Version of the op schemas; csrc/library.cpp reports the one a library was built for."""


@dataclass(frozen=True)
class LibraryStatus:
    """Whether a compiled library is in use.

    Attributes:
        loaded: True when its kernels are registered.
        path: file it was loaded from, or None.
        reason: why it is not loaded; empty when it is.
    """

    loaded: bool
    path: str | None
    reason: str


_status: dict[str, LibraryStatus] = {}


def _find(name: str, folders: Iterable[str]) -> pathlib.Path | None:
    # An editable install keeps the sources in the checkout and the library in site-packages: both are on __path__.
    for folder in folders:
        path = pathlib.Path(folder) / f"{name}.so"
        if path.is_file():
            return path
    return None


def _load_one(name: str, folders: Iterable[str]) -> LibraryStatus:
    path = _find(name, folders)
    if path is None:
        return LibraryStatus(False, None, f"{name}.so was not found; it is built by `pip install .`")
    try:
        library = ctypes.CDLL(os.fspath(path))
        library.stprune_abi_version.restype = ctypes.c_int64
        found = int(library.stprune_abi_version())
        if found != ABI_VERSION:
            return LibraryStatus(False, os.fspath(path), f"built for op version {found}, this is {ABI_VERSION}; build it again")
    except (OSError, AttributeError) as error:
        return LibraryStatus(False, os.fspath(path), f"could not be loaded: {error}")
    return LibraryStatus(True, os.fspath(path), "")


def load(folders: Iterable[str]) -> None:
    """Load the libraries from the package's folders, once; warn once when the CPU library is missing."""
    if _status:
        return
    folders = list(folders)
    if os.environ.get("STPRUNE_DISABLE_NATIVE") == "1":
        off = LibraryStatus(False, None, "switched off by STPRUNE_DISABLE_NATIVE=1")
        _status.update(_C=off, _C_cuda=off)
        return
    _status["_C"] = _load_one("_C", folders)
    if torch.version.cuda is None:
        _status["_C_cuda"] = LibraryStatus(False, None, "this torch has no CUDA")
    else:
        _status["_C_cuda"] = _load_one("_C_cuda", folders)
    if not _status["_C"].loaded:
        warnings.warn(
            f"stprune: the compiled CPU library is not in use ({_status['_C'].reason}). Results are the same, on slower "
            "reference implementations. Build it with `pip install --no-build-isolation -e .` in a checkout, or "
            "`pip install stprune` where torch >= 2.10 is installed.",
            RuntimeWarning,
            stacklevel=3,
        )


def library_status() -> dict[str, LibraryStatus]:
    """Which compiled libraries are in use, and why not.

    Returns:
        One `LibraryStatus` each for `_C` (CPU) and `_C_cuda` (CUDA).

    Example:
        >>> import stprune
        >>> sorted(stprune.library_status())
        ['_C', '_C_cuda']
    """
    return dict(_status)
