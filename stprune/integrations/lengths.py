"""The one rule of length: a framework that keeps an epoch's length needs epochs of one length."""

from __future__ import annotations

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
        >>> from stprune.integrations.lengths import require_constant_length
        >>> sampler = stprune.PruningSampler(8, num_epochs=4)
        >>> require_constant_length("Example", sampler, "it reads len(loader) once")
        Traceback (most recent call last):
        ValueError: Example: sampler must have fixed_length=True, as it reads len(loader) once, got fixed_length=False
    """
    if not sampler.constant_length:
        raise ValueError(f"{op}: sampler must have fixed_length=True, as {why}, got fixed_length=False")
