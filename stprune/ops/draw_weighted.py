"""draw_weighted: weighted sampling without replacement, any number of items."""

from __future__ import annotations

import torch

from stprune.ops import _check, _unknown
from stprune.ops._out import deliver, empty
from stprune.ops._registry import define
from stprune.reference import draw_weighted as reference


def _fake(
    weights: torch.Tensor,
    k: int,
    seed: int,
    epoch: int,
    race: bool,
    out_indices: torch.Tensor | None,
    out_weights: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    sampled = empty(out_weights, weights, (0 if race else k,), torch.float32)
    return empty(out_indices, weights, (k,), torch.int64), sampled


def _check_values(weights: torch.Tensor, k: int) -> bool:
    """Whether a weight is +inf; raise ValueError unless all are at least 0 and k of them positive."""
    positive, unknown = _unknown.checked("draw_weighted", "be at least 0", weights)
    if k > positive:
        raise ValueError(
            f"draw_weighted: more samples asked than have weight: k must lie in [0, {positive}] (the positive weights), got {k}"
        )
    return unknown


def _reference(
    weights: torch.Tensor,
    k: int,
    seed: int,
    epoch: int,
    race: bool,
    out_indices: torch.Tensor | None,
    out_weights: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    """The reference; on the CPU it refuses bad weights, as the compiled kernel does there, which knows no +inf either."""
    if weights.device.type == "cpu" and _check_values(weights, k):
        raise RuntimeError("draw_weighted: weights must be finite")
    return deliver(reference.draw_weighted(weights, k, seed, epoch, race), out_indices, out_weights)


define(
    "draw_weighted(Tensor weights, SymInt k, int seed, int epoch, bool race, Tensor(a!)? out_indices, "
    "Tensor(b!)? out_weights) -> (Tensor, Tensor)",
    _reference,
    _fake,
)


def draw_weighted(
    weights: torch.Tensor,
    k: int,
    *,
    seed: int,
    epoch: int,
    law: str = "priority",
    out: tuple[torch.Tensor, torch.Tensor | None] | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """k items drawn without replacement, large weights first, and what each then counts for.

    Each item gets a key, a random number divided by its weight, and the k smallest keys are kept, ties by the smaller
    index. `law="priority"` uses u / w with u uniform: the key after the last kept, t, is a threshold that makes
    max(1, 1 / (t w)) an unbiased weight: for any values v, the sum over the kept of weight * v has the sum over all as its
    expectation. `law="race"` uses -log(u) / w, the order in which independent exponential clocks of rate w ring
    (successive sampling, torch.multinomial's law); its inclusion probabilities have no closed form, so it has no weights.

    A weight of +inf means that nothing is known of the item yet, as in `ScoreTable.scores`: such items come first, before any
    other, and count for 1. Where they are more than k, k of them are drawn uniformly and each counts for their number / k; the
    others have no chance then, and the weights estimate sums over the unknown items alone. Such a draw takes several times as
    long as one without unknown items.

    A function of (weights, k, seed, epoch, law), the same bits on every device and for any number of threads.

    Args:
        weights: [n] float32, not negative; items of weight 0 are never drawn; +inf: unknown; not modified. Only float32: other
            dtypes would need a rounding that could turn a weight into 0. Ratios matter, not the scale; outside
            [1e-36, 1e28] the float32 keys lose resolution.
        k: how many, in [0, number of positive weights].
        seed: in [0, 2^63).
        epoch: in [0, 2^32); another epoch is an independent draw.
        law: "priority" or "race".
        out: buffers for indices (int64) and weights (float32; None for the race), one-dimensional and contiguous, on the
            device of `weights`, with at least k elements; their fronts are overwritten.

    Returns:
        indices [k] int64, ascending; and weights [k] float32, at least 1 (all 1 when k is the number of positive weights),
        or None for the race. With `out`, views of its fronts, which the next call with the same buffers overwrites.

    Raises:
        TypeError: `weights` is no float32 tensor, an integer argument is none, or `out` has another dtype.
        ValueError: `weights` is not one-dimensional or holds NaN or a negative value; `k` exceeds the number of
            positive weights; an unknown `law`; `seed` or `epoch` is out of range; `out` is too small, not contiguous, on
            another device, or overlaps itself or `weights` (then nothing is written).

    Example:
        >>> import torch, stprune
        >>> indices, weights = stprune.draw_weighted(torch.tensor([0.0, 1.0, 1.0, 8.0]), 3, seed=0, epoch=0)
        >>> indices, weights
        (tensor([1, 2, 3]), tensor([1., 1., 1.]))
        >>> table = stprune.ScoreTable(100)
        >>> table.update(torch.arange(90), torch.rand(90))
        >>> indices, weights = stprune.draw_weighted(table.scores, 20, seed=0, epoch=0)
        >>> int((indices >= 90).sum()), float(weights[-1])
        (10, 1.0)

    Source:
        Duffield, Lund, Thorup: Priority sampling for estimation of arbitrary subset sums (J. ACM 54, 2007). Race:
        Efraimidis, Spirakis: Weighted random sampling with a reservoir (2006).
    """
    weights = _check.tensor("draw_weighted", "weights", weights).detach()
    if weights.dtype != torch.float32:
        raise TypeError(f"draw_weighted: weights must be float32, got {weights.dtype}")
    _check.vector("draw_weighted", "weights", weights)
    k = _check.integer("draw_weighted", "k", k, 0)
    seed, epoch = _check.seed_and_epoch("draw_weighted", seed, epoch)
    race = _check.choice("draw_weighted", "law", law, ("priority", "race")) == "race"
    buffers = (None, None) if out is None else _buffers(out, weights, k, race)
    weights = weights.contiguous()
    unknown = weights.device.type != "cpu" and _check_values(weights, k)
    if not unknown:
        try:
            indices, sample_weights = torch.ops.stprune.draw_weighted(weights, k, seed, epoch, race, *buffers)
        except RuntimeError:
            # The CPU's kernel checks the weights while it draws, which costs no pass. Only now is looked for what it refused.
            unknown = _check_values(weights, k)
            if not unknown:
                raise
    if unknown:
        known, number = _unknown.finite(weights)
        indices, sample_weights = torch.ops.stprune.draw_weighted(known, k, seed, epoch, race, *buffers)
        if not race:
            _unknown.weigh(sample_weights if buffers[1] is None else buffers[1], number, k)
    if buffers[0] is not None:
        return buffers[0], buffers[1]
    return indices, None if race else sample_weights


def _buffers(
    out: tuple[torch.Tensor, torch.Tensor | None], weights: torch.Tensor, k: int, race: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The fronts of the caller's buffers; None for the weights that a race does not have."""
    op = "draw_weighted"
    indices = _check.room(op, "out indices", _check.buffer(op, "out indices", out[0], torch.int64, weights), k)
    if race:
        return indices, None
    sample_weights = _check.room(op, "out weights", _check.buffer(op, "out weights", out[1], torch.float32, weights), k)
    _check.apart(op, "out weights", sample_weights, indices)
    return indices, sample_weights
