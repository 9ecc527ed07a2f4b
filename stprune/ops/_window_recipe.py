"""What gather_windows and WindowLoader are asked to make of every window, checked once."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stprune.ops import _check
from stprune.ops._series import as_series
from stprune.reference.precision import accumulator

LAYOUTS = ("BTNC", "BNTC", "BCTN", "BCNT", "TBNC", "BTN", "BNT")
"""Orders of batch, time, node and channel; those without C are for one channel."""

SERIES_DTYPES = (*_check.FLOAT_DTYPES, torch.int16)


@dataclass(frozen=True)
class WindowRecipe:
    """Everything but the windows themselves.

    Attributes:
        op: name for error messages.
        series: [time, node, channel], a view of the caller's.
        dtype: of x and y.
        layout: one of LAYOUTS.
        mean, std, scale, offset: [node, channel] or [1, 1] on the series' device, or None.
        missing: int16 code that becomes NaN, or None.
        fill: what replaces NaN in x, or None.
        time_features: [time, features] of `dtype` on the series' device, or None.
        channels: channels of y.
        normalize_target: whether y is normalised as well.
    """

    op: str
    series: Tensor
    dtype: torch.dtype
    layout: str
    mean: Tensor | None
    std: Tensor | None
    scale: Tensor | None
    offset: Tensor | None
    missing: int | None
    fill: float | None
    time_features: Tensor | None
    channels: tuple[int, ...]
    normalize_target: bool

    @property
    def input_channels(self) -> int:
        """Channels of x."""
        return int(self.series.shape[2]) + (0 if self.time_features is None else int(self.time_features.shape[1]))

    def shapes(self, windows: int, nodes: int, history: int, horizon: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of x and y in the layout."""
        size = {"B": windows, "N": nodes}
        x = {**size, "T": history, "C": self.input_channels}
        y = {**size, "T": horizon, "C": len(self.channels)}
        return tuple(x[axis] for axis in self.layout), tuple(y[axis] for axis in self.layout)

    def fill_in(self, start: Tensor, node: Tensor | None, x: Tensor, y: Tensor, *, parallel: bool = True) -> None:
        """Write the windows that begin at `start` [B] into contiguous x and y of the layout; ids must be in range."""
        torch.ops.stprune.gather_windows.default(
            self.series,
            start,
            node,
            self.mean,
            self.std,
            self.scale,
            self.offset,
            self.missing,
            self.fill,
            self.time_features,
            self.channels,
            self.normalize_target,
            parallel,
            _canonical(x, self.layout),
            _canonical(y, self.layout),
        )


def make_recipe(
    op: str,
    series: Any,
    *,
    layout: str,
    mean: Any,
    std: Any,
    scale: Any,
    offset: Any,
    missing: Any,
    fill: Any,
    time_features: Any,
    target_channels: Any,
    normalize_target: bool,
    dtype: torch.dtype | None,
) -> WindowRecipe:
    """Check the arguments and bring them into the kernels' form."""
    series = _gathered(op, series)
    layout = _check.choice(op, "layout", layout, LAYOUTS)
    dtype = _output_dtype(op, series, dtype)
    if series.dtype != torch.int16:
        for name, value in (("scale", scale), ("offset", offset), ("missing", missing)):
            if value is not None:
                raise ValueError(f"{op}: {name} must be None unless series is int16, got {value!r} with {series.dtype}")
    if missing is not None:
        missing = _check.integer(op, "missing", missing, -(2**15), 2**15 - 1)
    if fill is not None:
        fill = _number(op, "fill", fill)
    if std is not None and mean is None:
        mean = 0.0
    if mean is not None and std is None:
        std = 1.0
    if normalize_target and mean is None:
        raise ValueError(f"{op}: normalize_target must be False without mean and std, got {normalize_target!r}")
    recipe = WindowRecipe(
        op=op,
        series=series,
        dtype=dtype,
        layout=layout,
        mean=_table(op, "mean", mean, series),
        std=_table(op, "std", std, series, positive=True),
        scale=_table(op, "scale", scale, series),
        offset=_table(op, "offset", offset, series),
        missing=missing,
        fill=fill,
        time_features=_features(op, time_features, series, dtype),
        channels=_channels(op, target_channels, series.shape[2]),
        normalize_target=bool(normalize_target),
    )
    for name, count in (("x", recipe.input_channels), ("y", len(recipe.channels))):
        if "C" not in layout and count != 1:
            raise ValueError(f"{op}: layout must have a C when {name} has {count} channels, got {layout!r}")
    return recipe


