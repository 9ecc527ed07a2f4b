"""The methods' rules over scores that are spread over ranks: which of its own samples each rank keeps, and their weights.

Each does what the op of one rank does, in the same order: what is added up there in blocks is added up here by the owners of
the blocks (`Owners.sum_blocks`), whole numbers are added exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from stprune.methods import InfoBatch, Method, STPrune, TopK, asked_count
from stprune.ops.budget import checked_budget
from stprune.ops.order_positions import order_positions
from stprune.reference import budget
from stprune.reference.budget import Clipped, brackets, sizes_of, solve, wanted_of
from stprune.reference.draw import ONE, fixed_point, systematic_order
from stprune.reference.draw_threshold import head_size
from stprune.reference.finite_stats import BLOCK, sums_where
from stprune.reference.random import OFFSET, SYSTEMATIC, philox4x32, split_seed
from stprune.sharded.owners import Owners

Kept = tuple[torch.Tensor, torch.Tensor]
"""Which of a rank's own samples are kept, counted from its first and ascending [k] int64, and their weights [k] float32."""


def kept(owners: Owners, method: Method, scores: torch.Tensor, *, keep_ratio: float, seed: int, epoch: int) -> Kept:
    """What this rank keeps of its own samples. A collective.

    Args:
        owners: who owns which samples.
        method: one of `RULES`.
        scores: [stop - start] float32, of this rank's samples; not modified.
        keep_ratio, seed, epoch: as in `stprune.plan_epoch`.
    """
    return RULES[type(method)](owners, method, scores, keep_ratio, seed, epoch)


def _budget(owners: Owners, method: STPrune, scores: torch.Tensor, keep_ratio: float, seed: int, epoch: int) -> Kept:
    n = owners.num_samples
    count, minimum = asked_count(keep_ratio, n), keep_ratio / method.weight_cap
    probability, number = inclusion_budget(owners, scores, method.alpha, count, minimum)
    index = draw(owners, probability, number, seed, epoch)
    return index, probability[index].reciprocal()


def _threshold(owners: Owners, method: InfoBatch, scores: torch.Tensor, keep_ratio: float, seed: int, epoch: int) -> Kept:
    below = scores < torch.tensor(finite_mean(owners, scores), dtype=scores.dtype, device=scores.device)
    pool = below.nonzero().flatten()
    counts = [row[0] for row in owners.numbers(len(pool))]
    total, before = sum(counts), sum(counts[: owners.rank])
    # The head of the pool's random order: an entry of the pool is in it where its position is.
    position = order_positions(torch.arange(before, before + len(pool), device=pool.device), total, seed=seed, epoch=epoch)
    chosen = ~below
    chosen[pool[position < head_size(total, keep_ratio, seed, epoch)]] = True
    index = chosen.nonzero().flatten()
    weight = torch.tensor(keep_ratio, dtype=torch.float32, device=scores.device).reciprocal()
    return index, torch.where(below[index], weight, 1.0)


def _largest(owners: Owners, method: TopK, scores: torch.Tensor, keep_ratio: float, seed: int, epoch: int) -> Kept:
    unknown = int(owners.total((~torch.isfinite(scores)).sum().reshape(1)))
    index = select(owners, scores, max(asked_count(keep_ratio, owners.num_samples), unknown))
    return index, torch.ones(len(index), dtype=torch.float32, device=scores.device)


RULES: dict[type[Method], Callable[..., Kept]] = {STPrune: _budget, InfoBatch: _threshold, TopK: _largest}
"""Methods with a rule for scores that are spread over ranks."""


# --- parts of the rules ----------------------------------------------------------------------------------------------


def finite_mean(owners: Owners, scores: torch.Tensor) -> float:
    """The mean of all ranks' finite scores [own]; see stprune.ops.finite_mean. Two messages."""
    return _mean(owners, scores, owners.first_block, owners.num_samples)


def mean_weight(owners: Owners, weights: torch.Tensor, counts: list[int]) -> float:
    """The mean of all ranks' weights [k], of which every rank has `counts`; 1 where there are none."""
    return _mean(owners, *owners.whole_blocks(weights, counts), sum(counts)) if sum(counts) else 1.0


