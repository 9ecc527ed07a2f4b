"""The weights of a plan: inverse probabilities, and their calibration by stratum (eq. 10)."""

from __future__ import annotations

import torch

from stprune.ops._registry import define
from stprune.reference import plan_weights as reference


def _inverse_fake(probability: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    return probability.new_empty(indices.shape, dtype=torch.float32)


def _compact_fake(strata: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    size = torch.library.get_ctx().new_dynamic_size()
    return strata.new_empty(strata.shape, dtype=torch.uint8), strata.new_empty((size,))


define("inverse_at(Tensor probability, Tensor indices) -> Tensor", reference.inverse_at, _inverse_fake)
define("compact_strata(Tensor strata) -> (Tensor, Tensor)", reference.compact_strata, _compact_fake)
define(
    "calibrate(Tensor(a!) weights, Tensor indices, Tensor strata, Tensor sizes) -> ()",
    reference.calibrate,
    lambda *arguments: None,
)
define(
    "scale_by_stratum(Tensor(a!) weights, Tensor members, Tensor factor) -> ()",
    reference.scale_by_stratum,
    lambda *arguments: None,
)


def inverse_at(probability: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Horvitz-Thompson weights of kept samples: float32(1 / probability[indices]) (eq. 10).

    Args:
        probability: [n] float32 or float64 in (0, 1]; not modified.
        indices: [K] int64, ascending, in [0, n); not modified.

    Returns:
        [K] float32.

    Example:
        >>> import torch
        >>> from stprune.ops.plan_weights import inverse_at
        >>> inverse_at(torch.tensor([0.5, 1.0, 0.25]), torch.tensor([0, 2]))
        tensor([2., 4.])

    Source:
        Horvitz, Thompson (1952); eq. 10.
    """
    return torch.ops.stprune.inverse_at(probability.contiguous(), indices.contiguous())  # type: ignore[no-any-return]


def compact_strata(strata: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels in as few bytes as hold them, and how many samples have each.

    Args:
        strata: [num_samples] int64 labels in [0, 2^31); not modified.

    Returns:
        labels [num_samples] uint8 if all are below 256, else int32; sizes [largest label + 1] int64.

    Raises:
        RuntimeError: a label lies outside its range.

    Example:
        >>> import torch
        >>> from stprune.ops.plan_weights import compact_strata
        >>> compact_strata(torch.tensor([0, 3, 0]))
        (tensor([0, 3, 0], dtype=torch.uint8), tensor([2, 0, 0, 1]))

    Source:
        Eq. 10.
    """
    return torch.ops.stprune.compact_strata(strata.contiguous())  # type: ignore[no-any-return]


def calibrate(weights: torch.Tensor, indices: torch.Tensor, strata: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Scale the weights of kept samples, in place, so that each stratum's add up to its true size.

    Args:
        weights: [K] float32, contiguous; overwritten.
        indices: [K] int64 the kept samples, ascending; not modified.
        strata: [num_samples] uint8 or int32 labels in [0, num_strata); not modified.
        sizes: [num_strata] int64, how many samples have each label; not modified.

    Returns:
        `weights`. Strata with fewer than 30 kept samples are first merged with a neighbour. Totals are added up in float64 in
        an order that depends on the sizes alone.

    Raises:
        RuntimeError: a label or index lies outside its range; nothing is changed then. On a GPU the device stops.

    Example:
        >>> import torch
        >>> from stprune.ops.plan_weights import calibrate
        >>> strata, sizes = torch.zeros(4, dtype=torch.uint8), torch.tensor([4])
        >>> calibrate(torch.ones(2), torch.tensor([0, 3]), strata, sizes)
        tensor([2., 2.])

    Source:
        Eq. 10.
    """
    torch.ops.stprune.calibrate(weights, indices.contiguous(), strata.contiguous(), sizes)
    return weights


def scale_by_stratum(weights: torch.Tensor, members: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Multiply weights by the factor of each sample's stratum, in float64 and in place.

    Args:
        weights: [K] float32, contiguous; overwritten.
        members: [K] uint8 or int32 strata of the samples, in [0, num_strata); not modified.
        factor: [num_strata] float64; not modified.

    Returns:
        `weights`.

    Example:
        >>> import torch
        >>> from stprune.ops.plan_weights import scale_by_stratum
        >>> factor = torch.tensor([0.5, 3.0], dtype=torch.float64)
        >>> scale_by_stratum(torch.tensor([2.0, 1.0]), torch.tensor([0, 1], dtype=torch.int32), factor)
        tensor([1., 3.])

    Source:
        Eq. 10.
    """
    torch.ops.stprune.scale_by_stratum(weights, members.contiguous(), factor.contiguous())
    return weights
