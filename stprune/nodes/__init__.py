"""Which nodes of a kept window are drawn, and what each then counts for: the second stage of eq. 12.

A node sampler is a small class: `draw` says which nodes, and what they count for. One of your own is a subclass:

    class FirstHalf(stprune.NodeSampler):
        name = "first-half"

        def draw(self, index, epoch):
            return torch.arange(self.count, device=index.device).expand(len(index), -1), None

Drawing nodes is not new: SGP (AAAI 2023) draws a node set for each window, iTransformer (ICLR 2024) one set a batch, MTGNN
(KDD 2020) splits the nodes, VarDrop (AAAI 2025) groups them by frequency. Here every draw has stated probabilities and weights.
"""

from __future__ import annotations

from stprune.nodes.base import Draw, NodeSampler, Uniform
from stprune.nodes.cluster import Cluster
from stprune.nodes.observed import Observed
from stprune.nodes.priority import Priority
from stprune.nodes.stratified import Stratified

__all__ = ["NODE_SAMPLERS", "Cluster", "Draw", "NodeSampler", "Observed", "Priority", "Stratified", "Uniform", "resolve"]

NODE_SAMPLERS: dict[str, type[NodeSampler]] = {"uniform": Uniform, "priority": Priority}
"""Node samplers by name; `Stratified`, `Cluster` and `Observed` need to know the nodes' groups, graph or holes
and are given as objects."""


def resolve(op: str, sampler: str | NodeSampler) -> NodeSampler:
    """The node sampler for a name or an instance.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor a `NodeSampler`.
    """
    if isinstance(sampler, str):
        if sampler not in NODE_SAMPLERS:
            names = ", ".join(sorted(NODE_SAMPLERS))
            objects = "Priority(), Stratified(groups), Cluster(adjacency) or Observed(mask)"
            raise ValueError(f"{op}: node_sampler must be one of {names}, or {objects}, got {sampler!r}")
        return NODE_SAMPLERS[sampler]()
    if not isinstance(sampler, NodeSampler):
        got = f"the class {sampler.__name__}" if isinstance(sampler, type) else type(sampler).__name__
        raise TypeError(f"{op}: node_sampler must be a name or a NodeSampler, got {got}")
    return sampler
