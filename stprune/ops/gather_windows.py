"""gather_windows: history and horizon of the given windows, straight from the series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stprune.ops import _check, _registry
from stprune.ops._window_recipe import WindowRecipe, make_recipe
from stprune.reference.gather_windows import gather_windows as reference

_OP = "gather_windows"


def _fake(*args: Any) -> None:
    return None


def _plain(series: Tensor, start: Tensor, node: Tensor | None, *args: Any) -> None:
    """The reference, with assertions that name the argument: those of indexing do not, and the kernel has its own."""
    x, y = args[-2:]
    _check.ids_on_device(_OP, "start", start, series.shape[0] - x.shape[1] - y.shape[1])
    if node is not None:
        _check.ids_on_device(_OP, "node", node, series.shape[1] - 1)
    reference(series, start, node, *args)


_registry.define(
    "gather_windows(Tensor series, Tensor start, Tensor? nodes, Tensor? mean, Tensor? std, Tensor? scale, Tensor? offset, "
    "int? missing, float? fill, Tensor? time_features, int[] channels, bool normalize_target, bool parallel, "
    "Tensor(a!) x, Tensor(b!) y) -> ()",
    reference,
    _fake,
)
_cuda = _registry.by_triton(_OP, _plain)
_registry.define_cuda(_OP, _cuda)


def gather_windows(
    series: Tensor,
    start: Tensor,
    *,
    history: int,
    horizon: int,
    node: Tensor | None = None,
    layout: str = "BTNC",
    mean: float | Tensor | None = None,
    std: float | Tensor | None = None,
    normalize_target: bool = False,
    time_features: Tensor | None = None,
    target_channels: int | Sequence[int] | None = None,
    scale: float | Tensor | None = None,
    offset: float | Tensor | None = None,
    missing: int | None = None,
    fill: float | None = None,
    dtype: torch.dtype | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Inputs x and targets y of the windows that begin at rows `start`, cut, normalised and laid out in one pass.

    The value v of a float series is taken as it is; that of an int16 series is ``raw * scale + offset``, NaN where raw is
    `missing`. x holds ``(v - mean) / std``, then `fill` where that is NaN, and the time features of its rows as further
    channels, the same for all nodes; y holds v. All of it is computed in float32, step by step as written (float64 for a
    float64 series), and rounded once to `dtype`; without mean, std, scale, offset and fill values are copied bit for bit.
    The result depends on no thread count and no device.

    Args:
        series: [time, node, channel] or [time, node] (one channel), float32, float64, float16, bfloat16 or int16, any
            strides; not modified.
        start: [B] int64 first rows, in any order, repeats allowed, on the series' device or the CPU; not modified.
        history: rows of x, at least 1; x takes rows start .. start + history - 1.
        horizon: rows of y, at least 1; y takes the rows after them.
        node: [B, m] int64 nodes of each window, in any order, on the series' device or the CPU; None: all nodes.
        layout: order of batch, time, node and channel in x and y: "BTNC", "BNTC", "BCTN", "BCNT", "TBNC", or "BTN", "BNT"
            where x and y have one channel.
        mean, std: a number, or what broadcasts to [node, channel] (per channel [channel], per node [node, 1]); std > 0. One
            without the other means mean 0 or std 1. None: no normalisation.
        normalize_target: normalise y as well; otherwise it stays in the series' unit.
        time_features: [time, feature] floating, appended to x unchanged; see `time_features`.
        target_channels: channel or distinct channels of y, in this order; None: all.
        scale, offset: of an int16 series, as mean and std; None: 1 and 0.
        missing: int16 code of a missing value.
        fill: number in place of NaN in x; y keeps its NaN.
        dtype: of x and y: the series' own (float32 for int16), which is the default, or float32.
        out: (x, y) of an earlier call of the same sizes, to be written over; new memory otherwise.

    Returns:
        x and y, contiguous in the layout, on the series' device. For "BTNC": [B, history, m, channel + feature] and
        [B, horizon, m, targets], m being all nodes without `node`.

    Raises:
        TypeError: an argument has another type or dtype than listed.
        ValueError: a shape, layout, channel, std <= 0 or non-finite number breaks its rule; a start lies outside
            [0, time - history - horizon] or a node outside the series, before anything is read (ids on a GPU are asserted
            on the device instead, by the name of op and argument, as looking at them would wait for it; inside
            torch.compile the CPU kernel reports ids as a RuntimeError, and values of mean and std are not looked at).
        RuntimeError: `start` or `node` is on another accelerator than the series.

    Example:
        >>> import torch, stprune
        >>> from stprune.ops import gather_windows
        >>> series = torch.arange(20.0).reshape(10, 2)
        >>> x, y = gather_windows(series, torch.tensor([0, 7]), history=2, horizon=1, layout="BNT")
        >>> x.tolist(), y.tolist()
        ([[[0.0, 2.0], [1.0, 3.0]], [[14.0, 16.0], [15.0, 17.0]]], [[[4.0], [5.0]], [[18.0], [19.0]]])

    Source:
        Windows as WindowDataset defines them; layouts of LargeST and BasicTS (BTNC), Graph WaveNet (BCNT), STGCN (BCTN) and
        DCRNN (TBNC).
    """
    recipe = make_recipe(
        _OP,
        series,
        layout=layout,
        mean=mean,
        std=std,
        scale=scale,
        offset=offset,
        missing=missing,
        fill=fill,
        time_features=time_features,
        target_channels=target_channels,
        normalize_target=normalize_target,
        dtype=dtype,
    )
    history = _check.integer(_OP, "history", history, 1)
    horizon = _check.integer(_OP, "horizon", horizon, 1)
    num_times, num_nodes = recipe.series.shape[:2]
    if num_times < history + horizon:
        raise ValueError(f"{_OP}: series must hold at least history + horizon = {history + horizon} rows, got {num_times}")
    start = _check.index(_OP, "start", start)
    _check.ids(_OP, "start", start, num_times - history - horizon)
    if node is not None:
        node = _check.tensor(_OP, "node", node)
        if node.dtype != torch.int64:
            raise TypeError(f"{_OP}: node must be int64, got {node.dtype}")
        if node.dim() != 2 or node.shape[0] != start.shape[0]:
            raise ValueError(f"{_OP}: node must have shape [B, m] with B = {start.shape[0]}, got {tuple(node.shape)}")
        _check.ids(_OP, "node", node, num_nodes - 1)
        node = _placed("node", node, series.device)
    start = _placed("start", start, series.device)
    shapes = recipe.shapes(start.shape[0], num_nodes if node is None else node.shape[1], history, horizon)
    x, y = _outputs(recipe, shapes, out)
    recipe.fill_in(start, node, x, y)
    return x, y


