"""Which of several processes this is, and with whom it exchanges scores."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import distributed

from stprune.exchange import message_device
from stprune.ops import _check

ALONE = "none"
"""`process_group` of ranks that keep their scores to themselves."""


class Ranks:
    """The ranks of a run. Settled when the first plan is made: torch.distributed may begin after the sampler is built.

    Args:
        op: whose errors these are.
        num_replicas: number of ranks; None is that of the process group, 1 without one.
        rank: this process's rank; None is that in the process group, 0 without one.
        process_group: the torch.distributed group whose ranks exchange scores; None is the default group, "none" nobody.

    Raises:
        TypeError, ValueError: an argument breaks its rule.
    """

    def __init__(self, op: str, num_replicas: int | None, rank: int | None, process_group: Any) -> None:
        self._op = op
        if isinstance(process_group, str) and process_group != ALONE:
            raise ValueError(f"{op}: process_group must be a process group, None or {ALONE!r}, got {process_group!r}")
        self._asked = (
            None if num_replicas is None else _check.integer(op, "num_replicas", num_replicas, 1),
            None if rank is None else _check.integer(op, "rank", rank, 0, None if num_replicas is None else num_replicas - 1),
        )
        if process_group is not None and process_group != ALONE and not isinstance(process_group, _group_type()):
            raise TypeError(f"{op}: process_group must be a process group, None or {ALONE!r}, got {process_group!r}")
        self.group = process_group
        self._settled: tuple[int, int] | None = None
        self._forgotten = torch.empty(0, dtype=torch.int64)  # distinct ids, since the ranks last agreed

    @property
    def _world(self) -> int:
        """Ranks that exchange scores; 1 where nobody does."""
        if self.group == ALONE or not (distributed.is_available() and distributed.is_initialized()):
            return 1
        return distributed.get_world_size(self.group)

    @property
    def both(self) -> tuple[int, int]:
        """How many ranks there are and which this is; as long as it is not settled, what it would be now."""
        if self._settled is not None:
            return self._settled
        num_replicas, rank = self._asked
        num_replicas = self._world if num_replicas is None else num_replicas
        if rank is None:
            rank = distributed.get_rank(self.group) if self._world > 1 and num_replicas > 1 else 0
        return num_replicas, _check.integer(self._op, "rank", rank, 0, num_replicas - 1)

    def settle(self, *, needs_scores: bool) -> None:
        """Decide, once, how many ranks there are and which this is.

        Args:
            needs_scores: ranks must know each other's scores, or their plans differ.

        Raises:
            RuntimeError: there are several ranks, and their scores cannot be exchanged.
        """
        if self._settled is not None:
            return
        num_replicas, rank = self.both
        world = self._world
        if needs_scores and num_replicas != world and self.group != ALONE:
            group = f"the process group has {world} ranks" if world > 1 else "there is no process group of several ranks"
            raise RuntimeError(
                f"{self._op}: process_group must be the group whose {num_replicas} ranks train on shares of the data and "
                f"exchange scores (num_replicas = {num_replicas}, but {group}). Call torch.distributed.init_process_group "
                f'before the first plan, pass process_group=, or process_group="{ALONE}" where every rank shall keep its '
                "scores to itself"
            )
        self._settled = num_replicas, rank

    @property
    def exchange(self) -> bool:
        """Whether scores are exchanged."""
        return self.both[0] > 1 and self._world == self.both[0]

    def forgot(self, index: torch.Tensor) -> None:
        """Remember ids [B] int64 that this rank has made unknown, as `agree` asks whether all ranks did."""
        if self.exchange:
            self._forgotten = torch.cat([self._forgotten, index.cpu()]).unique()

    def of_first(self, value: int) -> int:
        """The value >= 0 that the first rank has; a collective where scores are exchanged, else one's own."""
        if not self.exchange:
            return value
        own = value if self.both[1] == 0 else 0
        found = torch.tensor([own], device=message_device(self.group, torch.device("cpu")))
        distributed.all_reduce(found, op=distributed.ReduceOp.MAX, group=self.group)
        return int(found)

    def agree(self, settings: dict[str, Any], fault: str = "") -> None:
        """Refuse, on every rank, ranks whose settings differ, or what is wrong on one; a collective where scores are exchanged.

        One message of 16 bytes tells whether all are equal. Only where they are not, the settings themselves travel, as
        objects: with NCCL torch sends these through this process's current GPU (`torch.cuda.set_device`).

        Args:
            settings: names and values.
            fault: what must be raised on this rank, or "".

        Raises:
            ValueError: a setting differs; the message names it, and the ranks and values. Or the fault of a rank.
        """
        if not self.exchange:
            if fault:
                raise ValueError(fault)
            return
        forgotten, self._forgotten = self._forgotten, self._forgotten[:0]
        ids = hashlib.sha256(forgotten.numpy().tobytes()).hexdigest()[:8]
        settings = settings | {"forgotten": f"{len(forgotten)} samples (digest of ids {ids})", "fault": fault}
        digest = int.from_bytes(hashlib.sha256(repr(settings).encode()).digest()[:7], "little")
        bounds = torch.tensor([digest, -digest], device=message_device(self.group, torch.device("cpu")))
        distributed.all_reduce(bounds, op=distributed.ReduceOp.MAX, group=self.group)
        if int(bounds.sum()) == 0 and not fault:  # the largest digest is the smallest
            return
        everyone: list[dict[str, Any]] = [{} for _ in range(self._world)]
        distributed.all_gather_object(everyone, settings, group=self.group)
        for rank, theirs in enumerate(everyone):
            if theirs["fault"]:
                raise ValueError(f"{theirs['fault']} (rank {rank})")
        for name in settings:
            values = [theirs.get(name) for theirs in everyone]
            for rank, value in enumerate(values):
                if value != values[0]:
                    raise ValueError(
                        f"{self._op}: {name} must be the same on every rank, got {values[0]!r} on rank 0 and {value!r} on "
                        f"rank {rank}"
                    )


def _group_type() -> Any:
    return distributed.ProcessGroup if distributed.is_available() else ()
