"""What integrations ask of a sampler, of a loader and of a framework's version."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from stprune import PruningSampler


def require_constant_length(op: str, sampler: PruningSampler, why: str) -> None:
    """Refuse a sampler whose epochs differ in length, where a framework would cut or repeat epochs because of it.

    Args:
        op: whose error it is.
        sampler: the run's sampler.
        why: what the framework does with the length: "NAME does so".

    Raises:
        ValueError: the epochs may differ in length.

    Example:
        >>> import stprune
        >>> from stprune.integrations.requirements import require_constant_length
        >>> sampler = stprune.PruningSampler(8, num_epochs=4)
        >>> require_constant_length("Example", sampler, "it reads len(loader) once")
        Traceback (most recent call last):
        ValueError: Example: sampler must have fixed_length=True, as it reads len(loader) once, got fixed_length=False
    """
    if not sampler.constant_length:
        raise ValueError(f"{op}: sampler must have fixed_length=True, as {why}, got fixed_length=False")


def require_whole_windows(op: str, sampler: PruningSampler) -> None:
    """Refuse a sampler that draws nodes, where the model of a framework takes all of them.

    Args:
        op: whose error it is.
        sampler: the run's sampler.

    Raises:
        ValueError: its granularity is not "window".

    Example:
        >>> import stprune
        >>> from stprune.integrations.requirements import require_whole_windows
        >>> require_whole_windows("Example", stprune.PruningSampler(8, num_epochs=4, num_nodes=5, node_ratio=0.4))
        Traceback (most recent call last):
        ValueError: Example: sampler must have granularity 'window', as the model takes all nodes, got 'node'
    """
    if sampler.granularity != "window":
        raise ValueError(
            f"{op}: sampler must have granularity 'window', as the model takes all nodes, got {sampler.granularity!r}"
        )


def sampler_of(op: str, loader: Any) -> PruningSampler:
    """The sampler of a loader, which it has itself or in its batch sampler.

    Raises:
        TypeError: the loader has no PruningSampler.
    """
    own = getattr(loader, "sampler", None)
    for sampler in (own, getattr(getattr(loader, "batch_sampler", None), "sampler", None)):
        if isinstance(sampler, PruningSampler):
            return sampler
    raise TypeError(f"{op}: loader must have a PruningSampler, got {type(own).__name__}")


def require_functions(op: str, owner: type, functions: Mapping[str, set[str]], known: str, version: str) -> None:
    """Refuse a version of a framework that lacks functions which are not public and yet needed.

    Args:
        op: whose error it is.
        owner: the framework's class.
        functions: by their names, the names of the arguments that are used.
        known: a version that has them, such as "transformers 5.24".
        version: the one that is installed.

    Raises:
        RuntimeError: a function or one of its arguments is missing.
    """
    for name, arguments in functions.items():
        if not arguments <= set(inspect.signature(getattr(owner, name, lambda: None)).parameters):
            raise RuntimeError(f"{op}: {owner.__name__} must have {name}, as in {known}, got {version}")