def _placed(name: str, ids: Tensor, device: torch.device) -> Tensor:
    if ids.device != device and ids.device.type != "cpu":
        raise RuntimeError(f"{_OP}: {name} must be on the device of series, {device}, or the CPU, got {ids.device}")
    return ids.to(device, non_blocking=True).contiguous()


def _outputs(recipe: WindowRecipe, shapes: tuple[tuple[int, ...], tuple[int, ...]], out: Any) -> tuple[Tensor, Tensor]:
    device, dtype = recipe.series.device, recipe.dtype
    if out is None:
        x, y = (torch.empty(shape, dtype=dtype, device=device) for shape in shapes)
        return x, y
    if not isinstance(out, (tuple, list)) or len(out) != 2:
        raise TypeError(f"{_OP}: out must be a pair (x, y) of tensors, got {type(out).__name__}")
    for name, tensor, shape in zip(("x", "y"), out, shapes, strict=True):
        tensor = _check.tensor(_OP, f"{name} of out", tensor)
        if tensor.dtype != dtype or tuple(tensor.shape) != shape or tensor.device != device or not tensor.is_contiguous():
            raise ValueError(
                f"{_OP}: {name} of out must be contiguous {dtype} {list(shape)} on {device}, got {tensor.dtype} "
                f"{list(tensor.shape)} on {tensor.device}"
            )
    return out[0], out[1]
