"""Graph WaveNet: gated dilated convolutions over time, diffusion over a given graph and a learned one."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stprune.models._graph import part_of, rows_of_one, with_loops
from stprune.models._inputs import check_input, check_sizes

# Columns of the learned graph's embeddings E1 and E2; 10 in the paper, section 4.2.
_GRAPH_DIM = 10
_ORDER = 2
# Share of entries that are edges up to which products with the known graph of all nodes are sparse on a CPU. On one AVX-512
# core, 900 and 1,617 nodes and 448 columns, a product and its backward is 6 and 16 times faster than dense at 1%, 4 and 3
# times at 5%.
_FEW_EDGES = 0.05


def _plus_product(term: Tensor, support: Tensor, other: Tensor) -> Tensor:
    """term + support @ other, of [G, n, F] with a support [G, n, n], or [n, n] sparse where G is 1."""
    if support.is_sparse:
        return torch.sparse.addmm(term[0], support, other[0])[None]
    return torch.baddbmm(term, support, other)


class _Diffusion(nn.Module):
    """H W_0 + sum over supports A of A H W_A1 + A^2 H W_A2, the bias apart (eq. 7 of the paper, order 2).

    Written A (H W_A1 + A (H W_A2)): channels are mapped first, so that a product with A never has more columns than the result,
    and A^2 is never formed.
    """

    def __init__(self, width: int, out: int, num_supports: int) -> None:
        super().__init__()
        self.own = nn.Linear(width, out)
        self.others = nn.ModuleList(nn.Linear(width, out, bias=False) for _ in range(_ORDER * num_supports))
        # As of one map of all terms side by side, which the authors' code has.
        bound = 1 / math.sqrt((_ORDER * num_supports + 1) * width)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, hidden: Tensor, supports: list[Tensor]) -> Tensor:
        """Map [G, n, ..., width] to [G, n, ..., out] with supports [G, n, n]."""
        shape = hidden.shape[:-1]
        result = self.own(hidden).flatten(2)
        for place, support in enumerate(supports):
            near, far = (self.others[_ORDER * place + k](hidden).flatten(2) for k in range(_ORDER))
            result = _plus_product(result, support, _plus_product(near, support, far))
        return result.view(*shape, -1)


class _Layer(nn.Module):
    """A gated convolution of kernel 2 over time, and, but in the last layer, diffusion, residual and norm."""

    def __init__(self, older: slice, newer: slice, *, widths: tuple[int, int, int], num_supports: int, norm: str) -> None:
        super().__init__()
        residual, dilation, skip = widths
        self.older, self.newer = older, newer
        self.filter = nn.Linear(2 * residual, dilation)
        self.gate = nn.Linear(2 * residual, dilation)
        self.skip = nn.Linear(dilation, skip)
        self.diffusion = _Diffusion(dilation, residual, num_supports) if num_supports else None
        self.norm = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}[norm](residual) if num_supports else None

    def forward(self, hidden: Tensor, supports: list[Tensor]) -> tuple[Tensor, Tensor]:
        """From [G, n, K, T, residual] to the next layer's input, with fewer steps, and the skip [G, n, K, skip]."""
        newer = hidden[..., self.newer, :]
        pair = torch.cat([hidden[..., self.older, :], newer], dim=-1)
        gated = torch.tanh(self.filter(pair)) * torch.sigmoid(self.gate(pair))
        skip = self.skip(gated[..., -1, :])
        if self.diffusion is None or self.norm is None:
            return gated, skip
        hidden = self.diffusion(gated, supports) + newer
        return self.norm(hidden.flatten(0, 3)).view_as(hidden), skip


