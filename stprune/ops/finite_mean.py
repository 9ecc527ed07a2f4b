"""finite_mean: a mean that neither the number of threads nor a NaN changes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stprune.ops import _check
from stprune.ops._registry import define
from stprune.reference.finite_stats import finite_stats as reference


def _fake(values: torch.Tensor) -> torch.Tensor:
    return values.new_empty((4,), dtype=torch.float64)


define("finite_stats(Tensor values) -> Tensor", reference, _fake)


@dataclass(frozen=True)
class FiniteStats:
    """What one pass tells about the finite entries of a vector.

    Attributes:
        sum: their sum, added up in float64 in a fixed order.
        count: how many there are.
        least, largest: their range; +inf and -inf when there are none.
    """

    sum: float
    count: int
    least: float
    largest: float

    @property
    def mean(self) -> float:
        """The mean; NaN when there is no entry, exactly the common value when all are equal."""
        if self.least == self.largest:
            return self.least
        return self.sum / self.count if self.count else float("nan")


def finite_stats(values: torch.Tensor) -> FiniteStats:
    """Sum, number, least and largest of the finite entries of a vector, in one pass.

    The vector is cut into blocks of 4,096, a block into 32 lanes; lanes and then blocks are added in a fixed order in
    float64. So the result depends on neither the thread count nor the instruction set, and no NaN or infinity enters it.

    Args:
        values: [n] float32, float64, bfloat16 or float16; not modified.

    Returns:
        The statistics, on the host.

    Raises:
        TypeError: `values` is no floating tensor.
        ValueError: `values` is not one-dimensional.

    Example:
        >>> import torch
        >>> from stprune.ops.finite_mean import finite_stats
        >>> finite_stats(torch.tensor([1.0, float("inf"), 3.0]))
        FiniteStats(sum=4.0, count=2, least=1.0, largest=3.0)
    """
    values = _check.vector("finite_stats", "values", _check.floating("finite_stats", "values", values)).detach()
    # bfloat16 and float16 become float32, which is exact.
    values = values.contiguous() if values.dtype in (torch.float32, torch.float64) else values.float()
    total, count, least, largest = torch.ops.stprune.finite_stats(values).tolist()
    return FiniteStats(total, int(count), least, largest)


def finite_mean(values: torch.Tensor) -> float:
    """Mean of the finite entries of a vector, in float64; NaN when there are none.

    See `finite_stats`. A vector of equal values has exactly that value as its mean.

    Args:
        values: [n] floating; not modified.

    Example:
        >>> import torch
        >>> from stprune.ops.finite_mean import finite_mean
        >>> finite_mean(torch.tensor([1.0, float("inf"), 3.0]))
        2.0
    """
    return finite_stats(values).mean
