"""draw: a sample with given inclusion probabilities."""

from __future__ import annotations

import torch

from stprune.ops import _check
from stprune.ops._out import deliver
from stprune.ops._range import in_range
from stprune.ops._registry import define
from stprune.reference import draw as reference

# The sum of 2^30 fixed-point probabilities of 32 bits still fits into int64.
_MOST = 1 << 30


def _fake(
    probability: torch.Tensor, count: int | None, seed: int, epoch: int, out: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    size = 0 if out is not None else torch.library.get_ctx().new_dynamic_size() if count is None else count
    return probability.new_empty((size,), dtype=torch.int64), torch.empty(1, dtype=torch.int64)


def _range(probability: torch.Tensor, *, total: bool) -> int:
    """The sum in units of 2^-32 if `total`; raise ValueError where a probability does not lie in [0, 1]."""
    return in_range("draw", "probability", "lie in [0, 1]", probability, 1.0, total=total)[1]


def _reference(
    probability: torch.Tensor, count: int | None, seed: int, epoch: int, out: torch.Tensor | None
) -> tuple[torch.Tensor, ...]:
    """The reference; on the CPU it refuses bad probabilities where the compiled kernel does."""
    if count is None and probability.device.type == "cpu":
        _range(probability, total=False)
    drawn = reference.draw(probability, count, seed, epoch)
    return *deliver([drawn], out), torch.tensor([drawn.numel()])


define("draw(Tensor probability, SymInt? count, int seed, int epoch, Tensor(a!)? out) -> (Tensor, Tensor)", _reference, _fake)


def draw(
    probability: torch.Tensor, *, seed: int, epoch: int, count: int | None = None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Indices drawn with given inclusion probabilities.

    Without `count` every index is drawn on its own (Bernoulli), and the number drawn varies. With `count` the draw is
    systematic: exactly that many indices, each still with exactly its probability (to 2^-32). The running sum of the
    probabilities meets the items block by block (4,096 consecutive indices), inside a block in a random order, and keeps
    whoever carries it over the next whole number, counted from a random start. So every stretch of time keeps its share
    of the sample, no daily or weekly period can resonate with the steps, and the work splits over threads.

    The result is a function of (probability, seed, epoch, count) on every device and for any number of threads; no
    global generator is read or written.

    Args:
        probability: [n] float32 or float64 in [0, 1]; 0 is never and 1 always drawn; not modified.
        seed: in [0, 2^63).
        epoch: in [0, 2^32); another epoch is an independent draw.
        count: how many, the sum of `probability` to within 0.5, in [0, n]; what rounding leaves is spread over the items
            that are neither 0 nor 1. n is at most 2^30 then.
        out: int64 buffer, one-dimensional and contiguous, on the device of `probability`; its front is overwritten. n
            elements are always enough, `count` are with `count`.

    Returns:
        [number drawn] int64, ascending, on the device of `probability`: with `out`, a view of its front, which the next
        call with the same buffer overwrites.

    Raises:
        TypeError: `probability` is neither float32 nor float64, an integer argument is none, or `out` is no int64 tensor.
        ValueError: `probability` is not one-dimensional or holds NaN or a value outside [0, 1]; `count` lies outside
            [0, n] or further than 0.5 from the sum; `seed` or `epoch` is out of range; `out` is too small, not
            contiguous, on another device or overlaps `probability` (then nothing is written).

    Example:
        >>> import torch, stprune
        >>> p = torch.tensor([1.0, 0.5, 0.0, 0.5])
        >>> kept = stprune.draw(p, seed=0, epoch=3, count=2)
        >>> len(kept), 0 in kept, 2 in kept
        (2, True, False)

    Source:
        Madow: On the theory of systematic sampling, II (1949), with a random order inside blocks (our
        definition). The fixed point is round(p * 2^32), half to even.
    """
    probability = _check.tensor("draw", "probability", probability).detach()
    if probability.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"draw: probability must be float32 or float64, got {probability.dtype}")
    _check.vector("draw", "probability", probability)
    seed, epoch = _check.seed_and_epoch("draw", seed, epoch)
    n = probability.numel()
    if count is not None:
        count = _check.integer("draw", "count", count, 0, n)
        if n > _MOST:
            raise ValueError(f"draw: probability must have at most 2^30 elements when count is given, got {n}")
    if out is not None:
        out = _check.buffer("draw", "out", out, torch.int64, probability)
    probability = probability.contiguous()
    # Without a count the CPU's kernel looks at the probabilities while it draws.
    if count is not None or probability.device.type != "cpu":
        units = _range(probability, total=count is not None)
        # 0.5, and half a unit of rounding for each item.
        if count is not None and abs(units - (count << 32)) > (1 << 31) + n // 2 + 1:
            raise ValueError(
                f"draw: count must be the sum of probability to within 0.5, got {count} for a sum of {units / 2**32:g}"
            )
    try:
        drawn, size = torch.ops.stprune.draw(probability, count, seed, epoch, out)
    except RuntimeError:
        # What is wrong with them is only then looked for.
        _range(probability, total=False)
        raise
    return drawn if out is None else _check.room("draw", "out", out, int(size))
