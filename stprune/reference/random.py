"""Reference of the counter-based random numbers every draw of this package uses.

Philox4x32-10: a number is a function of (seed, epoch, stream, index) alone, so it is the same on every device, for any
thread count, rank, batch or order of evaluation, and no generator state exists that could be read or written.
"""

from __future__ import annotations

import torch

MASK_32 = 0xFFFFFFFF

# Streams: the low 8 bits of the fourth counter word. One per use, so that no two ops share a random number.
DRAW = 0
WEIGHTED = 1
SHUFFLE = 2
SYSTEMATIC = 3
NODES = 4

# Purposes: the other 24 bits of that word (NODES keeps its high window bits there instead). 0 is "one word an index".
SMALL_KEYS = 1
ROUND_KEYS = 2
OFFSET = 3

_BLOCK = 64
# Counters evaluated at a time: bounds the int64 temporaries to some 10 MB.
_COUNTERS_AT_ONCE = 1 << 16


def _multiply(constant: int, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of a 32 x 32 bit product; int64 wraps, and the masks take what is right of it."""
    product = value * constant
    return (product >> 32) & MASK_32, product & MASK_32


def philox4x32(
    counter: tuple[torch.Tensor | int, torch.Tensor | int, torch.Tensor | int, torch.Tensor | int],
    key: tuple[int, int],
    device: torch.device | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ten rounds of Philox4x32.

    Args:
        counter: four words below 2^32 as int64 tensors (broadcast against each other) or ints.
        key: two words below 2^32.
        device: where ints are put; that of the tensors.

    Returns:
        Four int64 tensors of words below 2^32.

    Source:
        Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3 (SC 2011), section 3.3.
    """
    words = [torch.as_tensor(word, dtype=torch.int64, device=device) for word in counter]
    c0, c1, c2, c3 = torch.broadcast_tensors(*words)
    k0, k1 = key
    for _ in range(10):
        high_0, low_0 = _multiply(0xD2511F53, c0)
        high_1, low_1 = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0 = (k0 + 0x9E3779B9) & MASK_32
        k1 = (k1 + 0xBB67AE85) & MASK_32
    return c0, c1, c2, c3


def split_seed(seed: int) -> tuple[int, int]:
    """The Philox key of a seed: its low and its high 32 bits."""
    return seed & MASK_32, (seed >> 32) & MASK_32


def words(
    count: int, *, seed: int, epoch: int, stream: int, start: int = 0, device: torch.device | None = None
) -> torch.Tensor:
    """The words of the indices start .. start + count.

    Index i takes word (i >> 4) & 3 of counter 16 * (i >> 6) + (i & 15): sixteen SIMD lanes fill 64 consecutive indices
    without a transpose.

    Args:
        count: how many.
        seed: 63-bit seed.
        epoch: 32-bit epoch.
        stream: which use the words are for.
        start: the first index, a multiple of 64.
        device: where the result goes.

    Returns:
        [count] int64, each in [0, 2^32).
    """
    first = 16 * (start // _BLOCK)
    counters = 16 * -(-count // _BLOCK)
    parts = []
    for begin in range(0, counters, _COUNTERS_AT_ONCE):
        c = torch.arange(first + begin, first + min(begin + _COUNTERS_AT_ONCE, counters), dtype=torch.int64, device=device)
        four = philox4x32((c & MASK_32, c >> 32, epoch, stream), split_seed(seed), device)
        parts.append(torch.stack(four).view(4, -1, 16).transpose(0, 1).reshape(-1))
    if not parts:
        return torch.empty(0, dtype=torch.int64, device=device)
    return torch.cat(parts)[:count]


def words_at(index: torch.Tensor, *, seed: int, epoch: int, stream: int) -> torch.Tensor:
    """The words of arbitrary indices [...] int64: what `words` holds at those places."""
    c = 16 * (index >> 6) + (index & 15)
    four = torch.stack(philox4x32((c & MASK_32, c >> 32, epoch, stream), split_seed(seed), index.device))
    return four.gather(0, ((index >> 4) & 3).unsqueeze(0)).squeeze(0)
