"""What STID and GraphConv share: a node's history beside embeddings of the node, the time of day and the day of the week."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stprune.models._inputs import check_input, check_sizes, time_index


class Identified(nn.Module):
    """Base of models that tell nodes and times apart by embeddings.

    Args:
        num_nodes, history, horizon, steps_per_day, dim, num_layers: as in `STID`.

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(self, *, num_nodes: int, history: int, horizon: int, steps_per_day: int, dim: int, num_layers: int) -> None:
        super().__init__()
        sizes = {"num_nodes": num_nodes, "history": history, "horizon": horizon, "steps_per_day": steps_per_day, "dim": dim}
        check_sizes(type(self).__name__, {**sizes, "num_layers": num_layers})
        self.num_nodes = num_nodes
        self.history = history
        self.steps_per_day = steps_per_day
        self.input_map = nn.Linear(history, dim)
        self.node_embedding = nn.Embedding(num_nodes, dim)
        self.day_embedding = nn.Embedding(steps_per_day, dim)
        self.week_embedding = nn.Embedding(7, dim)
        for table in (self.node_embedding, self.day_embedding, self.week_embedding):
            nn.init.xavier_uniform_(table.weight)

    def embed(self, x: Tensor, node: Tensor | None) -> Tensor:
        """The checked input as features, [B, N or m, 4 * dim]; x and node as in `STID.forward`."""
        check_input(type(self).__name__, x, node, history=self.history, num_nodes=self.num_nodes)
        batch, _, width, _ = x.shape
        place = self.node_embedding.weight.expand(batch, -1, -1) if node is None else self.node_embedding(node)
        day = self.day_embedding(time_index(x[:, -1, 0, 1], self.steps_per_day))
        week = self.week_embedding(time_index(x[:, -1, 0, 2], 7))
        return torch.cat(
            [
                self.input_map(x[..., 0].transpose(1, 2)),
                place,
                day[:, None].expand(-1, width, -1),
                week[:, None].expand(-1, width, -1),
            ],
            dim=-1,
        )
