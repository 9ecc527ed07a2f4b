"""Reference of draws with given inclusion probabilities: Bernoulli, and systematic sampling with an exact count."""

from __future__ import annotations

import torch

from stprune.reference.random import DRAW, OFFSET, SYSTEMATIC, philox4x32, split_seed, words
from stprune.reference.shuffle import permutation_at

ONE = 1 << 32
# Items that are put in random order together. The order of everything else is that of the indices.
BLOCK = 4096


def fixed_point(probability: torch.Tensor) -> torch.Tensor:
    """round(p * 2^32), half to even, as int64 in [0, 2^32]."""
    return (probability.double() * ONE).round().to(torch.int64)


def spread(q: torch.Tensor, count: int) -> torch.Tensor:
    """q [n] with its sum made exactly count * 2^32, by the least change any item can tell.

    Rounding leaves a difference D of a few units of 2^-32 (up to half an item when the probabilities sum to that much more
    or less than count). The items with 0 < q < 2^32 share it in rounds: with f items left and rank r among them, each takes
    D // f, the first D % f one unit more, but never leaves [0, 2^32]; who has reached that bound drops out. With
    |D| <= 2^31 there always is room enough, and a round that does not finish drops at least one item, so it ends.
    """
    rest = count * ONE - int(q.sum())
    free = ((q > 0) & (q < ONE)).nonzero().flatten()
    q = q.clone()
    sign = 1 if rest > 0 else -1
    rest = abs(rest)
    while rest > 0:
        room = ONE - q[free] if sign > 0 else q[free]
        rank = torch.arange(free.numel(), dtype=torch.int64, device=q.device)
        give = torch.minimum(rest // free.numel() + (rank < rest % free.numel()).to(torch.int64), room)
        q[free] += sign * give
        rest -= int(give.sum())
        free = free[room > give]
    return q


def systematic_order(n: int, seed: int, epoch: int, device: torch.device, first: int = 0) -> torch.Tensor:
    """The order in which the running sum meets n items: blocks in their order, inside a block a random one.

    With `first` the items are those from block `first` on of a longer vector, and counted from there.
    """
    full = n // BLOCK
    block = torch.arange(full, dtype=torch.int64, device=device).unsqueeze(1)
    position = torch.arange(BLOCK, dtype=torch.int64, device=device).unsqueeze(0)
    parts = []
    if full:
        inside = permutation_at(position.expand(full, -1), BLOCK, seed, epoch, SYSTEMATIC, block + first)
        parts.append((inside + block * BLOCK).flatten())
    if n > full * BLOCK:
        rest = n - full * BLOCK
        inside = permutation_at(position[0, :rest], rest, seed, epoch, SYSTEMATIC, torch.tensor(full + first, device=device))
        parts.append(inside + full * BLOCK)
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=device)


def draw(probability: torch.Tensor, count: int | None, seed: int, epoch: int) -> torch.Tensor:
    """The drawn indices, ascending: independently when count is None, else exactly count of them."""
    n, device = probability.numel(), probability.device
    if count is None:
        word = words(n, seed=seed, epoch=epoch, stream=DRAW, device=device)
        return (word.double() < probability.double() * ONE).nonzero().flatten()
    order = systematic_order(n, seed, epoch, device)
    q = spread(fixed_point(probability), count)[order]
    offset = philox4x32((0, 0, epoch, SYSTEMATIC | OFFSET << 8), split_seed(seed), device)[0]
    after = q.cumsum(0) + offset
    return order[(after >> 32) > ((after - q) >> 32)].sort().values
