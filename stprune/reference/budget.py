"""Reference of the budget rule (eq. 7): the constant c of clip(c * size, minimum, 1), found without sorting.

One pass over the scores with a bracket of c from a sample: outside the bracket's reach a size is certainly clipped or
certainly not, and only counts and one sum are needed of those; the few sizes that could go either way are set aside, and c
is found among them by Newton's method on the piecewise linear sum. The compiled kernel does the same steps in the same
order, so that c has the same bits.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

import torch

from stprune.reference.finite_stats import blocked_sum
from stprune.reference.random import words

# Fewer scores than this are solved without a sample.
SAMPLED = 1 << 17
SAMPLE = 1 << 16
# Philox stream of the sample's positions. It carries no seed: the sample changes the time, not the result's law.
STREAM = 15
# More candidates than n / CROWDED are not set aside: every step then reads all scores.
CROWDED = 4
# Relative tolerance of the sum, well above the rounding of the sums (2^-45) and far below that of float32 (2^-24).
TOLERANCE = 2.0**-44
MAX_STEPS = 200
LARGEST = 1.7976931348623157e308


@dataclass(frozen=True)
class Clipped:
    """How sizes fall at a constant c: how many are clipped at `minimum`, how many at 1, and the sum of the others."""

    low: int
    high: int
    middle: float

    def total(self, scale: float, minimum: float) -> float:
        """Sum of the probabilities."""
        return minimum * self.low + (scale * self.middle + self.high)


def sizes_of(scores: torch.Tensor, alpha: float) -> torch.Tensor:
    """max(score, 0) to the power alpha (0, 0.5 or 1), float64 [n]; NaN where the score is not finite."""
    finite = torch.isfinite(scores)
    size = torch.where(scores > 0, scores, 0.0)
    if alpha == 0.5:
        # Rounded once: torch's own float32 root is off by an ulp at times, and a float64 root is too close to be rounded wrong.
        size = size.double().sqrt().to(size.dtype)
    elif alpha == 0.0:
        size = torch.ones_like(size)
    return torch.where(finite, size, torch.nan).double()


def _bits(value: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def _double(bits: int) -> float:
    return float(struct.unpack("<d", struct.pack("<q", bits))[0])


def clip(size: torch.Tensor, scale: float, minimum: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where scale * size [n] is clipped at 1, where at `minimum`, and where not at all; NaN is nowhere."""
    scaled = size * scale
    high = scaled >= 1.0
    return high, (scaled <= minimum) & ~high, (scaled > minimum) & (scaled < 1.0)


def split(size: torch.Tensor, low: float, high: float, minimum: float) -> tuple[torch.Tensor, ...]:
    """Sizes [n] that every constant in [low, high] clips at 1, at `minimum`, not at all, and those that it depends on."""
    sure_high = size * low >= 1.0
    sure_low = (size * high <= minimum) & ~sure_high
    sure = (size * low > minimum) & (size * high < 1.0)
    return sure_high, sure_low, sure, (size == size) & ~sure_high & ~sure_low & ~sure


def clipped(size: torch.Tensor, scale: float, minimum: float) -> Clipped:
    """`Clipped` of sizes [n] float64; NaN counts nowhere."""
    high, low, middle = clip(size, scale, minimum)
    return Clipped(int(low.sum()), int(high.sum()), float(blocked_sum(size, middle)))


