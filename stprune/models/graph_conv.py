"""GraphConv: a forecaster that mixes neighbours on a known graph, and takes the drawn nodes' part of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stprune.models._graph import part_of, rows_of_one, with_loops
from stprune.models._identity import Identified


class _NeighbourLayer(nn.Module):
    """A map of each node and one of its neighbours' mean, rectified and added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.own = nn.Linear(width, width)
        self.others = nn.Linear(width, width, bias=False)

    def forward(self, hidden: Tensor, mean: Tensor) -> Tensor:
        """Map [B, m, width] with row-normalised weights [m, m] or [B, m, m]."""
        result: Tensor = hidden + torch.relu(self.own(hidden) + self.others(mean @ hidden))
        return result


class GraphConv(Identified):
    """Graph convolutions over nodes told apart by embeddings, on the adjacency of the nodes given.

    With drawn nodes every window has its own sub-adjacency, A[node][:, node], whose rows are normalised anew: a node averages
    over those of its neighbours that were drawn, itself among them, and a node that lost them all keeps only itself. So a
    forecast depends on which other nodes were drawn: draws that keep neighbours together (clusters) keep edges, random draws
    break them. Measured on a week of METR-LA (benchmarks/results/graph_draws.jsonl; 207 nodes, 30% drawn, 30 epochs, 3 seeds):
    random draws kept 30% of the drawn nodes' edges, one cluster 85%; validation MAE was 3.54 with either, 3.51 with all nodes.

    Args:
        adjacency: [N, N] floating, weight of the edge from row to column, not negative; need not be symmetric or normalised.
            Nodes whose diagonal entry is 0 get a loop of weight 1. Copied.
        history: T, input steps.
        horizon: output steps.
        steps_per_day: rows of the time-of-day embedding.
        dim: width of each of the four embeddings; the layers are 4 * dim wide.
        num_layers: graph convolutions: a forecast sees neighbours so many edges away.

    Raises:
        TypeError: adjacency is no floating tensor.
        ValueError: adjacency is not square, or has entries that are negative or not finite; a size is below 1.

    Example:
        >>> import torch
        >>> from stprune.models import GraphConv
        >>> ring = torch.eye(6).roll(1, 0) + torch.eye(6).roll(-1, 0)
        >>> model = GraphConv(ring, history=12, horizon=12, dim=4)
        >>> x = torch.rand(2, 12, 6, 3)
        >>> model(x).shape
        torch.Size([2, 12, 6, 1])

        Drawn nodes, for instance from `PruningSampler.nodes`, and their sub-adjacency: of nodes 0, 1 and 3 on a ring only
        the first two are neighbours.

        >>> node = torch.tensor([[0, 1, 3], [2, 3, 4]])
        >>> few = torch.stack([each[:, ids] for each, ids in zip(x, node)])
        >>> model(few, node=node).shape
        torch.Size([2, 12, 3, 1])
        >>> model.neighbour_weights(node)[0]
        tensor([[0.5000, 0.5000, 0.0000],
                [0.5000, 0.5000, 0.0000],
                [0.0000, 0.0000, 1.0000]])

    Source: row-normalised neighbour means as in GraphSAGE (Hamilton et al., NeurIPS 2017), embeddings as in STID (Shao et al.,
        CIKM 2022); deliberately small. methods/README.md, eq. 12: sub-adjacency of drawn nodes, renormalised.
    """

    adjacency: Tensor

    def __init__(
        self,
        adjacency: Tensor,
        *,
        history: int = 12,
        horizon: int = 12,
        steps_per_day: int = 288,
        dim: int = 16,
        num_layers: int = 2,
    ) -> None:
        adjacency = with_loops("GraphConv", adjacency)
        sizes = {"num_nodes": len(adjacency), "history": history, "horizon": horizon, "steps_per_day": steps_per_day}
        super().__init__(**sizes, dim=dim, num_layers=num_layers)
        self.register_buffer("adjacency", adjacency)
        self.layers = nn.ModuleList(_NeighbourLayer(4 * dim) for _ in range(num_layers))
        self.head = nn.Linear(4 * dim, horizon)

    def neighbour_weights(self, node: Tensor | None = None) -> Tensor:
        """What each node averages over: the adjacency of the given nodes, every row divided by its sum.

        Args:
            node: [B, m] int64 node ids, or None for all nodes in order.

        Returns:
            [B, m, m] float32, or [N, N] for None; rows sum to 1.
        """
        return rows_of_one(part_of(self.adjacency, node))

    def forward(self, x: Tensor, node: Tensor | None = None) -> Tensor:
        """Forecast every given node.

        Args:
            x: [B, T, N, C] or, with `node`, [B, T, m, C] float, not modified. Channel 0 is the value, channel 1 the time of
                day in [0, 1), channel 2 the day of the week in [0, 1), both read at the last step and the first node.
            node: [B, m] int64, ids of the given nodes; None when x holds all of them in order.

        Returns:
            [B, horizon, N or m, 1] float. With `node`, neighbours that were not drawn are not seen.

        Raises:
            TypeError: x is not floating point, or node is not int64.
            ValueError: a shape differs from what the model was built for, or a node id lies outside [0, N).
        """
        hidden = self.embed(x, node)
        mean = self.neighbour_weights(node).to(hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, mean)
        forecast: Tensor = self.head(hidden)
        return forecast.transpose(1, 2).unsqueeze(-1)
