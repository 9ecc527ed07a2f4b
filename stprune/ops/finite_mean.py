"""finite_mean: a mean that no thread count changes and no NaN poisons."""

from __future__ import annotations

import math

import torch

_ROW = 4096  # fixed block of the summation tree
_CHUNK = 1 << 22


def finite_mean(values: torch.Tensor) -> float:
    """Mean of the finite entries of a vector, in float64; NaN when there are none.

    The vector is cut into fixed blocks whose float64 sums are added exactly (math.fsum), so the result depends on neither
    the thread count nor how torch splits a reduction. A vector of n equal values has exactly that value as its mean.

    Args:
        values: [n] floating; not modified.

    Example:
        >>> import torch
        >>> from stprune.ops.finite_mean import finite_mean
        >>> finite_mean(torch.tensor([1.0, float("inf"), 3.0]))
        2.0
    """
    sums: list[float] = []
    count = 0
    for chunk in values.detach().split(_CHUNK):
        finite = torch.isfinite(chunk)
        count += int(finite.sum())
        kept = torch.where(finite, chunk, 0.0).double()
        whole = kept.numel() // _ROW * _ROW
        sums += kept[:whole].view(-1, _ROW).sum(dim=1).tolist()
        sums.append(float(kept[whole:].sum()))
    return math.fsum(sums) / count if count else math.nan
