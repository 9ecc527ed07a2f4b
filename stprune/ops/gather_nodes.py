"""gather_nodes: the drawn nodes of every sample."""

from __future__ import annotations

import math
from typing import Any

import torch

from stprune.ops import _check
from stprune.ops._registry import define, define_autograd
from stprune.reference import gather_nodes as reference


def _fake(x: torch.Tensor, node: torch.Tensor) -> torch.Tensor:
    return x.new_empty((x.shape[0], x.shape[1], node.shape[1], x.shape[3]))


def _backward_fake(grad: torch.Tensor, node: torch.Tensor, num_nodes: int) -> torch.Tensor:
    return grad.new_empty((grad.shape[0], grad.shape[1], num_nodes, grad.shape[3]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, node = inputs
    ctx.save_for_backward(node)
    ctx.num_nodes = x.shape[2]


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
    (node,) = ctx.saved_tensors
    return torch.ops.stprune.gather_nodes_backward(grad.contiguous(), node, ctx.num_nodes), None


def _backward_setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _double_backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
    # The backward is linear in its input, and its adjoint is the op itself.
    (node,) = ctx.saved_tensors
    return torch.ops.stprune.gather_nodes(grad.contiguous(), node), None, None


def _plain(x: torch.Tensor, node: torch.Tensor) -> torch.Tensor:
    """The reference, with an assertion that names the argument on a GPU for which no library was compiled."""
    if x.is_cuda:
        _check.ids_on_device("gather_nodes", "node", node, x.shape[2] - 1)
    return reference.gather_nodes(x, node)


define("gather_nodes(Tensor x, Tensor node) -> Tensor", _plain, _fake)
define_autograd("gather_nodes", _backward, _setup_context)
define(
    "gather_nodes_backward(Tensor grad, Tensor node, SymInt num_nodes) -> Tensor",
    reference.gather_nodes_backward,
    _backward_fake,
)
define_autograd("gather_nodes_backward", _double_backward, _backward_setup_context)


def _check_range(node: torch.Tensor, shape: tuple[int, ...], axis: int) -> None:
    num_nodes = shape[axis]
    if node.numel() == 0:
        return
    if num_nodes == 0:
        raise ValueError(f"gather_nodes: node must be empty where x has no nodes, got shape {tuple(node.shape)}")
    # Only where reading the values costs nothing: on an accelerator it would wait for the device, in a traced graph it
    # would break it. The kernels check there: see Raises.
    if node.device.type != "cpu" or torch.compiler.is_compiling():
        return
    low, high = (int(bound) for bound in torch.aminmax(node))
    if low < 0 or high >= num_nodes:
        got = low if low < 0 else high
        hint = f"; x of shape {shape} has its nodes in dimension dim={axis}"
        raise ValueError(f"gather_nodes: node must lie in [0, {num_nodes - 1}], got {got}{hint}")


def gather_nodes(x: torch.Tensor, node: torch.Tensor, *, dim: int = 2) -> torch.Tensor:
    """The nodes `node[b]` of every sample b, in the order given; a node may repeat.

    Differentiable in `x`, also twice: the backward adds gradients up at their nodes, those of a repeated node in the
    order of `node`, with the same bits for any number of threads (bfloat16 and float16 add up in float32).

    Args:
        x: [B, T, N, C], or any shape with samples first and nodes at `dim`; any dtype; not modified.
        node: [B, m] int64 node ids in [0, N), on the device of `x`; not modified.
        dim: where the nodes are; negative counts from the end; never the sample dimension 0.

    Returns:
        [B, T, m, C]: `x` with its node dimension replaced by the m gathered nodes, contiguous.

    Raises:
        TypeError: `x` is no tensor, `node` no int64 tensor, or `dim` no integer.
        ValueError: `x` has fewer than two dimensions, `node` is not [B, m], `dim` is out of range or 0, or an id lies
            outside [0, N). Inside torch.compile the CPU kernel reports such an id as a RuntimeError, and on CUDA it
            is the device's assertion, since looking at ids from the host would wait for the device.
        RuntimeError: `x` and `node` on different devices.

    Example:
        >>> import torch, stprune
        >>> x = torch.arange(8.0).reshape(2, 1, 4, 1)
        >>> stprune.gather_nodes(x, torch.tensor([[3, 0], [1, 1]])).flatten()
        tensor([3., 0., 5., 5.])

    Source:
        Node draws inside kept windows: methods/README.md, eq. 12-13.
    """
    x = _check.tensor("gather_nodes", "x", x)
    node = _check.tensor("gather_nodes", "node", node)
    if x.dim() < 2:
        raise ValueError(f"gather_nodes: x must have at least two dimensions, got shape {tuple(x.shape)}")
    if node.dtype != torch.int64:
        raise TypeError(f"gather_nodes: node must be int64, got {node.dtype}")
    if node.dim() != 2 or node.shape[0] != x.shape[0]:
        raise ValueError(f"gather_nodes: node must have shape [B, m] with B = {x.shape[0]}, got {tuple(node.shape)}")
    axis = _check.integer("gather_nodes", "dim", dim, -x.dim(), x.dim() - 1) % x.dim()
    if axis == 0:
        raise ValueError(f"gather_nodes: dim must not be the sample dimension 0, got {dim}")
    if node.device != x.device:
        raise RuntimeError(f"gather_nodes: node must be on the device of x, {x.device}, got {node.device}")
    shape = tuple(x.shape)
    _check_range(node, shape, axis)
    inner = math.prod(shape[axis + 1 :])
    grid = x.reshape(shape[0], math.prod(shape[1:axis]), shape[axis], inner)
    # Windows of one series overlap in memory; only nodes and channels have to lie side by side, so they need no copy.
    if not ((inner <= 1 or grid.stride(3) == 1) and (shape[axis] <= 1 or grid.stride(2) == inner)):
        grid = grid.contiguous()
    out = torch.ops.stprune.gather_nodes(grid, node.contiguous())
    return out.reshape(*shape[:axis], node.shape[1], *shape[axis + 1 :])
