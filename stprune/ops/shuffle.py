"""shuffle and permute: counter-based permutations."""

from __future__ import annotations

import torch

from stprune.ops import _check
from stprune.ops._out import deliver, empty
from stprune.ops._registry import define
from stprune.reference import random
from stprune.reference import shuffle as reference

SHUFFLE = random.SHUFFLE


def _permute_fake(out: torch.Tensor, n: int, start: int, seed: int, epoch: int, stream: int) -> None:
    return None


def _shuffle(indices: torch.Tensor, seed: int, epoch: int, out: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    return *deliver([reference.shuffle(indices, seed, epoch)], out), torch.tensor([indices.numel()])


def _shuffle_fake(indices: torch.Tensor, seed: int, epoch: int, out: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    return empty(out, indices, indices.shape, indices.dtype), torch.empty(1, dtype=torch.int64)


define(
    "permute(Tensor(a!) out, SymInt n, SymInt start, int seed, int epoch, int stream) -> ()",
    reference.permute,
    _permute_fake,
)


# Returns how many elements there are as well: torch 2.13 does not compile an op with one result and optional buffers.
define("shuffle(Tensor indices, int seed, int epoch, Tensor(a!)? out) -> (Tensor, Tensor)", _shuffle, _shuffle_fake)


def shuffle(indices: torch.Tensor, *, seed: int, epoch: int, out: torch.Tensor | None = None) -> torch.Tensor:
    """The given elements in a random order that is a function of (seed, epoch, number of elements) alone.

    Below 1,024 elements the order comes from sorting random 64-bit keys. From there on it is a six-round generalized
    Feistel network over Z_a x Z_b with cycle walking: perm(j) costs O(1) and nothing is stored. Of the n! orders at most
    2^95 can occur, one a pair of seed and epoch.

    Args:
        indices: [n] of any dtype, n at most 2^40; not modified.
        seed: in [0, 2^63).
        epoch: in [0, 2^32); another epoch is another order.
        out: buffer of the same dtype, one-dimensional and contiguous, on the device of `indices`, with at least n elements;
            its front is overwritten. Other memory than that of `indices`.

    Returns:
        [n] of the same dtype on the same device: out[j] = indices[perm(j)]. With `out`, a view of its front, which the
        next call with the same buffer overwrites.

    Raises:
        TypeError: `indices` is no tensor, `seed` or `epoch` no integer, or `out` of another dtype.
        ValueError: `indices` is not one-dimensional; `seed` or `epoch` is out of range; `out` is too small, not
            contiguous, on another device or overlaps `indices` (then nothing is written).

    Example:
        >>> import torch, stprune
        >>> order = stprune.shuffle(torch.arange(5), seed=0, epoch=0)
        >>> order.sort().values
        tensor([0, 1, 2, 3, 4])

    Source:
        Black, Rogaway: Ciphers with arbitrary finite domains (CT-RSA 2002).
    """
    indices = _check.vector("shuffle", "indices", _check.tensor("shuffle", "indices", indices)).detach()
    seed, epoch = _check.seed_and_epoch("shuffle", seed, epoch)
    if out is not None:
        out = _check.room("shuffle", "out", _check.buffer("shuffle", "out", out, indices.dtype, indices), indices.numel())
    shuffled, _ = torch.ops.stprune.shuffle(indices.contiguous(), seed, epoch, out)
    return shuffled if out is None else out


def permute(
    n: int,
    start: int = 0,
    stop: int | None = None,
    *,
    seed: int,
    epoch: int,
    stream: int = SHUFFLE,
    device: torch.device | str | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """perm(start) .. perm(stop - 1) of the permutation `shuffle` uses, with nothing stored: an epoch's order, lazily.

    Args:
        n: length of the permutation, at most 2^40.
        start: first position, in [0, n].
        stop: position after the last, in [start, n]; n when None.
        seed: in [0, 2^63).
        epoch: in [0, 2^32).
        stream: which use the order is for, in [0, 255]; different streams are independent.
        device: where the result goes; the CPU when None. Ignored when `out` is given.
        out: [stop - start] int64, contiguous; written and returned when given, so that nothing is allocated.

    Returns:
        [stop - start] int64, distinct values in [0, n).

    Raises:
        TypeError: an integer argument is none, or `out` is no int64 tensor.
        ValueError: an argument lies outside its range, or `out` has another size or is not contiguous.

    Example:
        >>> import torch
        >>> from stprune.ops import permute
        >>> whole = permute(2000, seed=0, epoch=0)
        >>> torch.equal(whole[500:600], permute(2000, 500, 600, seed=0, epoch=0))
        True

    Source:
        See `shuffle`.
    """
    n = _check.integer("permute", "n", n, 0, reference.LONGEST)
    start = _check.integer("permute", "start", start, 0, n)
    stop = n if stop is None else _check.integer("permute", "stop", stop, start, n)
    seed, epoch = _check.seed_and_epoch("permute", seed, epoch)
    stream = _check.integer("permute", "stream", stream, 0, 255)
    if out is None:
        out = torch.empty(stop - start, dtype=torch.int64, device=device)
    else:
        out = _check.index("permute", "out", out)
        if out.numel() != stop - start:
            raise ValueError(f"permute: out must have {stop - start} elements, got {out.numel()}")
        if not out.is_contiguous():
            raise ValueError(f"permute: out must be contiguous, got strides {out.stride()}")
    torch.ops.stprune.permute(out, n, start, seed, epoch, stream)
    return out


def permute_at(position: torch.Tensor, n: int, *, seed: int, epoch: int) -> torch.Tensor:
    """What `permute` holds at positions [...] int64 in [0, n), on their device; not modified.

    Example:
        >>> import torch
        >>> from stprune.ops import permute
        >>> from stprune.ops.shuffle import permute_at
        >>> whole = permute(2000, seed=1, epoch=2)
        >>> torch.equal(whole[[7, 1900]], permute_at(torch.tensor([7, 1900]), 2000, seed=1, epoch=2))
        True

    Source:
        See `shuffle`.
    """
    block = torch.zeros((), dtype=torch.int64, device=position.device)
    return reference.permutation_at(position, n, seed, epoch, SHUFFLE, block)
