"""Loops that have no place for drawn nodes need whole windows."""

from __future__ import annotations

from stprune import PruningSampler


def require_whole_windows(op: str, sampler: PruningSampler) -> None:
    """Refuse a sampler that draws nodes, where the model of a framework takes all of them.

    Args:
        op: whose error it is.
        sampler: the run's sampler.

    Raises:
        ValueError: its granularity is not "window".

    Example:
        >>> import stprune
        >>> from stprune.integrations.whole_windows import require_whole_windows
        >>> require_whole_windows("Example", stprune.PruningSampler(8, num_epochs=4, num_nodes=5, node_ratio=0.4))
        Traceback (most recent call last):
        ValueError: Example: sampler must have granularity 'window', as the model takes all nodes, got 'node'
    """
    if sampler.granularity != "window":
        raise ValueError(
            f"{op}: sampler must have granularity 'window', as the model takes all nodes, got {sampler.granularity!r}"
        )
