"""Reference of the counter-based permutation: perm(j) from (seed, epoch, stream, j) alone, nothing stored."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from stprune.reference.random import MASK_32, ROUND_KEYS, SHUFFLE, SMALL_KEYS, philox4x32, split_seed

# Below this length every permutation is made by sorting random 64-bit keys (exactly uniform but for ties of keys, 1 in
# 2^44). A Feistel network over halves of fewer than 32 values is too small a domain for its rounds to look random.
SMALL = 1024
LONGEST = 1 << 40
ROUNDS = 6


def round_keys(seed: int, epoch: int, stream: int, block: torch.Tensor) -> torch.Tensor:
    """Two 32-bit keys a round for the permutation of every block: [..., 2 * ROUNDS] int64."""
    counter = torch.arange(-(-2 * ROUNDS // 4), dtype=torch.int64, device=block.device)
    four = philox4x32((counter, block.unsqueeze(-1), epoch, stream | ROUND_KEYS << 8), split_seed(seed), block.device)
    return torch.stack(four, -1).flatten(-2)[..., : 2 * ROUNDS]


def _mix(half: torch.Tensor, key_a: torch.Tensor, key_b: torch.Tensor) -> torch.Tensor:
    """32 random-looking bits of a half: the high ones depend on all of it, and only those are used."""
    x = half ^ key_a
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & MASK_32
    x = x ^ (x >> 15)
    x = (x + key_b) & MASK_32
    return (x * 0x846CA68B) & MASK_32


def feistel(x: torch.Tensor, n: int, keys: torch.Tensor) -> torch.Tensor:
    """One bijection of Z_a x Z_b, a * b >= n, by alternating additions to the halves.

    Args:
        x: [...] int64 in [0, a * b).
        n: length of the permutation.
        keys: [..., 2 * ROUNDS], broadcast against x.

    Returns:
        [...] int64 in [0, a * b).

    Source:
        Black, Rogaway: Ciphers with arbitrary finite domains (CT-RSA 2002), section 5 (generalized Feistel).
    """
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    left, right = x // b, x % b
    for r in range(ROUNDS):
        key_a, key_b = keys[..., 2 * r], keys[..., 2 * r + 1]
        if r % 2 == 0:
            left = left + ((_mix(right, key_a, key_b) * a) >> 32)
            left = torch.where(left >= a, left - a, left)
        else:
            right = right + ((_mix(left, key_a, key_b) * b) >> 32)
            right = torch.where(right >= b, right - b, right)
    return left * b + right


def permutation_at(position: torch.Tensor, n: int, seed: int, epoch: int, stream: int, block: torch.Tensor) -> torch.Tensor:
    """perm(position) of the permutation of [0, n) that (seed, epoch, stream, block) names.

    Args:
        position: [...] int64 in [0, n).
        n: length, at most 2^40.
        seed: 63-bit seed.
        epoch: 32-bit epoch.
        stream: which use it is for.
        block: int64 number of the permutation, below 2^32; broadcast against position when n >= SMALL, else one.

    Returns:
        [...] int64 in [0, n), distinct for distinct positions.
    """
    if n < SMALL:
        index = torch.arange(n, dtype=torch.int64, device=position.device)
        low, high, _, _ = philox4x32((index, block, epoch, stream | SMALL_KEYS << 8), split_seed(seed), position.device)
        return torch.sort(high << 32 | low, stable=True).indices[position]
    keys = round_keys(seed, epoch, stream, block)
    return _walked(feistel, position, n, keys)


def _walked(network: Callable[..., torch.Tensor], x: torch.Tensor, n: int, keys: torch.Tensor) -> torch.Tensor:
    """Cycle walking: what `network` maps outside [0, n) is mapped again until it falls inside; a bijection of [0, n)."""
    image = network(x, n, keys)
    outside = image >= n
    while bool(outside.any()):
        image = torch.where(outside, network(image, n, keys), image)
        outside = image >= n
    return image


def permute(out: torch.Tensor, n: int, start: int, seed: int, epoch: int, stream: int) -> None:
    """Write perm(start), perm(start + 1), ... into `out` [count] int64."""
    if out.numel() == 0:
        return
    position = torch.arange(start, start + out.numel(), dtype=torch.int64, device=out.device)
    block = torch.zeros((), dtype=torch.int64, device=out.device)
    out.copy_(permutation_at(position, n, seed, epoch, stream, block))


def shuffle(indices: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
    """`indices` in the order of the permutation: out[j] = indices[perm(j)]."""
    order = torch.empty(indices.numel(), dtype=torch.int64, device=indices.device)
    permute(order, indices.numel(), 0, seed, epoch, SHUFFLE)
    return indices[order]


def feistel_back(image: torch.Tensor, n: int, keys: torch.Tensor) -> torch.Tensor:
    """The x [...] that `feistel` takes to `image` [...]."""
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    left, right = image // b, image % b
    for r in reversed(range(ROUNDS)):
        key_a, key_b = keys[..., 2 * r], keys[..., 2 * r + 1]
        if r % 2 == 0:
            left = (left - ((_mix(right, key_a, key_b) * a) >> 32)) % a
        else:
            right = (right - ((_mix(left, key_a, key_b) * b) >> 32)) % b
    return left * b + right


def order_positions(index: torch.Tensor, n: int, seed: int, epoch: int, stream: int) -> torch.Tensor:
    """The positions [B] that hold the ids [B]: perm(position) = id."""
    block = torch.zeros((), dtype=torch.int64, device=index.device)
    if n < SMALL:
        order = permutation_at(torch.arange(n, device=index.device), n, seed, epoch, stream, block)
        return torch.empty_like(order).scatter_(0, order, torch.arange(n, device=index.device))[index]
    keys = round_keys(seed, epoch, stream, block)
    return _walked(feistel_back, index, n, keys)
