"""Which nodes of a kept window are drawn, and what each then counts for: the second stage of eq. 12.

A law is a small class: `draw` says which nodes, `weights` what they count for. One of your own is a subclass of `NodeLaw`:

    class FirstHalf(stprune.NodeLaw):
        name = "first-half"

        def draw(self, index, epoch):
            return torch.arange(self.count, device=index.device).expand(len(index), -1)
"""

from __future__ import annotations

from stprune.laws.base import NodeLaw, Uniform
from stprune.laws.cluster import Cluster
from stprune.laws.priority import Priority
from stprune.laws.stratified import Stratified

__all__ = ["NODE_LAWS", "Cluster", "NodeLaw", "Priority", "Stratified", "Uniform", "resolve"]

NODE_LAWS: dict[str, type[NodeLaw]] = {"uniform": Uniform, "priority": Priority}
"""Laws by name; `Stratified` and `Cluster` need to know the nodes' groups or graph and are given as objects."""


def resolve(law: str | NodeLaw) -> NodeLaw:
    """The law object for a name or an instance.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor a `NodeLaw`.
    """
    if isinstance(law, str):
        if law not in NODE_LAWS:
            names = ", ".join(sorted(NODE_LAWS))
            raise ValueError(f"node_law must be one of {names}, or Stratified(groups) or Cluster(adjacency), got {law!r}")
        return NODE_LAWS[law]()
    if not isinstance(law, NodeLaw):
        raise TypeError(f"node_law must be a name or a NodeLaw, got {type(law).__name__}")
    return law