def _mean(owners: Owners, values: torch.Tensor, first: int, number: int) -> float:
    """The mean of the finite ones of `number` values, of which each rank has whole blocks, this one from block `first` on."""
    finite = torch.isfinite(values)
    total, counts = owners.sum_blocks(sums_where(values, finite), first, -(-number // BLOCK), int(finite.sum()))
    values = values[finite]
    ends = [float(values.min()) + 0.0, float(values.max()) + 0.0] if len(values) else [math.inf, -math.inf]
    everyone = owners.gather(torch.tensor(ends, dtype=torch.float64))
    least, largest, known = float(everyone[:, 0].min()), float(everyone[:, 1].max()), sum(row[0] for row in counts)
    return least if least == largest else total / known if known else math.nan


def inclusion_budget(
    owners: Owners, scores: torch.Tensor, alpha: float, count: int, minimum: float
) -> tuple[torch.Tensor, int]:
    """Probabilities [own] float32 of the budget rule, and what all ranks' add up to; see stprune.reference.budget."""
    scores, alpha, minimum = checked_budget("inclusion_budget", scores, alpha, minimum)
    size = sizes_of(scores, alpha)
    finite = size == size
    found = owners.numbers(int(finite.sum()), int((size > 0.0).sum()))
    known, positive = (sum(column) for column in zip(*found, strict=True))
    n = owners.num_samples
    wanted = wanted_of(known, n, float(count), minimum)
    scale, bound = _scale_of(owners, scores, size, alpha, count, minimum, wanted, known, positive)
    scaled = torch.where(size > 0.0, size * scale, 0.0).clamp(bound, 1.0)
    return torch.where(finite, scaled, 1.0).to(torch.float32), n - known + round(wanted)


def _scale_of(
    owners: Owners,
    scores: torch.Tensor,
    size: torch.Tensor,
    alpha: float,
    count: int,
    minimum: float,
    wanted: float,
    known: int,
    positive: int,
) -> tuple[float, float]:
    special = budget.special_scale(known, positive, wanted, minimum)
    if special is not None:
        return special
    n, finite = owners.num_samples, size == size
    blocks = -(-n // BLOCK)

    def everything(scale: float) -> Clipped:
        return _clipped(owners, size, owners.first_block, blocks, scale, minimum)

    def mean_start() -> float:
        return wanted / owners.sum_blocks(sums_where(size, finite), owners.first_block, blocks)[0]

    if n < budget.SAMPLED:
        return solve(everything, wanted, minimum, mean_start()), minimum
    sample = sizes_of(_sample(owners, scores), alpha)
    low, middle, high = brackets(sample, int((sample != sample).sum()), count, n, minimum)
    start = middle if 0.0 < middle < budget.LARGEST else mean_start()
    sure_high, sure_low, sure, aside = budget.split(size, low, high, minimum)
    numbers = (int(part.sum()) for part in (sure_low, sure_high, aside))
    total, found = owners.sum_blocks(sums_where(size, sure), owners.first_block, blocks, *numbers)
    num_low, num_high, num_aside = (sum(column) for column in zip(*found, strict=True))
    if num_aside <= n // budget.CROWDED:
        counts = [row[2] for row in found]
        candidates, first = owners.whole_blocks(size[aside], counts)

        def measure(scale: float) -> Clipped:
            one = _clipped(owners, candidates, first, -(-num_aside // BLOCK), scale, minimum)
            return Clipped(num_low + one.low, num_high + one.high, total + one.middle)

        if measure(low).total(low, minimum) <= wanted <= measure(high).total(high, minimum):
            return solve(measure, wanted, minimum, start, low, high), minimum
    return solve(everything, wanted, minimum, start), minimum


def _clipped(owners: Owners, size: torch.Tensor, first: int, num_blocks: int, scale: float, minimum: float) -> Clipped:
    """`Clipped` of all ranks' sizes; one message."""
    high, low, middle = budget.clip(size, scale, minimum)
    total, found = owners.sum_blocks(sums_where(size, middle), first, num_blocks, int(low.sum()), int(high.sum()))
    return Clipped(sum(row[0] for row in found), sum(row[1] for row in found), total)


def _sample(owners: Owners, scores: torch.Tensor) -> torch.Tensor:
    """The sample of all ranks' scores, the same on every rank; one message of 256 KB."""
    place = budget.sample_places(owners.num_samples, scores.device)
    mine = (place >= owners.start) & (place < owners.stop)
    # As bits, of which every other rank adds 0.
    bits = torch.zeros(len(place), dtype=torch.int32 if scores.dtype == torch.float32 else torch.int64, device=scores.device)
    bits[mine] = scores[place[mine] - owners.start].view(bits.dtype)
    return owners.total(bits).view(scores.dtype)


def draw(owners: Owners, probability: torch.Tensor, count: int, seed: int, epoch: int) -> torch.Tensor:
    """Systematic sampling of all ranks' probabilities [own]: what this rank keeps [k], ascending; see stprune.ops.draw."""
    q = fixed_point(probability)
    q, before = _spread(owners, q, count)
    order = systematic_order(len(q), seed, epoch, q.device, owners.first_block)
    offset = int(philox4x32((0, 0, epoch, SYSTEMATIC | OFFSET << 8), split_seed(seed))[0])
    q = q[order]
    # Only where the sum passes whole numbers counts: whole numbers are left out of what comes before, so that it fits.
    after = q.cumsum(0) + (before + offset) % ONE
    return order[(after >> 32) > ((after - q) >> 32)].sort().values


def _spread(owners: Owners, q: torch.Tensor, count: int) -> tuple[torch.Tensor, int]:
    """q [own] with the sum over all ranks made exactly count * 2^32, and the sum of the ranks before; as in one vector."""
    free = ((q > 0) & (q < ONE)).nonzero().flatten()
    totals = owners.numbers(int(q.sum()), len(free))
    rest = count * ONE - sum(total for total, _ in totals)
    sign, rest = (1, rest) if rest > 0 else (-1, -rest)
    q = q.clone()
    before = sum(total for total, _ in totals[: owners.rank])
    found = [[0, number] for _, number in totals]
    while rest > 0:
        number, first = sum(row[1] for row in found), sum(row[1] for row in found[: owners.rank])
        room = ONE - q[free] if sign > 0 else q[free]
        rank = torch.arange(first, first + len(free), dtype=torch.int64, device=q.device)
        give = torch.minimum(rest // number + (rank < rest % number).to(torch.int64), room)
        q[free] += sign * give
        free = free[room > give]
        found = owners.numbers(int(give.sum()), len(free))
        rest -= sum(row[0] for row in found)
        before += sign * sum(row[0] for row in found[: owners.rank])
    return q, before


def select(owners: Owners, scores: torch.Tensor, count: int) -> torch.Tensor:
    """Which of this rank's scores [own] float32 are among the `count` largest of all ranks', ascending; ties to the smaller id.

    The count-th key is found by three histograms of 2,048 bins, 16 KB each, that the ranks add up.
    """
    keys = _ordered(scores)
    chosen, left, prefix = torch.ones_like(keys, dtype=torch.bool), count, 0
    for shift, bits in ((21, 11), (10, 11), (0, 10)):
        digit = keys >> shift & (1 << bits) - 1
        histogram = owners.total(torch.bincount(digit[chosen], minlength=1 << bits))
        above = histogram.flip(0).cumsum(0)
        place = int((above < left).sum())  # bins from the top that lie wholly among the largest
        left -= int(above[place - 1]) if place else 0
        value = (1 << bits) - 1 - place
        prefix |= value << shift
        chosen &= digit == value
    ties = chosen.nonzero().flatten()
    before = sum(row[0] for row in owners.numbers(len(ties))[: owners.rank])
    largest = keys > prefix
    largest[ties[: max(0, left - before)]] = True
    return largest.nonzero().flatten()


def _ordered(scores: torch.Tensor) -> torch.Tensor:
    """Scores [n] float32 as int64 below 2^32 in the key order: NaN, +inf .. -inf, with -0 equal to +0."""
    bits = (scores + 0.0).view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    ordered = torch.where(bits >> 31 == 1, bits ^ 0xFFFFFFFF, bits | 1 << 31)
    return torch.where(scores.isnan(), 0xFFFFFFFF, ordered)