def solve(
    measure: Callable[[float], Clipped], wanted: float, minimum: float, start: float, low: float = 0.0, high: float = LARGEST
) -> float:
    """c in [low, high] with measure(c).total(c) = wanted, where the total at `low` is no larger and at `high` no smaller.

    Newton's method, kept inside the shrinking bracket; every fourth step after the eighth halves the bracket in the order of
    the doubles, so that at most some 250 steps are possible and four are usual.
    """
    scale = min(max(start, low), high)
    for step in range(MAX_STEPS):
        found = measure(scale)
        total = found.total(scale, minimum)
        if abs(total - wanted) <= TOLERANCE * wanted:
            return scale
        if total < wanted:
            low = scale
        else:
            high = scale
        better = (wanted - found.high - minimum * found.low) / found.middle if found.middle > 0.0 else math.nan
        if better == scale:
            return scale
        if not (low < better < high) or (step >= 8 and step % 4 == 0):
            better = _double((_bits(low) + _bits(high)) // 2)
            if not (low < better < high):
                return scale
        scale = better
    return scale


def sample_places(n: int, device: torch.device) -> torch.Tensor:
    """Where the sample of n scores is taken: [SAMPLE] random places, with repetition."""
    return words(SAMPLE, seed=0, epoch=0, stream=STREAM, device=device) * (n >> 8) >> 24


def sample_scale(size: torch.Tensor, wanted: float, minimum: float, start: float) -> float:
    """`solve` on a sample's sizes; 0 or the largest double where no constant reaches the sum."""
    known, positive = int((size == size).sum()), int((size > 0.0).sum())
    if wanted <= minimum * known:
        return 0.0
    if wanted >= positive + minimum * (known - positive):
        return LARGEST
    return solve(lambda scale: clipped(size, scale, minimum), wanted, minimum, start)


def brackets(size: torch.Tensor, unknown: int, count: float, n: int, minimum: float) -> tuple[float, float, float]:
    """Constants that most likely enclose c, and one between them, from a sample's sizes."""
    share = SAMPLE / n
    target = count * share - unknown
    ratio = min(max(count / n, 0.0), 1.0)
    # Three standard deviations of the most unequal probabilities with this mean; of usual ones, seven.
    width = 3.0 * math.sqrt(ratio * (1.0 - ratio) * SAMPLE) + 1.0
    middle = sample_scale(size, target, minimum, 1.0)
    return (
        sample_scale(size, target - width, minimum, middle),
        middle,
        sample_scale(size, target + width, minimum, middle),
    )


def wanted_of(known: int, n: int, count: float, minimum: float) -> float:
    """What samples that are certain leave over of `count`; at least the least that is possible, rounded up to whole samples."""
    wanted = count - (n - known)
    if wanted < minimum * known:
        wanted = float(math.ceil(minimum * known))
    return min(wanted, float(known))


def num_kept(scores: torch.Tensor, count: int, minimum: float) -> int:
    """What the probabilities of scores [n] add up to: `count`, or more where the certain samples alone are more."""
    n = scores.numel()
    known = int(torch.isfinite(scores).sum())
    return n - known + round(wanted_of(known, n, float(count), minimum))


def special_scale(known: int, positive: int, wanted: float, minimum: float) -> tuple[float, float] | None:
    """The constant and the lower bound where no sum decides them; None where one does."""
    if positive == 0:
        return 0.0, wanted / known if known else 1.0
    if positive + minimum * (known - positive) <= wanted:
        # Every positive size is certain, and the zeros share what is left evenly.
        # A minimum so small that the comparison rounds it away still bounds them.
        return math.inf, min(max((wanted - positive) / (known - positive), minimum), 1.0) if positive < known else 1.0
    return (0.0, minimum) if wanted <= minimum * known else None


def scale_of(scores: torch.Tensor, alpha: float, count: float, minimum: float) -> tuple[float, float]:
    """The constant c of the finite scores, and the lower bound to clip at."""
    n = scores.numel()
    size = sizes_of(scores, alpha)
    finite = size == size
    known, positive = int(finite.sum()), int((size > 0.0).sum())
    wanted = wanted_of(known, n, count, minimum)
    special = special_scale(known, positive, wanted, minimum)
    if special is not None:
        return special

    def everything(scale: float) -> Clipped:
        return clipped(size, scale, minimum)

    if n < SAMPLED:
        return solve(everything, wanted, minimum, wanted / float(blocked_sum(size, finite))), minimum
    sample = sizes_of(scores[sample_places(n, scores.device)], alpha)
    low, middle, high = brackets(sample, int((sample != sample).sum()), count, n, minimum)
    start = middle if 0.0 < middle < LARGEST else wanted / float(blocked_sum(size, finite))
    sure_high, sure_low, sure, aside = split(size, low, high, minimum)
    if int(aside.sum()) <= n // CROWDED:
        base = Clipped(int(sure_low.sum()), int(sure_high.sum()), float(blocked_sum(size, sure)))
        candidates = size[aside]

        def measure(scale: float) -> Clipped:
            found = clipped(candidates, scale, minimum)
            return Clipped(base.low + found.low, base.high + found.high, base.middle + found.middle)

        if measure(low).total(low, minimum) <= wanted <= measure(high).total(high, minimum):
            return solve(measure, wanted, minimum, start, low, high), minimum
    return solve(everything, wanted, minimum, start), minimum


def inclusion_budget(scores: torch.Tensor, alpha: float, count: float, minimum: float) -> torch.Tensor:
    """Probabilities [n] float32; see stprune.ops.budget."""
    scale, bound = scale_of(scores, alpha, count, minimum)
    size = sizes_of(scores, alpha)
    scaled = torch.where(size > 0.0, size * scale, 0.0).clamp(bound, 1.0)
    return torch.where(size == size, scaled, 1.0).to(torch.float32)
