"""Granularity: what a sample is - a window with all its nodes, with some of them, or one (window, node) pair."""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Callable, Sized
from typing import Any

import torch
from torch.utils.data import ConcatDataset, DataLoader
from torch.utils.weak import WeakIdKeyDictionary

from stprune.nodes import Draw, NodeSampler, resolve
from stprune.ops import _check
from stprune.ranks import Ranks

GRANULARITIES = ("window", "node", "pair")
AUTO = "auto"
"""`node_ratio` of a sampler that is told during the run how many nodes to draw."""


class _Drawn(WeakIdKeyDictionary):
    """What drawn nodes count for, as long as somebody holds their tensor: a loader draws them, and later a criterion asks.

    Of tensors that were written into since nothing is known, nor in a graph that is compiled or captured, whose next run has
    other nodes in the same tensor. A copy in another process is empty.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _Drawn, ()

    def note(self, node: torch.Tensor, weight: torch.Tensor, index: torch.Tensor, epoch: int) -> None:
        """Remember the weights of a draw."""
        if not (_in_graph(node) or any(x.is_inference() for x in (node, weight, index))):
            self[node] = weight, index, epoch, [_as_it_is(x) for x in (node, weight, index)]

    def weight(self, node: torch.Tensor, index: torch.Tensor, epoch: int) -> torch.Tensor | None:
        """What `note` was told of these very tensors, or None."""
        if _in_graph(node) or node not in self:
            return None
        weight, of, drawn_in, before = self[node]
        unchanged = all(_is_as(x, was) for x, was in zip((node, weight, index), before, strict=True))
        return weight if of is index and drawn_in == epoch and unchanged else None


def _as_it_is(tensor: torch.Tensor) -> Any:
    """What a later write changes: on the host all that is in it, as nobody counts the writes of NumPy and `.data`."""
    return tensor.clone() if tensor.is_cpu else tensor._version


def _is_as(tensor: torch.Tensor, before: Any) -> bool:
    return torch.equal(tensor, before) if isinstance(before, torch.Tensor) else bool(tensor._version == before)


def _in_graph(tensor: torch.Tensor) -> bool:
    return torch.compiler.is_compiling() or (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


class Granularity:
    """How sample ids, windows and nodes belong together.

    Args:
        op: whose errors these are.
        kind: "window", "node", "pair", or None: "node" where num_nodes is given, else "window".
        num_windows: windows of the data set.
        num_nodes: nodes of a window, or None.
        node_ratio: share of the nodes drawn in every window; "auto" for all until `draw_next` says otherwise.
        node_sampler: how they are drawn.
        seed: of the draws.
    """

    @torch.inference_mode(False)  # or no training step could write into what the node sampler makes here
    def __init__(
        self,
        op: str,
        kind: str | None,
        *,
        num_windows: int,
        num_nodes: int | None,
        node_ratio: float | str,
        node_sampler: str | NodeSampler,
        seed: int,
    ) -> None:
        self._op = op
        if isinstance(node_ratio, str) and node_ratio != AUTO:
            raise ValueError(f"{op}: node_ratio must be a number or {AUTO!r}, got {node_ratio!r}")
        self.auto = node_ratio == AUTO
        self.node_ratio = 1.0 if self.auto else _check.real(op, "node_ratio", node_ratio, 0.0, 1.0, low_open=True)
        self.num_nodes = None if num_nodes is None else _check.integer(op, "num_nodes", num_nodes, 1, 2**31 - 1)
        self.kind = ("window" if num_nodes is None else "node") if kind is None else kind
        _check.choice(op, "granularity", self.kind, GRANULARITIES)
        if self.num_nodes is None and (self.auto or self.node_ratio < 1.0):
            raise ValueError(f"{op}: num_nodes must be given when node_ratio is below 1 or {AUTO!r}, got None")
        if self.num_nodes is None and self.kind != "window":
            raise ValueError(f"{op}: num_nodes must be given for granularity {self.kind!r}, got None")
        if (self.auto or self.node_ratio < 1.0) and self.kind != "node":
            raise ValueError(f"{op}: node_ratio must be 1 for granularity {self.kind!r}, got {node_ratio}")
        # Whether batches hold some nodes of each window only.
        self.draws_nodes = self.auto or self.node_ratio < 1.0 or self.kind == "pair"
        nodes = self._nodes = self.num_nodes or 1
        self.num_windows = num_windows
        self.count = self._count(nodes)
        self._next: int | None = None
        self._device = torch.device("cpu")
        self._drawn = _Drawn()
        self._told = not self.auto  # somebody has said how many nodes to draw
        chosen = resolve(op, node_sampler)
        if chosen.name != "uniform" and self.kind != "node":
            raise ValueError(f"{op}: node_sampler must be 'uniform' for granularity {self.kind!r}, got {chosen.name!r}")
        self.node_sampler = chosen.bind(num_windows=num_windows, num_nodes=nodes, count=self.count, seed=seed)

    def __str__(self) -> str:
        """A part of the sampler's `repr`, with a comma behind it; nothing without num_nodes."""
        ratio = f"node_ratio={'auto, now ' * self.auto}{self.node_ratio:g}, " if self.kind == "node" else ""
        return "" if self.num_nodes is None else f"granularity={self.kind!r}, num_nodes={self.num_nodes}, {ratio}"

    def _count(self, num_nodes: int) -> int:
        # Rounded before the ceiling: 0.1 * 30 is 3.0000000000000004 in binary.
        return 1 if self.kind == "pair" else max(1, math.ceil(round(self.node_ratio * num_nodes, 9)))

    def draw_next(self, op: str, num_drawn: int) -> None:
        """Draw so many nodes from the next epoch on.

        Raises:
            TypeError, ValueError: node_ratio is not "auto", or the node sampler cannot draw so many; nothing is changed.
        """
        if not self.auto:
            raise ValueError(f"{op}: node_ratio must be {AUTO!r}, got {self.node_ratio:g}")
        count = _check.integer(op, "num_drawn", num_drawn, 1, self.num_nodes)
        copy.copy(self.node_sampler).recount(count)
        self._next, self._told = count, True

    @property
    def untold(self) -> str:
        """That all nodes are drawn because nobody has said how many, in words; "" where it is not so."""
        return "" if self._told else (
            f"{self._op}: node_ratio={AUTO!r} draws all {self.num_nodes} nodes of every window, as nobody has said how many: "
            "call stprune.headroom(model, batches, sampler=sampler) after some training, or sampler.draw_next"
        )  # fmt: skip

    @torch.inference_mode(False)
    def begin(self, ranks: Ranks) -> None:
        """Begin an epoch with the number of nodes that rank 0 was told to draw; a collective."""
        if self.auto:
            # 0: the first rank was told nothing.
            count = ranks.of_first(self._next or (self.count if self._told else 0))
            self._draw(count or self._nodes)
            self._next, self._told = None, count > 0

    def _draw(self, count: int) -> None:
        if count != self.count:
            self.node_sampler.recount(count)
            self.to(self._device)
            self.count, self.node_ratio = count, count / self._nodes

    def to(self, device: torch.device) -> None:
        """Move what the node sampler stores; what it makes anew follows."""
        self._device = device
        self.node_sampler.to(device)

    def state_dict(self) -> dict[str, Any]:
        """The node sampler's state; where the number of nodes may change: that number, or 0 for no choice yet, and the next."""
        own = {AUTO: [self.count if self._told else 0, self._next or 0]} if self.auto else {}
        return self.node_sampler.state_dict() | own

    @torch.inference_mode(False)
    def load_state_dict(self, op: str, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        if self.auto:
            counts = [_check.integer(op, "num_drawn", count, 0, self.num_nodes) for count in state[AUTO]]
            self._draw(counts[0] or self._nodes)
            self._next, self._told = counts[1] or None, any(counts)
        self.node_sampler.load_state_dict({name: value for name, value in state.items() if name != AUTO})

    @property
    def num_samples(self) -> int:
        """Samples of the data set."""
        return self.num_windows * self._nodes if self.kind == "pair" else self.num_windows

    def windows_in(self, op: str, num_samples: int) -> int:
        """How many windows so many samples are."""
        if self.kind == "pair" and num_samples % self._nodes:
            raise ValueError(f"{op}: num_samples must be a multiple of num_nodes {self._nodes}, got {num_samples}")
        return num_samples // self._nodes if self.kind == "pair" else num_samples

    @torch.inference_mode(False)
    def grow(self, num_windows: int, num_nodes: int | None, **settings: Any) -> None:
        """Take in more windows or nodes; `settings` are for the node sampler.

        Raises:
            TypeError, ValueError: the node sampler refuses them; nothing is changed.
        """
        nodes = num_nodes or 1
        self.node_sampler.grow(num_windows, nodes, self._count(nodes), **settings)
        self.to(self._device)
        self.num_windows, self.num_nodes, self._nodes, self.count = num_windows, num_nodes, nodes, self._count(nodes)
        self._drawn = _Drawn()  # of draws from fewer nodes
        if self._next is not None:  # told before the nodes, and the groups of them, were more
            self._next = max(self._next, self.node_sampler.fewest)

    def windows(self, index: torch.Tensor) -> torch.Tensor:
        """The windows [B] of samples [B]."""
        return torch.div(index, self._nodes, rounding_mode="floor") if self.kind == "pair" else index

    def draw(self, index: torch.Tensor, epoch: int) -> Draw:
        """The nodes [B, m] of samples [B], and what each counts for, [B, m] float32 with mean 1; None where all count 1."""
        if self.num_nodes is None:
            raise ValueError(f"{self._op}.nodes: num_nodes must be given to the sampler, got None")
        index = _check.index(f"{self._op}.nodes", "index", index)
        _check.ids(f"{self._op}.nodes", "index", index, self.num_samples - 1)
        if self.kind == "pair":
            return (index % self.num_nodes).unsqueeze(1), None
        if self.count == self.num_nodes:
            return torch.arange(self.num_nodes, device=index.device).expand(index.numel(), -1).contiguous(), None
        node, weight = self.node_sampler.draw(index, epoch)
        if weight is not None:
            self._drawn.note(node, weight, index, epoch)
        return node, weight

    @property
    def draws_some(self) -> bool:
        """Whether some nodes of each window are drawn now, so that a loss must know which."""
        return self.kind == "node" and self.count < self._nodes

    @property
    def wants_scores(self) -> bool:
        """Whether scores of pairs decide what is drawn."""
        return self.node_sampler.wants_scores and self.kind == "node"

    def drawn_in(self, epoch: int, now: Callable[[], int]) -> Callable[[torch.Tensor], torch.Tensor]:
        """The draw of nodes in an epoch, of which `now` tells whether it is still under way."""

        count = self.count

        def drawn(index: torch.Tensor) -> torch.Tensor:
            if epoch != now() and (self.wants_scores or self.count != count):
                raise RuntimeError(
                    f"{self._op}: an iterator over epoch {epoch} must end before epoch {now()} begins, whose scores decide "
                    f"what the node sampler {self.node_sampler.name!r} draws, or which draws another number of nodes"
                )
            return self.draw(index, epoch)[0]

        return drawn

    def settings(self) -> dict[str, Any]:
        """What must be the same on every rank, and in a sampler that continues."""
        own = {"num_nodes": self.num_nodes, "node_ratio": AUTO if self.auto else self.node_ratio, "granularity": self.kind}
        return own | {f"node_sampler.{name}": value for name, value in self.node_sampler.settings().items()}

    def weights(self, index: torch.Tensor, node: torch.Tensor, epoch: int) -> torch.Tensor | None:
        """What each of the nodes [B, m] that `draw` gave counts for; None where all count 1."""
        if not self.draws_some:
            return None
        weight = self._drawn.weight(node, index, epoch)
        return self.node_sampler.weights(index, node, epoch) if weight is None else weight


def length_of(op: str, data_source: Any) -> int:
    """The length of a data set, or the length itself."""
    if isinstance(data_source, ConcatDataset) and any(getattr(part, "yields_index", False) for part in data_source.datasets):
        raise ValueError(
            f"{op}: data_source must give every sample an id of its own, got a ConcatDataset of IndexedDatasets, whose ids "
            "collide; write IndexedDataset(ConcatDataset([a, b]))"
        )
    if isinstance(data_source, numbers.Integral):
        return _check.integer(op, "data_source", data_source, 0, 2**62)
    if getattr(data_source, "ndim", None) == 0:
        return _check.integer(op, "data_source", data_source.item(), 0, 2**62)
    if isinstance(data_source, DataLoader):
        raise TypeError(f"{op}: data_source must be a data set or its length, got a DataLoader, whose length counts batches")
    if not isinstance(data_source, Sized) or isinstance(data_source, str):
        raise TypeError(
            f"{op}: data_source must be a length or a data set with one, got {type(data_source).__name__}; "
            "samples of an iterable data set have no ids to prune by"
        )
    return len(data_source)
