"""Weights that give each stratum its true share of the total, where kept samples are spread over ranks (eq. 10)."""

from __future__ import annotations

import torch
from torch import distributed

from stprune.exchange import message_device
from stprune.ops.plan_weights import scale_by_stratum
from stprune.ops.strata import Strata
from stprune.reference.plan_weights import LANES, part_size, stratum_factors
from stprune.sharded.owners import Owners


def calibrate(owners: Owners, weights: torch.Tensor, index: torch.Tensor, counts: list[int], strata: Strata) -> torch.Tensor:
    """`stprune.ops.strata.calibrate` of all ranks' kept samples, with the same bits. A collective.

    Weights of a part of the samples are added up one after the other. A rank that owns the end of a part goes on with the sums
    of the rank that owns what is before it: one message from neighbour to neighbour. Two more add up the parts.

    Args:
        owners: who owns which samples.
        weights: [k] float32 of this rank's kept samples; overwritten.
        index: [k] int64 these samples, ascending; not modified.
        counts: every rank's number of kept samples.
        strata: of all samples.
    """
    num_strata, size = strata.sizes.numel(), part_size(owners.num_samples, strata.sizes.numel())
    members = strata.labels[index]
    label = members.long().cpu()
    kept = owners.total(torch.bincount(label, minlength=num_strata))
    first, last = owners.start // size, max(owners.start, owners.stop - 1) // size
    turn = torch.arange(len(index)) + sum(counts[: owners.rank])
    place = ((index.cpu() // size - first) * num_strata + label) * LANES + turn % LANES
    before = _before(owners, size, num_strata * LANES)
    sums = torch.bincount(
        torch.cat([torch.arange(len(before)), place]),
        torch.cat([before, weights.double().cpu()]),
        minlength=(last - first + 1) * num_strata * LANES,
    ).view(-1, num_strata, LANES)
    if _shared(owners, owners.stop, size):
        _send_on(owners, sums[-1].flatten())
        sums = sums[:-1]  # who owns its end has the sums of this part
    parts = torch.zeros(-(-owners.num_samples // size), num_strata, dtype=torch.float64)
    if owners.start < owners.stop:
        parts[first : first + len(sums)] = (sums[..., 0] + sums[..., 1]) + (sums[..., 2] + sums[..., 3])
    totals = torch.zeros(num_strata, dtype=torch.float64)
    for part in owners.total(parts):  # of each part one rank has the sum, all others 0
        totals = totals + part
    factor = stratum_factors(strata.sizes.cpu(), kept, totals)
    return scale_by_stratum(weights, members, factor.to(weights.device))


def _shared(owners: Owners, end: int, size: int) -> bool:
    """Whether a part goes on beyond this end of the rank's own range."""
    return owners.start < owners.stop and 0 < end < owners.num_samples and end % size > 0


def _before(owners: Owners, size: int, number: int) -> torch.Tensor:
    """The sums with which the rank before left the part that this rank's range begins in; none where it begins one."""
    if not _shared(owners, owners.start, size):
        return torch.empty(0, dtype=torch.float64)
    source = max(rank for rank in range(owners.rank) if owners.bounds[rank] < owners.bounds[rank + 1])
    sums = torch.empty(number, dtype=torch.float64, device=message_device(owners.group, torch.device("cpu")))
    distributed.recv(sums, group=owners.group, group_src=source)
    return sums.cpu()


def _send_on(owners: Owners, sums: torch.Tensor) -> None:
    later = range(owners.rank + 1, owners.num_ranks)
    target = min(rank for rank in later if owners.bounds[rank] < owners.bounds[rank + 1])
    distributed.send(sums.to(message_device(owners.group, sums.device)), group=owners.group, group_dst=target)
