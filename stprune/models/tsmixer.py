"""TSMixer: an MLP-Mixer over the patches of one node's history, shared by all nodes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stprune.models._inputs import check_input, check_sizes

# Keeps a history without spread from being divided by 0; as in the authors' code.
_SMALLEST_VARIANCE = 1e-5


class _GatedMLP(nn.Module):
    """Two linear maps with GELU between them over the last axis, then a gate: every feature times its softmax weight."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, expansion * width)
        self.outer = nn.Linear(expansion * width, width)
        self.gate = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., width] to [..., width]."""
        hidden = self.outer(F.gelu(self.inner(hidden)))
        return hidden * torch.softmax(self.gate(hidden), dim=-1)


class _MixerLayer(nn.Module):
    """Mixing between the patches of a node, then between the features of a patch, each added to its input."""

    def __init__(self, num_patches: int, width: int, expansion: int) -> None:
        super().__init__()
        self.patch_norm = nn.LayerNorm(width)
        self.patch_mixing = _GatedMLP(num_patches, expansion)
        self.feature_norm = nn.LayerNorm(width)
        self.feature_mixing = _GatedMLP(width, expansion)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., patches, width] to the same shape."""
        hidden = hidden + self.patch_mixing(self.patch_norm(hidden).mT).mT
        result: Tensor = hidden + self.feature_mixing(self.feature_norm(hidden))
        return result


class TSMixer(nn.Module):
    """Channel-independent patch mixer: every node is forecast from its own history, by weights that all nodes share.

    The model knows neither the node nor the time: it has no embeddings, and takes any number of nodes, also nodes it was not
    trained on. The history of every node is normalised by its own mean and deviation, and the forecast is scaled back.

    Args:
        history: T, input steps.
        horizon: output steps.
        patch_length: steps of a patch; must divide history.
        dim: features of a patch.
        num_layers: mixer layers.
        expansion: inner width of the MLPs by their outer width.

    Raises:
        ValueError: a size is below 1, or patch_length does not divide history.

    Example:
        >>> import torch
        >>> from stprune.models import TSMixer
        >>> model = TSMixer(history=12, horizon=12)
        >>> x = torch.rand(2, 12, 5, 3)
        >>> model(x).shape
        torch.Size([2, 12, 5, 1])
        >>> model(x[:, :, :2], node=torch.tensor([[0, 1], [0, 1]])).shape
        torch.Size([2, 12, 2, 1])

    Source: CI-TSMixer with gated attention (Ekambaram et al., TSMixer, KDD 2023, section 3); depth and expansion as in its
        authors' library, PatchTSMixer. Deviations: no dropout, so that a training run reads no global random state; patches of
        3 of the field's 12 steps and width 16, where that library takes 8 of 32 steps and width 8; no reconciliation heads,
        which would tie the nodes together.
    """

    def __init__(
        self,
        *,
        history: int = 12,
        horizon: int = 12,
        patch_length: int = 3,
        dim: int = 16,
        num_layers: int = 3,
        expansion: int = 2,
    ) -> None:
        super().__init__()
        sizes = {
            "history": history,
            "horizon": horizon,
            "patch_length": patch_length,
            "dim": dim,
            "num_layers": num_layers,
            "expansion": expansion,
        }
        check_sizes("TSMixer", sizes)
        if history % patch_length:
            raise ValueError(f"TSMixer: patch_length must divide history = {history}, got {patch_length}")
        self.history = history
        self.patch_length = patch_length
        num_patches = history // patch_length
        self.input_map = nn.Linear(patch_length, dim)
        self.layers = nn.Sequential(*(_MixerLayer(num_patches, dim, expansion) for _ in range(num_layers)))
        self.head = nn.Linear(num_patches * dim, horizon)

    def forward(self, x: Tensor, node: Tensor | None = None) -> Tensor:
        """Forecast every given node.

        Args:
            x: [B, T, N, C] or, with `node`, [B, T, m, C] float, not modified. Only channel 0, the value, is read.
            node: [B, m] int64, ids of the given nodes, or None; the forecast is the same with either.

        Returns:
            [B, horizon, N or m, 1] float. Every node's forecast depends on its own values alone.

        Raises:
            TypeError: x is not floating point, or node is not int64.
            ValueError: a shape differs from what the model was built for.
        """
        check_input("TSMixer", x, node, history=self.history, num_nodes=None)
        value = x[..., 0].transpose(1, 2)
        mean = value.mean(dim=-1, keepdim=True)
        value = value - mean
        scale = (value.square().mean(dim=-1, keepdim=True) + _SMALLEST_VARIANCE).sqrt()
        hidden = self.layers(self.input_map((value / scale).unflatten(-1, (-1, self.patch_length))))
        forecast: Tensor = self.head(hidden.flatten(-2)) * scale + mean
        return forecast.transpose(1, 2).unsqueeze(-1)
