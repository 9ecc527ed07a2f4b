"""STID: a node-wise forecaster whose nodes are told apart by embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stprune.models._identity import Identified


class _ResidualMLP(nn.Module):
    """Two linear maps with a rectifier between them, added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., width] to [..., width]."""
        result: Tensor = hidden + self.outer(torch.relu(self.inner(hidden)))
        return result


class STID(Identified):
    """Spatial and temporal identity model: an MLP over each node's history with node and time embeddings.

    Every node is computed by itself, so the cost is proportional to the number of nodes given: the model that profits
    most plainly from node pruning.

    Args:
        num_nodes: N, nodes of the series.
        history: T, input steps.
        horizon: output steps.
        steps_per_day: rows of the time-of-day embedding.
        dim: width of each of the four embeddings; the layers are 4 * dim wide.
        num_layers: residual MLP layers.

    Raises:
        ValueError: a size is below 1.

    Example:
        >>> import torch
        >>> model = STID(num_nodes=5, history=12, horizon=12)
        >>> x = torch.rand(2, 12, 5, 3)
        >>> model(x).shape
        torch.Size([2, 12, 5, 1])
        >>> node = torch.tensor([[0, 3], [1, 4]])
        >>> few = torch.stack([x[0][:, [0, 3]], x[1][:, [1, 4]]])
        >>> model(few, node=node).shape
        torch.Size([2, 12, 2, 1])

    Source: Shao et al., Spatial-Temporal Identity, CIKM 2022; sizes by default as in its authors' code. Deviations: no dropout,
        so that a training run reads no global random state; the input map takes the value channel only, since the time channels
        already enter as embeddings.
    """

    def __init__(
        self,
        num_nodes: int,
        *,
        history: int = 12,
        horizon: int = 12,
        steps_per_day: int = 288,
        dim: int = 32,
        num_layers: int = 3,
    ) -> None:
        super().__init__(
            num_nodes=num_nodes, history=history, horizon=horizon, steps_per_day=steps_per_day, dim=dim, num_layers=num_layers
        )
        self.layers = nn.Sequential(*(_ResidualMLP(4 * dim) for _ in range(num_layers)))
        self.head = nn.Linear(4 * dim, horizon)

    def forward(self, x: Tensor, node: Tensor | None = None) -> Tensor:
        """Forecast every given node.

        Args:
            x: [B, T, N, C] or, with `node`, [B, T, m, C] float, not modified. Channel 0 is the value, channel 1 the
                time of day in [0, 1), channel 2 the day of the week in [0, 1). The two time features are read at the
                last step and the first node: all nodes of a window share its time.
            node: [B, m] int64, ids of the given nodes; None when x holds all of them in order.

        Returns:
            [B, horizon, N or m, 1] float. Every node's forecast depends on that node alone, so a forecast of drawn
            nodes is the same rows of the full forecast.

        Raises:
            TypeError: x is not floating point, or node is not int64.
            ValueError: a shape differs from what the model was built for, or a node id lies outside [0, num_nodes).
        """
        forecast: Tensor = self.head(self.layers(self.embed(x, node)))
        return forecast.transpose(1, 2).unsqueeze(-1)
