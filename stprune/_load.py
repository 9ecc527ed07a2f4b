"""Find and load the compiled libraries; without them every op runs on its reference implementation."""

from __future__ import annotations

import ctypes
import importlib
import mmap
import os
import pathlib
import pkgutil
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from stprune import _contract
from stprune.ops import _registry


@dataclass(frozen=True)
class LibraryStatus:
    """Whether a compiled library, or the Triton kernels, are in use.

    Attributes:
        loaded: True when its kernels are registered, or those of Triton can be imported.
        path: file it was loaded from, or the Triton kernels' folder; None without one.
        reason: why it is not loaded; empty when it is.
        version: of Triton; empty for a library, and where Triton cannot be imported.
    """

    loaded: bool
    path: str | None
    reason: str
    version: str = ""


_status: dict[str, LibraryStatus] = {}


def _find(name: str, folders: Iterable[str]) -> pathlib.Path | None:
    for folder in folders:
        path = pathlib.Path(folder) / f"{name}.so"
        if path.is_file():
            return path
    return None


def _folders(package: Iterable[str]) -> list[str]:
    """Where a library may lie, nearest first."""
    # A build of one's own, for example with sanitizers.
    extra = [os.environ["STPRUNE_LIBRARY_DIR"]] if os.environ.get("STPRUNE_LIBRARY_DIR") else []
    # An editable install has the sources in the checkout and the library in site-packages, both on the package's path. With
    # any other install, Python started in the checkout sees only the sources: the installed package is further down.
    return [*extra, *package, *(os.path.join(entry, "stprune") for entry in sys.path if entry)]


def contract() -> str:
    """The number of the op schemas and shared constants that Python has."""
    constants = {}
    for package in _contract.PACKAGES:
        for info in pkgutil.iter_modules(importlib.import_module(f"stprune.{package}").__path__, f"stprune.{package}."):
            for name, value in vars(importlib.import_module(info.name)).items():
                if _contract.is_shared(name, value):
                    constants[f"{info.name}.{name}"] = value
    return _contract.digest(_registry.SCHEMAS, constants)


def _keeps(path: pathlib.Path, contract: str) -> bool:
    """Whether a library was built for this contract; read from the file, as loading it would register its kernels."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(f"stprune-contract:{contract};".encode()) >= 0


def _load_one(name: str, folders: Iterable[str], contract: str) -> LibraryStatus:
    path = _find(name, folders)
    if path is None:
        return LibraryStatus(False, None, f"{name}.so was not found; it is built by `pip install .`")
    try:
        if not _keeps(path, contract):
            return LibraryStatus(False, os.fspath(path), "it was built for other op schemas of stprune; build it again")
        ctypes.CDLL(os.fspath(path))
    except (OSError, ValueError) as error:
        return LibraryStatus(False, os.fspath(path), f"could not be loaded: {error}")
    return LibraryStatus(True, os.fspath(path), "")


def load(package: list[str]) -> None:
    """Load the libraries from the package's folders, once; warn once when the CPU library is missing.

    Where a folder of the package is a checkout's, what lies beside it joins `package`: the Triton kernels are there.
    """
    if _status:
        return
    beside = [os.path.dirname(folder) for folder in package]
    package += [folder for folder in beside if os.path.isfile(os.path.join(folder, "kernels", "table_update.py"))]
    if os.environ.get("STPRUNE_DISABLE_NATIVE") == "1":
        off = LibraryStatus(False, None, "switched off by STPRUNE_DISABLE_NATIVE=1")
        _status.update(_C=off, _C_cuda=off)
        return
    folders = _folders(package)
    expected = contract()
    _status["_C"] = _load_one("_C", folders, expected)
    if torch.version.cuda is None:
        _status["_C_cuda"] = LibraryStatus(False, None, "this torch has no CUDA")
    else:
        _status["_C_cuda"] = _load_one("_C_cuda", folders, expected)
    if not _status["_C"].loaded:
        warnings.warn(
            f"stprune: the compiled CPU library is not in use ({_status['_C'].reason}). Results are the same, on slower "
            "reference implementations. Build it with `pip install --no-build-isolation -e .` in a checkout, or "
            "`pip install stprune` where torch >= 2.10 is installed.",
            RuntimeWarning,
            stacklevel=3,
        )


def library_status() -> dict[str, LibraryStatus]:
    """Which compiled libraries and kernels are in use, and why not. Imports the Triton kernels, which takes a moment.

    Returns:
        One `LibraryStatus` each for `_C` (CPU), `_C_cuda` (CUDA) and `triton` (CUDA tensors).

    Example:
        >>> import stprune
        >>> sorted(stprune.library_status())
        ['_C', '_C_cuda', 'triton']
    """
    return {**_status, "triton": _triton()}


def _triton() -> LibraryStatus:
    path: str | None = None
    reason = "not installed"
    try:
        for file in _registry.BY_TRITON.values():
            module = _registry.kernel_module(file)
            if module is not None:
                path, reason = os.path.dirname(str(module.__file__)), ""
    except RuntimeError as error:
        path, reason = None, str(error)
    return LibraryStatus(path is not None, path, reason, getattr(sys.modules.get("triton"), "__version__", ""))


def implementations(device: str) -> dict[str, str]:
    """What runs each op on the tensors of a device: ids, plans and copies are the same, last bits of sums may differ.

    Args:
        device: "cpu" or "cuda"; it need not be there.

    Returns:
        For each op by name "compiled" (`_C` or `_C_cuda`), "triton", or "torch": its definition in plain torch, or other ops.

    Raises:
        ValueError: another device.

    Example:
        >>> import stprune
        >>> stprune.implementations("cpu")["select"] in ("compiled", "torch")
        True
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"implementations: device must be 'cpu' or 'cuda', got {device!r}")
    names = sorted(schema.split("(", 1)[0] for schema in _registry.SCHEMAS)
    return {name: _registry.implementation(name, device) for name in names}
