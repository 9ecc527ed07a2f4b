"""Checkpoints that a killed run cannot break: a new one takes the place of the last only when it is whole on the disk."""

from __future__ import annotations

import os
import pickle
import uuid
from pathlib import Path
from typing import Any

import torch


def save(state: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a state so that a run killed at any moment leaves the file of the last call, or the whole new one.

    The state goes to a new file beside `path`, which is flushed to the disk and then renamed to `path`. A killed run may leave
    that file, `<path>.<random>.part`, behind; nothing reads it. One rank writes: call `sampler.synchronize()` on every rank
    before `state_dict()`, and `save` on one of them.

    Args:
        state: what `torch.save` can write and `torch.load(weights_only=True)` can read: numbers, words, tensors, and
            dictionaries, lists and tuples of them. Not modified.
        path: the file; its folder exists.

    Raises:
        OSError: the file cannot be written (no such folder, no room, no right); the last file is as it was.

    Example:
        >>> import pathlib, tempfile, stprune
        >>> path = pathlib.Path(tempfile.mkdtemp(), "run.pt")
        >>> stprune.checkpoint.save({"epoch": 3}, path)
        >>> stprune.checkpoint.load(path)
        {'epoch': 3}
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(part, "xb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk by a RuntimeError
        raise OSError(f"checkpoint.save: path must be writable, got {str(path)!r}: {error}") from error
    finally:
        part.unlink(missing_ok=True)
    if os.name == "posix":  # elsewhere a folder cannot be opened, and a rename needs no flush
        # The new name is on the disk only when the folder is.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `save` wrote, with its tensors on the CPU; no code in the file is run.

    Args:
        path: the file.

    Returns:
        The state.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut or damaged, or holds what no state may hold.
    """
    path = Path(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"checkpoint.load: path must be a whole file of checkpoint.save, got {str(path)!r}: {error}"
        ) from error