def _gathered(op: str, series: Any) -> Tensor:
    """The series as a [time, node, channel] view that the kernels read."""
    cube: Tensor = as_series(op, _check.tensor(op, "series", series))
    if cube.dtype not in SERIES_DTYPES:
        raise TypeError(f"{op}: series must be float32, float64, bfloat16, float16 or int16, got {cube.dtype}")
    if cube.requires_grad:
        raise ValueError(f"{op}: series must not require a gradient, which the op cannot give; pass series.detach()")
    return cube


def _output_dtype(op: str, series: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    own = torch.float32 if series.dtype == torch.int16 else series.dtype
    if dtype is None:
        return own
    if dtype not in (own, torch.float32):
        allowed = "float32" if own == torch.float32 else f"{str(own).removeprefix('torch.')} or float32"
        raise TypeError(f"{op}: dtype must be {allowed} for a series of {series.dtype}, got {dtype}")
    return dtype


def _number(op: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{op}: {name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{op}: {name} must be finite, got {value}")
    return float(value)


def _table(op: str, name: str, value: Any, series: Tensor, *, positive: bool = False) -> Tensor | None:
    """A number, or what broadcasts to [node, channel], as a table on the series' device."""
    if value is None:
        return None
    wide = accumulator(series.dtype)
    shape = tuple(series.shape[1:])
    if isinstance(value, Tensor) or hasattr(value, "__array__"):
        table = torch.as_tensor(value).detach()
        if table.is_complex() or table.dtype == torch.bool:
            raise TypeError(f"{op}: {name} must hold real numbers, got {table.dtype}")
        try:
            table = table.reshape(1, 1) if table.numel() == 1 else table.expand(shape)
        except RuntimeError:
            raise ValueError(
                f"{op}: {name} must be a number or broadcast to [node, channel] = {list(shape)}, got shape {tuple(table.shape)}"
            ) from None
        table = table.to(wide)
    else:
        table = torch.full((1, 1), _number(op, name, value), dtype=wide)
    if torch.compiler.is_compiling():
        # Looking at values would break the graph.
        return table.to(series.device).contiguous()
    finite = torch.isfinite(table)
    if not bool(finite.all()):
        raise ValueError(f"{op}: {name} must be finite, got {table[~finite][0].item()}")
    if positive and not bool((table > 0).all()):
        raise ValueError(f"{op}: {name} must be greater than 0, got {table.min().item():g}")
    return table.to(series.device).contiguous()


def _features(op: str, time_features: Any, series: Tensor, dtype: torch.dtype) -> Tensor | None:
    if time_features is None:
        return None
    time_features = _check.floating(op, "time_features", time_features)
    if dtype not in (torch.float32, torch.float64):
        # In 16 bits the last minutes of a day round to 1.0, one step beyond a time-of-day embedding.
        raise TypeError(f"{op}: dtype must be float32 or float64 for time_features, got {dtype}")
    if time_features.dim() != 2 or time_features.shape[0] != series.shape[0] or time_features.shape[1] == 0:
        raise ValueError(
            f"{op}: time_features must be [time, feature] with a row for each of {series.shape[0]}, "
            f"got shape {tuple(time_features.shape)}"
        )
    return time_features.detach().to(series.device, dtype).contiguous()


def _channels(op: str, target_channels: int | Sequence[int] | None, num_channels: int) -> tuple[int, ...]:
    if target_channels is None:
        return tuple(range(num_channels))
    if hasattr(target_channels, "__index__"):
        wanted: list[Any] = [target_channels]
    elif isinstance(target_channels, Sequence) and not isinstance(target_channels, str):
        wanted = list(target_channels)
    else:
        raise TypeError(f"{op}: target_channels must be an int or ints, got {target_channels!r}")
    channels = tuple(_check.integer(op, "target_channels", c, 0, num_channels - 1) for c in wanted)
    if not channels or len(set(channels)) < len(channels):
        raise ValueError(f"{op}: target_channels must be distinct and at least one, got {list(channels)}")
    return channels


def _canonical(out: Tensor, layout: str) -> Tensor:
    """The [B, T, N, C] view of a tensor in the layout."""
    if layout == "BTNC":
        return out
    if "C" not in layout:
        out, layout = out.unsqueeze(-1), layout + "C"
    if layout == "BTNC":
        return out
    return out.permute([layout.index(axis) for axis in "BTNC"])
