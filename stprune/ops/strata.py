"""Strata: labels of the samples, and weights that give each label its true share (eq. 10)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from stprune.ops import _check, plan_weights


@dataclass(frozen=True)
class Strata:
    """Which stratum each sample belongs to.

    Attributes:
        labels: [num_samples] uint8 or int32 in [0, number of strata).
        sizes: [number of strata] int64, how many samples have each label.
    """

    labels: torch.Tensor
    sizes: torch.Tensor

    def to(self, device: torch.device) -> Strata:
        """The same strata on `device`."""
        return replace(self, labels=self.labels.to(device), sizes=self.sizes.to(device))


def checked_strata(op: str, strata: torch.Tensor, num_samples: int) -> Strata:
    """The strata of labels that are [num_samples] int64 >= 0; one pass over them.

    Args:
        op: who asks, for the message of an error.
        strata: [num_samples] int64 labels in [0, 2^31); not modified.
        num_samples: how many there must be.

    Raises:
        TypeError: `strata` is not int64.
        ValueError: `strata` has another size, or a label lies outside its range.

    Example:
        >>> import torch
        >>> from stprune.ops.strata import checked_strata
        >>> checked_strata("example", torch.tensor([1, 0, 1]), 3).sizes
        tensor([1, 2])
    """
    strata = _check.index(op, "strata", strata)
    if strata.numel() != num_samples:
        raise ValueError(f"{op}: strata must have one label for each of {num_samples} samples, got {strata.numel()}")
    try:
        return Strata(*plan_weights.compact_strata(strata))
    except RuntimeError as error:
        low, high = (int(end) for end in torch.aminmax(strata))
        if low < 0:
            raise ValueError(f"{op}: strata must be labels >= 0, got {low}") from error
        if high >= 2**31:
            raise ValueError(f"{op}: strata must be labels below 2^31, got {high}") from error
        raise


def calibrate(weights: torch.Tensor, indices: torch.Tensor, strata: Strata) -> torch.Tensor:
    """Scale the weights so that each stratum's sum to its true size (eq. 10).

    Args:
        weights: [K] float32 weights of the kept samples; overwritten.
        indices: [K] int64 the kept samples, ascending; not modified.
        strata: the strata of all samples.

    Returns:
        `weights`. Strata with fewer than 30 kept samples are first merged with a neighbour.

    Example:
        >>> import torch
        >>> from stprune.ops.strata import calibrate, checked_strata
        >>> strata = checked_strata("example", torch.arange(100) // 50, 100)
        >>> weights = calibrate(torch.ones(80), torch.arange(80), strata)
        >>> float(weights[0]), float(weights[79])
        (1.0, 1.6666666269302368)
    """
    return plan_weights.calibrate(weights, indices, strata.labels, strata.sizes)
