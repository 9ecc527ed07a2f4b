"""STAEformer: attention over time, then over nodes, with adaptive node-and-step embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stprune.models._inputs import check_input, check_sizes, time_index


class _AttentionLayer(nn.Module):
    """Self-attention over the second last axis and a feed-forward map, each added to its input and normalised."""

    def __init__(self, width: int, inner_width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_query_key_value = nn.Linear(width, 3 * width)
        self.to_output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, inner_width)
        self.outer = nn.Linear(inner_width, width)
        self.forward_norm = nn.LayerNorm(width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, G, L, width] to the same shape; the L tokens of one group attend to each other."""
        batch, groups, length, width = hidden.shape
        heads = self.to_query_key_value(hidden).view(batch * groups, length, 3, self.num_heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        mixed = self.to_output(mixed.transpose(1, 2).reshape(batch, groups, length, width))
        hidden = self.attention_norm(hidden + mixed)
        result: Tensor = self.forward_norm(hidden + self.outer(torch.relu(self.inner(hidden))))
        return result


class STAEformer(nn.Module):
    """Spatio-temporal adaptive-embedding transformer.

    Attention over the nodes costs the square of their number, so drawing nodes saves more than in proportion; and a
    forecast depends on which other nodes were drawn.

    Args:
        num_nodes: N, nodes of the series.
        history: T, input steps.
        horizon: output steps.
        steps_per_day: rows of the time-of-day embedding.
        dim: width of each of the value, day and week embeddings.
        adaptive_dim: width of the embedding of every node and step; tokens are 3 * dim + adaptive_dim wide.
        feed_forward_dim: inner width of the feed-forward maps.
        num_layers: attention layers over time, and as many over nodes.
        num_heads: attention heads; must divide the tokens' width.

    Raises:
        ValueError: a size is below 1, or num_heads does not divide the tokens' width.

    Example:
        >>> import torch
        >>> model = STAEformer(num_nodes=5, history=12, horizon=12, dim=4, adaptive_dim=4, num_layers=1)
        >>> x = torch.rand(2, 12, 5, 3)
        >>> model(x).shape
        torch.Size([2, 12, 5, 1])
        >>> model(x[:, :, :2], node=torch.tensor([[0, 1], [0, 1]])).shape
        torch.Size([2, 12, 2, 1])

    Source: Liu et al., Spatio-Temporal Adaptive Embedding, CIKM 2023; sizes by default and initial weights as in its authors'
        code. Deviation: no dropout, so that a training run reads no global random state.
    """

    def __init__(
        self,
        num_nodes: int,
        *,
        history: int = 12,
        horizon: int = 12,
        steps_per_day: int = 288,
        dim: int = 24,
        adaptive_dim: int = 80,
        feed_forward_dim: int = 256,
        num_layers: int = 3,
        num_heads: int = 4,
    ) -> None:
        super().__init__()
        sizes = {
            "num_nodes": num_nodes,
            "history": history,
            "horizon": horizon,
            "steps_per_day": steps_per_day,
            "dim": dim,
            "adaptive_dim": adaptive_dim,
            "feed_forward_dim": feed_forward_dim,
            "num_layers": num_layers,
            "num_heads": num_heads,
        }
        check_sizes("STAEformer", sizes)
        width = 3 * dim + adaptive_dim
        if width % num_heads:
            raise ValueError(f"STAEformer: num_heads must divide 3 * dim + adaptive_dim = {width}, got {num_heads}")
        self.num_nodes = num_nodes
        self.history = history
        self.horizon = horizon
        self.steps_per_day = steps_per_day
        self.input_map = nn.Linear(1, dim)
        self.day_embedding = nn.Embedding(steps_per_day, dim)
        self.week_embedding = nn.Embedding(7, dim)
        self.adaptive_embedding = nn.Embedding(num_nodes, history * adaptive_dim)
        # The authors' table is [T, N, width], and Xavier's rule reads the shape.
        nn.init.xavier_uniform_(self.adaptive_embedding.weight.view(history, num_nodes, adaptive_dim))
        self.time_layers, self.node_layers = (
            nn.Sequential(*(_AttentionLayer(width, feed_forward_dim, num_heads) for _ in range(num_layers))) for _ in range(2)
        )
        self.head = nn.Linear(history * width, horizon)

    def forward(self, x: Tensor, node: Tensor | None = None) -> Tensor:
        """Forecast every given node.

        Args:
            x: [B, T, N, C] or, with `node`, [B, T, m, C] float, not modified. Channel 0 is the value, channel 1 the
                time of day in [0, 1), channel 2 the day of the week in [0, 1), both read at the first node: all
                nodes of a window share its time.
            node: [B, m] int64, ids of the given nodes; None when x holds all of them in order.

        Returns:
            [B, horizon, N or m, 1] float. With `node`, nodes attend to the drawn ones only.

        Raises:
            TypeError: x is not floating point, or node is not int64.
            ValueError: a shape differs from what the model was built for, or a node id lies outside [0, num_nodes).
        """
        check_input("STAEformer", x, node, history=self.history, num_nodes=self.num_nodes)
        batch, steps, width, _ = x.shape
        value = self.input_map(x[..., :1])
        day = self.day_embedding(time_index(x[:, :, 0, 1], self.steps_per_day))
        week = self.week_embedding(time_index(x[:, :, 0, 2], 7))
        if node is None:
            adaptive = self.adaptive_embedding.weight.expand(batch, -1, -1)
        else:
            adaptive = self.adaptive_embedding(node)
        adaptive = adaptive.reshape(batch, width, steps, -1).transpose(1, 2)
        hidden = torch.cat(
            [
                value,
                day[:, :, None].expand(-1, -1, width, -1),
                week[:, :, None].expand(-1, -1, width, -1),
                adaptive,
            ],
            dim=-1,
        )
        hidden = self.time_layers(hidden.transpose(1, 2))
        hidden = self.node_layers(hidden.transpose(1, 2))
        forecast: Tensor = self.head(hidden.transpose(1, 2).reshape(batch, width, -1))
        return forecast.transpose(1, 2).unsqueeze(-1)
