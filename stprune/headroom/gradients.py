"""Gradients of single (window, node) pairs and of whole windows, boiled down to what variances need."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from stprune.headroom.batches import FEWEST
from stprune.headroom.losses import Loss, entries, pair_means
from stprune.ops import draw_nodes, gather_nodes

Array = NDArray[np.float64]
Numbers = NDArray[np.float64] | NDArray[np.int64] | float
# Float32 gradients of all windows are kept until their products are taken; more than this and only the last layer's are.
_MOST_BYTES = 1 << 29
# Columns of the gradients that are widened to float64 at a time.
_COLUMNS = 1 << 14
# Windows whose gradients are averaged before they are compared.
_GROUP = 16


@dataclass(frozen=True)
class GradientStats:
    """Products of the gradients of W windows; the gradients themselves are gone.

    A window's gradient is that of its loss over all N nodes, the mean over its pairs' gradients.

    Attributes:
        gram: [W, W] float64, inner products of the windows' gradients.
        within: [W] float64, estimate of the variance (divisor N - 1, summed over parameters) of a window's pair gradients.
        num_nodes: N.
    """

    gram: Array
    within: Array
    num_nodes: int


def measured_parameters(model: nn.Module, layers: str, num_windows: int) -> list[nn.Parameter]:
    """The parameters whose gradients are measured.

    Args:
        model: the model.
        layers: "all", "last" (those of the last module that has any) or "auto": all where the gradients of the windows
            fit in 512 MiB, else the last.
        num_windows: windows whose gradients are kept.

    Returns:
        Parameters that take a gradient.

    Raises:
        ValueError: the model has none.
    """
    every = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not every:
        raise ValueError("headroom: model must have parameters that take a gradient, got none")
    size = 4 * num_windows * sum(parameter.numel() for parameter in every)
    if layers == "all" or (layers == "auto" and size <= _MOST_BYTES):
        return every
    owners = [module for module in model.modules() if any(p.requires_grad for p in module.parameters(recurse=False))]
    return [parameter for parameter in owners[-1].parameters(recurse=False) if parameter.requires_grad]


def pair_gradients(losses: Tensor, parameters: Sequence[Tensor], cotangents: Tensor) -> Tensor:
    """Gradients of several weighted sums of losses, by one backward pass over all of them at once (torch.func's vmap).

    Args:
        losses: [N] with a graph, which is used up.
        parameters: with P entries together.
        cotangents: [K, N] weights of the sums.

    Returns:
        [K, P] float32 or wider; 0 for a parameter that the losses do not depend on.
    """
    count = len(cotangents)
    found: list[Tensor | None]
    try:
        found = list(
            torch.autograd.grad(losses, parameters, cotangents, is_grads_batched=True, allow_unused=True, retain_graph=True)
        )
    except RuntimeError:
        # A backward that cannot be batched (a user's own autograd function, say): one pass per sum.
        single = [torch.autograd.grad(losses, parameters, each, allow_unused=True, retain_graph=True) for each in cotangents]
        found = [None if parts[0] is None else torch.stack(parts) for parts in zip(*single, strict=True)]
    flat = [
        parameter.new_zeros(count, parameter.numel()) if part is None else part.reshape(count, -1)
        for part, parameter in zip(found, parameters, strict=True)
    ]
    return torch.cat(flat, dim=1)


def measure_gradients(
    model: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    parameters: Sequence[Tensor],
    *,
    loss: Loss,
    null_value: float | None,
    null_tolerance: float = 0.0,
    num_pairs: int,
    seed: int,
    deadline: float,
    progress: Callable[[int], None],
) -> GradientStats:
    """Gradients of the windows, and of `num_pairs` uniformly drawn pairs of each, with all nodes as the model's input.

    The gradient of a pair is that of the pair's term of the loss. Where nodes are computed apart it is the same as if only
    that node had been given; where they interact it is not, and there is no separate one.

    Args:
        model: in evaluation mode, so that nothing is random; its parameters' `grad` is not touched.
        batches: pairs (x, y), on the model's device.
        parameters: of the model.
        loss: of entries, unreduced.
        null_value, null_tolerance: what target values mean missing, as for `entries`.
        num_pairs: pairs of each window, at least 2 unless there is only one node.
        seed: of the drawn pairs.
        deadline: time.perf_counter() after which no new window is begun, once there are 8.
        progress: called with 1 after every window.

    Returns:
        The products, of fewer windows than asked for where the deadline came first.
    """
    num_nodes = batches[0][0].shape[2]
    count = min(num_pairs, num_nodes)
    vectors: list[Tensor] = []
    within: list[float] = []
    windows = ((x[i : i + 1], y[i : i + 1]) for x, y in batches for i in range(len(x)))
    # Plain attention and plain recurrent layers: their backward can be batched, and runs in evaluation mode.
    with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False), torch.enable_grad():
        for number, (x, y) in enumerate(windows):
            if len(vectors) >= FEWEST and time.perf_counter() > deadline:
                break
            losses = pair_means(entries(model(x), y, loss, null_value, null_tolerance)[0])[0]
            node = draw_nodes(torch.tensor([number]), num_nodes=num_nodes, count=count, seed=seed, epoch=0)[0]
            # The window's own gradient rides along as the last sum.
            cotangents = losses.new_zeros(count + 1, num_nodes)
            cotangents[torch.arange(count), node] = 1.0
            cotangents[count] = 1.0 / num_nodes
            gradients = pair_gradients(losses, parameters, cotangents)
            vectors.append(gradients[count].float().cpu())
            within.append(spread(gradients[:count]))
            progress(1)
    return GradientStats(gram(torch.stack(vectors)), np.array(within), num_nodes)


def drawn_bias(
    model: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    parameters: Sequence[Tensor],
    *,
    num_drawn: int,
    loss: Loss,
    null_value: float | None,
    null_tolerance: float = 0.0,
    seed: int,
) -> float:
    """How far the mean gradient moves when the model is given drawn nodes only: nowhere unless nodes interact.

    Args:
        model, batches, parameters, loss, null_value, null_tolerance: as for `measure_gradients`.
        num_drawn: nodes drawn per window.
        seed: of the draws.

    Returns:
        Squared length of the difference of the mean gradients; unbiased, so that nothing may come out below 0.
    """
    num_nodes = batches[0][0].shape[2]
    size = min(_GROUP, max(1, sum(len(x) for x, _ in batches) // FEWEST))
    groups = [part for x, y in batches for part in zip(x.split(size), y.split(size), strict=True)]
    moved: list[Tensor] = []
    first = 0
    with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False), torch.enable_grad():
        for x, y in groups:
            index = torch.arange(first, first + len(x), device=x.device)
            first += len(x)
            node = draw_nodes(index, num_nodes=num_nodes, count=num_drawn, seed=seed, epoch=1)
            full = pair_means(entries(model(x), y, loss, null_value, null_tolerance)[0]).mean()
            target = gather_nodes(y, node)
            forecast = model(gather_nodes(x, node), node=node)
            few = pair_means(entries(forecast, target, loss, null_value, null_tolerance)[0]).mean()
            moved.append(pair_gradients((few - full)[None], parameters, few.new_ones(1, 1))[0].float().cpu())
    products = gram(torch.stack(moved))
    return float((products.sum() - products.trace()) / (len(moved) * (len(moved) - 1)))


def spread(gradients: Tensor) -> float:
    """Sample variance of vectors [K, P] about their mean, summed over P; 0 for a single one."""
    if len(gradients) < 2:
        return 0.0
    centred = gradients - gradients.mean(dim=0)
    return float(centred.square().sum(dtype=torch.float64)) / (len(gradients) - 1)


def gram(vectors: Tensor) -> Array:
    """[W, W] float64 inner products of vectors [W, P], which differences of nearly equal ones survive."""
    total = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
    for part in vectors.split(_COLUMNS, dim=1):
        wide = part.double()
        total += wide @ wide.T
    return total.numpy()
