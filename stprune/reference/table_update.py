"""Reference of table_update: eq. 5 for the visited samples."""

from __future__ import annotations

import torch

SCORED, FRESH, TRAINED, KNOWN = 1, 2, 4, 8
"""Bits of a sample's mark: scored in this epoch, scored since ranks last exchanged their scores, trained on in this epoch,
scored at least once. Kernels may use the bits above these for their own ends."""


def table_update(
    scores: torch.Tensor | None,
    marks: torch.Tensor | None,
    variance: torch.Tensor | None,
    count: torch.Tensor,
    index: torch.Tensor,
    values: torch.Tensor,
    entries: torch.Tensor | None,
    weight: torch.Tensor | None,
    beta: float,
    trained: bool,
) -> None:
    """Move the visited samples to `beta * old + (1 - beta) * new`, mark them, and count them if they were trained on."""
    if (index.dtype, values.dtype) != (torch.int64, torch.float32) or index.dim() != 1 or values.shape != index.shape:
        raise RuntimeError("table_update: index [B] must be int64 and values [B] float32")
    if index.device.type == "cpu":
        if scores is not None and index.numel():
            low, high = (int(bound) for bound in torch.aminmax(index))
            if low < 0 or high >= scores.numel():
                bad = low if low < 0 else high
                raise RuntimeError(f"table_update: index must lie in [0, {scores.numel() - 1}], got {bad}")
        if weight is not None and bool(weight.isnan().any()):
            raise RuntimeError(f"table_update: index must hold ids of the plan, got {int(index[weight.isnan()][0])}")
    update_known(scores, marks, variance, count, index, values, entries, weight, beta, trained)


def update_known(
    scores: torch.Tensor | None,
    marks: torch.Tensor | None,
    variance: torch.Tensor | None,
    count: torch.Tensor,
    index: torch.Tensor,
    values: torch.Tensor,
    entries: torch.Tensor | None,
    weight: torch.Tensor | None,
    beta: float,
    trained: bool,
) -> None:
    """The same where asking for a wrong id would wait for the device: the largest one is noted in count[3], and left out.

    An id is noted as itself, or as the number after it if it is not negative, as 0 means none. A negative one is larger than
    all others, as it is for a kernel that takes it for a number without a sign.
    """
    if trained:
        count[2] += index.numel()
    if index.numel() == 0:
        return
    known = torch.ones_like(index, dtype=torch.bool) if weight is None else ~weight.isnan()
    if scores is not None:
        known &= (index >= 0) & (index < scores.numel())
    sign = torch.iinfo(torch.int64).min
    noted = torch.where(known, 0, index + (index >= 0)) ^ sign
    count[3] = torch.maximum(noted.amax(), count[3] ^ sign) ^ sign
    if scores is None or marks is None or scores.numel() == 0:
        return
    index, last, some = standing_for(index, known)
    new, old, mark = values[last], scores[index], marks[index]
    left = (~some).expand(index.shape)
    if trained:
        left = left | ((mark & TRAINED) != 0)
        first = last == torch.arange(len(last), device=last.device)
        count[0] += (first & ~left).sum()
        mark = torch.where(some, mark | TRAINED, mark)
        marks[index] = mark
    scored = ~left if entries is None else ~left & (entries[last] > 0)
    # A score that is not finite is replaced, never averaged.
    smooth = torch.isfinite(old)
    mixed = torch.where(smooth, beta * old + (1.0 - beta) * new, new)
    if variance is not None:
        before = variance[index]
        moved = beta * before + (1.0 - beta) * (new - old).square()
        variance[index] = torch.where(scored & smooth & torch.isfinite(new), moved, before)
    scores[index] = torch.where(scored, mixed, old)
    marks[index] |= torch.where(scored, SCORED | FRESH | KNOWN, 0).to(torch.uint8)


def standing_for(index: torch.Tensor, known: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids [B] which may all be read and written, for each place [B] the one whose values it writes, and whether any is known.

    Of equal ids the last place stands for all: parallel writers of one id then all write the same bits. A wrong id's place is
    taken by the last right one, which writes what it writes anyway; where none is right, all are 0.
    """
    places = torch.arange(index.numel(), device=index.device)
    some, stand_in = known.any(), torch.where(known, places, 0).amax()
    at = torch.where(known, places, stand_in)
    index = torch.where(some, index[at], 0)
    return index, at[last_of_each(index)], some


def last_of_each(index: torch.Tensor) -> torch.Tensor:
    """[B] int64: the last place in `index` that holds the same id."""
    ordered, position = torch.sort(index, stable=True)
    return position[torch.searchsorted(ordered, index.contiguous(), right=True) - 1]
