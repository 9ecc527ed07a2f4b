"""Owners: which rank owns which samples, and the few kinds of messages that ranks send each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed

from stprune.exchange import gathered, message_device, packed, unpacked
from stprune.reference.finite_stats import BLOCK


class Owners:
    """Contiguous ranges of whole blocks, one a rank; empty ones where there are more ranks than blocks.

    Every method but `of` is a collective. With one rank nothing is sent.

    Args:
        num_samples: of all ranks together.
        group: the torch.distributed group, or None for the default one.
        num_ranks, rank: how many ranks there are, and which this is.

    Attributes:
        start, stop: this rank's samples.
        first_block: number of the first block in it.
    """

    def __init__(self, num_samples: int, group: Any, *, num_ranks: int, rank: int) -> None:
        self.num_samples, self.group = num_samples, group
        self.num_ranks, self.rank = num_ranks, rank
        self.bounds = bounds_of(num_samples, num_ranks)
        self.start, self.stop = self.bounds[rank], self.bounds[rank + 1]
        self.first_block = self.start // BLOCK

    def of(self, index: torch.Tensor) -> torch.Tensor:
        """The ranks [K] that own samples [K]."""
        ends = torch.tensor(self.bounds[1:], device=index.device)
        return torch.searchsorted(ends, index.contiguous(), right=True)

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """Every rank's small vector [m], on the host: [num_ranks, m]. One message of 8 m bytes a rank."""
        values = values.cpu().contiguous()
        if self.num_ranks == 1:
            return values.unsqueeze(0)
        there = message_device(self.group, torch.device("cpu"))
        return gathered(values.to(there), self.num_ranks, self.group).cpu().view(self.num_ranks, -1)

    def numbers(self, *values: int) -> list[list[int]]:
        """Every rank's whole numbers, by rank."""
        found: list[list[int]] = self.gather(torch.tensor(values, dtype=torch.int64)).tolist()
        return found

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over ranks of an integer vector, in place; exact, so in any order."""
        if self.num_ranks == 1:
            return values
        there = values.to(message_device(self.group, values.device))
        distributed.all_reduce(there, group=self.group)
        return values.copy_(there)

    def route(self, target: torch.Tensor, columns: list[torch.Tensor]) -> list[torch.Tensor]:
        """Send each row of columns [K, ...] to its target rank [K]: one message of counts, one of rows.

        Returns:
            The columns of the rows that came here, by rank, and of each rank in the order in which it holds them.
        """
        if self.num_ranks == 1:
            return columns
        target, order = target.sort(stable=True)
        there = message_device(self.group, target.device)
        counts = torch.searchsorted(target, torch.arange(self.num_ranks + 1, device=target.device)).diff().to(there)
        coming = torch.empty_like(counts)
        distributed.all_to_all_single(coming, counts, group=self.group)
        takes, gives = coming.tolist(), counts.tolist()
        rows = packed([column[order] for column in columns]).to(there)
        come = rows.new_empty(sum(takes), rows.shape[1])
        distributed.all_to_all_single(come, rows, takes, gives, group=self.group)
        return unpacked(come.to(target.device), columns)

    # --- sums in a fixed order ---------------------------------------------------------------------------------------

    def sum_blocks(self, sums: torch.Tensor, first: int, num_blocks: int, *numbers: int) -> tuple[float, list[list[int]]]:
        """The sum of all ranks' blocks, added up as `tree_sum` does, and every rank's numbers beside it; one message.

        Args:
            sums: [m] float64, this rank's blocks, which follow one another.
            first: number of the first of them.
            num_blocks: of all ranks together.
            numbers: as many on every rank.
        """
        most = 2 * max(1, num_blocks).bit_length()
        nodes = own_nodes(sums, first, num_blocks)
        rows = torch.full((most, 3), -1.0, dtype=torch.float64)
        if nodes:
            rows[: len(nodes)] = torch.tensor(nodes, dtype=torch.float64)
        message = torch.cat([torch.tensor(numbers, dtype=torch.int64), rows.flatten().view(torch.int64)])
        everyone = self.gather(message)
        nodes_of_all = everyone[:, len(numbers) :].contiguous().view(torch.float64).reshape(-1, 3)
        return root_of(nodes_of_all.tolist(), num_blocks), everyone[:, : len(numbers)].tolist()

    def whole_blocks(self, values: torch.Tensor, counts: list[int]) -> tuple[torch.Tensor, int]:
        """Hand entries on so that each rank holds whole blocks of the ranks' vectors one after another.

        Args:
            values: [k], this rank's entries.
            counts: every rank's number of entries.

        Returns:
            Entries of this rank's blocks, and the number of the first one. A block is held where its first entry is.
        """
        before = sum(counts[: self.rank])
        target = torch.full((len(values),), self.rank, device=values.device)
        first = -(-before // BLOCK)
        head = min(first * BLOCK - before, len(values))
        if head:
            place = before // BLOCK * BLOCK  # where the block begins that these entries end
            holder, seen = -1, 0
            while seen <= place:
                holder += 1
                seen += counts[holder]
            target[:head] = holder
        return self.route(target, [values])[0], first


def bounds_of(num_samples: int, num_ranks: int) -> list[int]:
    """Where ranks' ranges begin and end: [num_ranks + 1], whole blocks, of numbers of blocks that differ by at most one."""
    blocks = -(-num_samples // BLOCK)
    return [min(num_samples, blocks * rank // num_ranks * BLOCK) for rank in range(num_ranks + 1)]


def own_nodes(sums: torch.Tensor, first: int, num_blocks: int) -> list[tuple[float, float, float]]:
    """The largest nodes of the tree over all blocks whose blocks are all here: level, number on the level, sum.

    At most two a level. Node i of a level adds nodes 2 i and 2 i + 1 of the level below; a last one without neighbour adds 0.

    Args:
        sums: [m] float64 sums of blocks first .. first + m.
        first: number of the first block.
        num_blocks: of the whole tree.
    """
    nodes = []
    level, low, high, whole = 0, first, first + len(sums), num_blocks
    while low < high:
        if low % 2 or whole == 1:
            nodes.append((float(level), float(low), float(sums[0])))
            low, sums = low + 1, sums[1:]
        if high % 2 and low < high:
            if high == whole:
                sums, high = torch.cat([sums, sums.new_zeros(1)]), high + 1
            else:
                nodes.append((float(level), float(high - 1), float(sums[-1])))
                high, sums = high - 1, sums[:-1]
        sums = sums[0::2] + sums[1::2]
        level, low, high, whole = level + 1, low // 2, high // 2, -(-whole // 2)
    return nodes


def root_of(nodes: list[list[float]], num_blocks: int) -> float:
    """The sum at the root, from all ranks' `own_nodes`; 0 where there is no block. Rows of -1 are none."""
    if num_blocks == 0:
        return 0.0
    levels: list[dict[int, float]] = [{} for _ in range(num_blocks.bit_length() + 1)]
    for level, number, value in nodes:
        if level >= 0:
            levels[int(level)][int(number)] = value
    whole, known = num_blocks, levels[0]
    for above in levels[1:]:
        if whole == 1:
            break
        for number, left in known.items():
            if number % 2 == 0:
                above[number // 2] = left + (known[number + 1] if number + 1 < whole else 0.0)
        whole, known = -(-whole // 2), above
    return known[0]
