"""table_update on the GPU: of equal ids of a batch the last alone writes, so nothing races and nothing is sorted.

Which is the last: in a batch of up to `COMPARED` ids each is compared with those after it. In a larger one each id claims a
slot of a hash table for its place in the batch, and the largest place stays; by itself that takes two launches before the
update, in a step of training none. Either way is exact.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

NUM_WARPS = 4
# Ids of one program: one a thread. With fewer, several threads would hold the same id, and one could read a mark that another
# has just written.
BLOCK_ID = 32 * NUM_WARPS
# Ids it compares them with at a time; more would spill registers.
BLOCK_OTHER = 16
# Largest batch whose ids are compared: 1,024 comparisons of a thread take about as long as the launches that claiming costs,
# some 2 us. By that arithmetic, not yet timed on a GPU.
COMPARED = 1024
# Slots for each id of a batch.
SLOTS = 4
# Bits of a mark, as in stprune.reference.table_update.
TRAINED = tl.constexpr(4)
SCORED_FRESH_KNOWN = tl.constexpr(11)


@triton.jit
def claim(
    claims,  # [slots] int32: the place that a slot is claimed for, -1 where none has claimed it
    slot_of,  # [B] int32 out: the slot of the id at each place
    index,  # [B] int64
    place,
    slots,
):
    """Claim the slot of one place's id, for which the largest of its places stays."""
    place = place.to(tl.int32)
    sample = tl.load(index + place)
    mixed = (sample ^ (sample >> 32)).to(tl.uint32) * 0x9E3779B1
    slot = ((mixed.to(tl.uint64) * slots) >> 32).to(tl.int32)
    holder = tl.atomic_cas(claims + slot, place * 0 - 1, place)
    while (holder >= 0) & (tl.load(index + tl.maximum(holder, 0)) != sample):
        slot = (slot + 1) % slots
        holder = tl.atomic_cas(claims + slot, place * 0 - 1, place)
    tl.atomic_max(claims + slot, place, mask=holder >= 0)
    tl.store(slot_of + place, slot)


@triton.jit
def take(
    scores,  # [n] float32
    marks,  # [n] uint8
    variance,  # [n] float32, or unused
    count,  # [4] int64: samples trained on in this epoch, unused, samples of all trained batches, a wrong id
    index,  # [B] int64
    values,  # [B] floating
    entries,  # [B] int64, or unused
    weight,  # [B] floating, or unused: NaN where the id is not in the plan
    claims,  # [slots] int32, or unused
    slot_of,  # [B] int32, or unused
    num_samples,
    size,
    beta,
    one_minus_beta,
    STORED: tl.constexpr,
    HAS_VARIANCE: tl.constexpr,
    HAS_ENTRIES: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    IS_TRAINED: tl.constexpr,
    CLAIMED: tl.constexpr,
    BLOCK_ID: tl.constexpr,
    BLOCK_OTHER: tl.constexpr,
):
    """Take the scores of this program's ids into the table."""
    program = tl.program_id(0).to(tl.int64)
    place = program * BLOCK_ID + tl.arange(0, BLOCK_ID)
    valid = place < size
    ids = tl.load(index + place, mask=valid, other=0)
    known = valid
    if STORED:
        known = known & (ids >= 0) & (ids < num_samples)
    if HAS_WEIGHT:
        of_plan = tl.load(weight + place, mask=valid, other=0.0)
        known = known & (of_plan == of_plan)
    # 0 means none, and a negative id is larger than all others: see stprune.reference.table_update.
    noted = (count + 3 + place * 0).to(tl.pointer_type(tl.uint64), bitcast=True)
    tl.atomic_max(noted, (ids + (ids >= 0).to(tl.int64)).to(tl.uint64, bitcast=True), mask=valid & (known == 0))
    if IS_TRAINED and program == 0:
        tl.atomic_add(count + 2, size)
    if STORED:
        if CLAIMED:
            slot = tl.load(slot_of + place, mask=known, other=0)
            winner = known & (tl.load(claims + slot, mask=known, other=-1) == place)
        else:
            later = tl.zeros([BLOCK_ID], tl.int32)
            first = program * BLOCK_ID
            while first < size:
                other = first + tl.arange(0, BLOCK_OTHER)
                theirs = tl.load(index + other, mask=other < size, other=0)
                same = (ids[:, None] == theirs[None, :]) & (other[None, :] > place[:, None]) & (other < size)[None, :]
                later = tl.maximum(later, tl.max(same.to(tl.int32), 1))
                first += BLOCK_OTHER
            winner = known & (later == 0)
        mark = tl.load(marks + ids, mask=winner, other=0).to(tl.int32)
        if IS_TRAINED:
            # Trained on before in this epoch: left as it is.
            winner = winner & ((mark & TRAINED) == 0)
            mark = mark | TRAINED
            tl.atomic_add(count, tl.sum(winner.to(tl.int64), 0))
        scored = winner
        if HAS_ENTRIES:
            scored = winner & (tl.load(entries + place, mask=winner, other=0) > 0)
        old = tl.load(scores + ids, mask=scored, other=0.0)
        new = tl.load(values + place, mask=scored, other=0.0).to(tl.float32)
        # A score that is not finite is replaced, never averaged.
        smooth = tl.abs(old) < float("inf")
        if HAS_VARIANCE:
            before = tl.load(variance + ids, mask=scored, other=0.0)
            change = new - old
            moved = beta * before + one_minus_beta * (change * change)
            tl.store(variance + ids, tl.where(smooth & (tl.abs(new) < float("inf")), moved, before), mask=scored)
        tl.store(scores + ids, tl.where(smooth, beta * old + one_minus_beta * new, new), mask=scored)
        mark = tl.where(scored, mark | SCORED_FRESH_KNOWN, mark)
        tl.store(marks + ids, mark.to(tl.uint8), mask=winner)