class GraphWaveNet(nn.Module):
    """Dilated convolutions over time and graph convolutions over nodes, on a known graph and one learned from node embeddings.

    With drawn nodes every window has its own supports: the adjacency between its nodes, normalised anew, forward and backward,
    and the learned one, a softmax over the drawn nodes. Rows of every support sum to 1. So a forecast depends on which other
    nodes were drawn; a node without drawn neighbours keeps only itself on the known graph.

    The supports of all N nodes are shared by the windows of a batch: memory and time grow with N * N once, not for each window.

    Args:
        num_nodes: N, nodes of the series.
        adjacency: [N, N] floating, weight of the edge from row to column, not negative; need not be symmetric or normalised.
            Nodes whose diagonal entry is 0 get a loop of weight 1. Copied. None for the learned graph alone.
        history: T, input steps. Steps older than the receptive field, 13 by default, are not read.
        horizon: output steps.
        num_blocks: blocks of layers.
        num_layers: layers of a block, with dilations 1, 2, 4, ...
        residual_dim: channels between layers.
        dilation_dim: channels of the gated convolutions.
        skip_dim: channels that the layers' outputs are added up in.
        end_dim: channels of the hidden map behind.
        norm: "batch", batch norm as in the authors' code: in training, statistics of all (window, node, step) of the batch, in
            evaluation their running means. "layer", layer norm over the channels: a forecast does not depend on what else is in
            the batch, nor on the mode.

    Raises:
        TypeError: adjacency is no floating tensor.
        ValueError: adjacency is not [N, N], or has entries that are negative or not finite; a size is below 1; norm is neither
            "batch" nor "layer".

    Example:
        >>> import torch
        >>> from stprune.models import GraphWaveNet
        >>> ring = torch.eye(6).roll(1, 0)
        >>> model = GraphWaveNet(6, ring, residual_dim=4, dilation_dim=4, skip_dim=8, end_dim=8)
        >>> x = torch.rand(2, 12, 6, 3)
        >>> model(x).shape
        torch.Size([2, 12, 6, 1])

        Drawn nodes: of 0, 1 and 3 on a ring only the first two are neighbours.

        >>> node = torch.tensor([[0, 1, 3], [2, 3, 4]])
        >>> few = torch.stack([each[:, ids] for each, ids in zip(x, node)])
        >>> model(few, node=node).shape
        torch.Size([2, 12, 3, 1])
        >>> forward, backward, learned = model.supports(node)
        >>> forward[0]
        tensor([[1.0000, 0.0000, 0.0000],
                [0.5000, 0.5000, 0.0000],
                [0.0000, 0.0000, 1.0000]])

    Source: Wu et al., Graph WaveNet for Deep Spatial-Temporal Graph Modeling, IJCAI 2019, eq. 5 to 9; sizes as in its authors'
        code. Deviations: no dropout, so that a training run reads no global random state; the day of the week is a third input;
        loops are added where there are none; the last layer's graph convolution and norm, whose output nothing reads, are left
        out, and so are steps that no later layer reads.
    """

    adjacency: Tensor | None

    def __init__(
        self,
        num_nodes: int,
        adjacency: Tensor | None = None,
        *,
        history: int = 12,
        horizon: int = 12,
        num_blocks: int = 4,
        num_layers: int = 2,
        residual_dim: int = 32,
        dilation_dim: int = 32,
        skip_dim: int = 256,
        end_dim: int = 512,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        sizes = {
            "num_nodes": num_nodes,
            "history": history,
            "horizon": horizon,
            "num_blocks": num_blocks,
            "num_layers": num_layers,
            "residual_dim": residual_dim,
            "dilation_dim": dilation_dim,
            "skip_dim": skip_dim,
            "end_dim": end_dim,
        }
        check_sizes("GraphWaveNet", sizes)
        if norm not in ("batch", "layer"):
            raise ValueError(f'GraphWaveNet: norm must be "batch" or "layer", got {norm!r}')
        if adjacency is not None:
            adjacency = with_loops("GraphWaveNet", adjacency)
            if len(adjacency) != num_nodes:
                raise ValueError(f"GraphWaveNet: adjacency must be {[num_nodes] * 2}, got {list(adjacency.shape)}")
        self.num_nodes = num_nodes
        self.history = history
        self.receptive_field = 1 + num_blocks * (2**num_layers - 1)
        self.register_buffer("adjacency", adjacency)
        self._few_edges = adjacency is not None and int(adjacency.count_nonzero()) <= _FEW_EDGES * adjacency.numel()
        self.source_embedding = nn.Embedding(num_nodes, _GRAPH_DIM)
        self.target_embedding = nn.Embedding(num_nodes, _GRAPH_DIM)
        self.input_map = nn.Linear(3, residual_dim)
        self.layers = nn.ModuleList()
        for block in range(num_blocks):
            for k in range(num_layers):
                # The layers behind one of the last block read every second step of its output only.
                halving = block == num_blocks - 1
                last = halving and k == num_layers - 1
                self.layers.append(
                    _Layer(
                        slice(0, None, 2) if halving else slice(None, -(2**k)),
                        slice(1, None, 2) if halving else slice(2**k, None),
                        widths=(residual_dim, dilation_dim, skip_dim),
                        num_supports=0 if last else 1 if adjacency is None else 3,
                        norm=norm,
                    )
                )
        self.end_map = nn.Linear(skip_dim, end_dim)
        self.head = nn.Linear(end_dim, horizon)

    def supports(self, node: Tensor | None = None) -> list[Tensor]:
        """What the graph convolutions average over: forward and backward on the known graph, if any, and the learned graph.

        Args:
            node: [B, m] int64 node ids, or None for all nodes in order.

        Returns:
            One or three of [B, m, m] float, or [1, N, N] for None; rows sum to 1.
        """
        if node is None:
            source, target = self.source_embedding.weight[None], self.target_embedding.weight[None]
        else:
            source, target = self.source_embedding(node), self.target_embedding(node)
        learned = torch.softmax(torch.relu(source @ target.mT), dim=-1)
        if self.adjacency is None:
            return [learned]
        part = part_of(self.adjacency, node).expand(len(learned), -1, -1)
        return [rows_of_one(part), rows_of_one(part.mT), learned]

    def forward(self, x: Tensor, node: Tensor | None = None) -> Tensor:
        """Forecast every given node.

        Args:
            x: [B, T, N, C] or, with `node`, [B, T, m, C] float, not modified. Channel 0 is the value, channel 1 the time of
                day in [0, 1), channel 2 the day of the week in [0, 1).
            node: [B, m] int64, ids of the given nodes; None when x holds all of them in order.

        Returns:
            [B, horizon, N or m, 1] float. With `node`, neighbours that were not drawn are not seen.

        Raises:
            TypeError: x is not floating point, or node is not int64.
            ValueError: a shape differs from what the model was built for, or a node id lies outside [0, N).
        """
        check_input("GraphWaveNet", x, node, history=self.history, num_nodes=self.num_nodes)
        # [G, n, K, T, channel]: G groups of K windows, whose windows share their supports.
        hidden = x[..., :3].permute(2, 0, 1, 3)[None] if node is None else x[..., :3].permute(0, 2, 1, 3)[:, :, None]
        # A negative padding cuts: the oldest steps of a long history.
        hidden = self.input_map(F.pad(hidden, (0, 0, self.receptive_field - self.history, 0)))
        supports = [each.to(hidden.dtype) for each in self.supports(node)]
        if node is None and self._few_edges and x.device.type == "cpu":
            supports[:2] = [each[0].to_sparse() for each in supports[:2]]
        skips = []
        for layer in self.layers:
            hidden, skip = layer(hidden, supports)
            skips.append(skip)
        forecast: Tensor = self.head(torch.relu(self.end_map(torch.relu(sum(skips)))))
        return forecast.permute(0, 2, 3, 1).reshape(len(x), -1, x.shape[2], 1)
