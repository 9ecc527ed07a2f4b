"""The optimizers of a study."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stprune.study.spec import OPTIMIZERS, Spec

WEIGHT_DECAY = 1e-4
# Linear maps at both ends of the models: by Muon's own advice they are not orthogonalised.
_ENDS = ("input_map", "head")


class Together:
    """Several optimizers, each with parameters of its own, driven as one.

    Args:
        parts: the optimizers; their groups are shared, not copied.
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        self.param_groups: list[dict[str, Any]] = [group for part in parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        """One step of every part."""
        for part in self.parts:
            part.step()


def make_optimizer(spec: Spec, model: nn.Module) -> torch.optim.Optimizer | Together:
    """The optimizer of a run; every group starts at `spec.learning_rate` and keeps it as "initial_lr".

    - "adam": Adam, fused.
    - "sgd": SGD with momentum 0.9.
    - "muon": Muon (Jordan et al., 2024) for the matrices of the hidden linear layers, Adam for all else: embeddings, biases,
      norms, the maps `input_map` and `head` at both ends. Muon's updates are scaled to the size of Adam's (Liu et al., Muon is
      Scalable for LLM Training, 2025, section 2.2), so one learning rate serves both.

    Weight decay is 1e-4: part of the gradient in Adam and SGD, as usual in the field, and apart from it in Muon.

    Args:
        spec: of the run.
        model: its parameters are updated in place.

    Raises:
        ValueError: `spec.optimizer` is no name from `OPTIMIZERS`.
    """
    rate = spec.learning_rate
    optimizer: torch.optim.Optimizer | Together
    if spec.optimizer == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=rate, weight_decay=WEIGHT_DECAY, fused=True)
    elif spec.optimizer == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=WEIGHT_DECAY, fused=True)
    elif spec.optimizer == "muon":
        hidden = hidden_weights(model)
        ids = {id(weight) for weight in hidden}
        others = [each for each in model.parameters() if id(each) not in ids]
        optimizer = Together(
            torch.optim.Muon(hidden, lr=rate, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
            torch.optim.Adam(others, lr=rate, weight_decay=WEIGHT_DECAY, fused=True),
        )
    else:
        raise ValueError(f"make_optimizer: optimizer must be one of {', '.join(OPTIMIZERS)}, got {spec.optimizer}")
    for group in optimizer.param_groups:
        group["initial_lr"] = rate
    return optimizer


def hidden_weights(model: nn.Module) -> list[Tensor]:
    """The matrices that Muon updates: of all linear layers but those named `input_map` or `head`."""
    return [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] not in _ENDS
    ]