@triton.jit
def _claim_kernel(claims, slot_of, index, slots):
    claim(claims, slot_of, index, tl.program_id(0), slots)


@triton.jit
def _table_update_kernel(
    scores, marks, variance, count, index, values, entries, weight, claims, slot_of,
    num_samples, size, beta, one_minus_beta,
    STORED: tl.constexpr, HAS_VARIANCE: tl.constexpr, HAS_ENTRIES: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    IS_TRAINED: tl.constexpr, CLAIMED: tl.constexpr, BLOCK_ID: tl.constexpr, BLOCK_OTHER: tl.constexpr,
):  # fmt: skip
    take(
        scores, marks, variance, count, index, values, entries, weight, claims, slot_of,
        num_samples, size, beta, one_minus_beta,
        STORED, HAS_VARIANCE, HAS_ENTRIES, HAS_WEIGHT, IS_TRAINED, CLAIMED, BLOCK_ID, BLOCK_OTHER,
    )  # fmt: skip


def new_claims(scores: Tensor | None, index: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Memory for `claims` and `slot_of` of a batch that needs them; what is in it must still be set to -1."""
    size = index.numel()
    if scores is None or size <= COMPARED:
        return None, None
    return index.new_empty(SLOTS * size, dtype=torch.int32), index.new_empty(size, dtype=torch.int32)


def table_arguments(
    scores: Tensor | None,
    marks: Tensor | None,
    variance: Tensor | None,
    count: Tensor,
    index: Tensor,
    values: Tensor,
    entries: Tensor | None,
    weight: Tensor | None,
    beta: float,
    trained: bool,
    claims: Tensor | None,
    slot_of: Tensor | None,
) -> dict[str, object]:
    """A table and a batch as `take` takes them; where a tensor is None another one stands in its place, unused."""
    given = {"scores": scores, "marks": marks, "variance": variance, "entries": entries, "weight": weight}
    given |= {"claims": claims, "slot_of": slot_of}
    return {
        **{name: count if tensor is None else tensor for name, tensor in given.items()},
        "count": count,
        "index": index,
        "values": values,
        "num_samples": 0 if scores is None else scores.numel(),
        "size": index.numel(),
        "beta": beta,
        "one_minus_beta": 1.0 - beta,
        "STORED": scores is not None,
        "HAS_VARIANCE": variance is not None,
        "HAS_ENTRIES": entries is not None,
        "HAS_WEIGHT": weight is not None,
        "IS_TRAINED": trained,
        "CLAIMED": claims is not None,
        "BLOCK_ID": BLOCK_ID,
        "BLOCK_OTHER": BLOCK_OTHER,
    }


# One rounding for each operation, as on the CPU: the same scores give the same table.
OPTIONS = {"num_warps": NUM_WARPS, "enable_fp_fusion": False}


def table_update(
    scores: Tensor | None,
    marks: Tensor | None,
    variance: Tensor | None,
    count: Tensor,
    index: Tensor,
    values: Tensor,
    entries: Tensor | None,
    weight: Tensor | None,
    beta: float,
    trained: bool,
) -> None:
    """Launch the kernels; arguments as in stprune.ops.table_update."""
    size, index = index.numel(), index.contiguous()
    if size == 0:
        return
    claims, slot_of = new_claims(scores, index)
    if claims is not None:
        _claim_kernel[(size,)](claims.fill_(-1), slot_of, index, claims.numel(), num_warps=1)
    batch = (index, values.contiguous(), *(None if x is None else x.contiguous() for x in (entries, weight)))
    arguments = table_arguments(scores, marks, variance, count, *batch, beta, trained, claims, slot_of)
    _table_update_kernel[(triton.cdiv(size, BLOCK_ID),)](**arguments, **OPTIONS)
