"""Reference of window_stats and node_moments: every window on its own, in float64, straight from the definitions."""

from __future__ import annotations

import torch

SPAN = 4096
"""Columns that share one partial sum; mirrored in csrc/cpu/window_stats.h."""

MOMENT_ROWS = 1024
"""Rows of one block of moments; likewise."""

SUMS = ("mean", "variance", "trend", "autocorrelation", "drift", "num_nodes", "num_drifts", "num_valid")
"""What the sums over nodes hold, in this order; per node the sixth place is the missing share and the last."""

# Entries materialised at a time: float64 temporaries of 16 MB.
_ENTRIES = 1 << 21


def valid_entries(series: torch.Tensor, null_value: float | None) -> torch.Tensor:
    """Bool, shape of `series`: neither NaN nor the null value, which is first rounded to the series' dtype."""
    valid = ~series.isnan()
    if null_value is not None:
        valid &= series != series.new_full((), null_value, dtype=torch.float64).to(series.dtype)
    return valid


def window_stats(
    series: torch.Tensor,
    history: int,
    horizon: int,
    stride: int,
    phase: int,
    null_value: float | None,
    inverse_std: torch.Tensor,
    per_node: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over nodes [spans, num_windows, 8] float64, or values [6, num_windows, columns] float32; and [1] bool.

    The second result tells whether a valid entry of a window is infinite. `phase` (the first row's place in the
    unbroken series, modulo the window's length) fixes the order of the compiled kernels' sums and means nothing here.
    """
    columns = series.shape[1]
    length = history + horizon
    num_windows = 0 if series.shape[0] < length else (series.shape[0] - length) // stride + 1
    valid = valid_entries(series, null_value)
    starts = stride * torch.arange(num_windows, device=series.device)
    rows = torch.arange(length, device=series.device)
    parts, infinite = [], torch.zeros(1, dtype=torch.bool, device=series.device)
    step = max(1, _ENTRIES // max(1, length * columns))
    for first in range(0, num_windows, step):
        place = starts[first : first + step, None] + rows
        x, kept = series[place].double(), valid[place]
        infinite |= (x.isinf() & kept).any()
        parts.append(_measure(x, kept, history, inverse_std))
    values = torch.cat(parts, 1) if parts else series.new_empty((8, 0, columns), dtype=torch.float64)
    if not per_node:
        shown = torch.nan_to_num(values, nan=0.0, posinf=torch.inf, neginf=-torch.inf)
        return torch.stack([span.sum(2).T for span in shown.split(SPAN, 2)]).contiguous(), infinite
    values[5] = 1.0 - values[7] / length
    return values[:6].float(), infinite


def _measure(x: torch.Tensor, kept: torch.Tensor, history: int, inverse_std: torch.Tensor) -> torch.Tensor:
    """[8, windows, columns] in the order of SUMS, NaN where unknown, of windows [windows, length, columns]."""
    length = x.shape[1]
    entries = kept.sum(1).double()
    n = entries.clamp(min=1.0)
    # About a value of the window itself, so that a constant window gives exact zeros.
    centre = x.gather(1, kept.to(torch.uint8).argmax(1, keepdim=True))
    distance = torch.where(kept, x - centre, 0.0)
    offset = distance.sum(1) / n
    deviation = torch.where(kept, distance - offset[:, None], 0.0)
    squares = deviation.square().sum(1)

    position = torch.arange(length, dtype=torch.float64, device=x.device)[:, None]
    middle = (kept * position).sum(1) / n
    lever = torch.where(kept, position - middle[:, None], 0.0)
    spread = lever.square().sum(1)
    trend = (lever * deviation).sum(1) / torch.where(spread > 0, spread, 1.0)
    neighbours = (deviation[:, 1:] * deviation[:, :-1]).sum(1)
    autocorrelation = neighbours / torch.where(squares > 0, squares, 1.0)

    past, future = kept[:, :history].sum(1).double(), kept[:, history:].sum(1).double()
    x_mean = distance[:, :history].sum(1) / past.clamp(min=1.0)
    y_mean = distance[:, history:].sum(1) / future.clamp(min=1.0)
    drifts = (past > 0) & (future > 0) & (inverse_std > 0)
    drift = (y_mean - x_mean).abs() * inverse_std

    known = entries > 0
    measured = [centre[:, 0] + offset, squares / n, trend, autocorrelation]
    shown = [torch.where(known, value, torch.nan) for value in measured]
    return torch.stack([*shown, torch.where(drifts, drift, torch.nan), known.double(), drifts.double(), entries])


def node_moments(series: torch.Tensor, null_value: float | None) -> torch.Tensor:
    """[blocks, 4, columns] float64: count, centre, sum and sum of squares about it, of every MOMENT_ROWS rows.

    The centre is the block's first valid value, NaN where it has none.
    """
    blocks = []
    for first in range(0, series.shape[0], MOMENT_ROWS):
        x = series[first : first + MOMENT_ROWS]
        valid = valid_entries(x, null_value)
        x = x.double()
        centre = x.gather(0, valid.to(torch.uint8).argmax(0, keepdim=True))
        centre = torch.where(valid.any(0), centre[0], torch.nan)
        distance = torch.where(valid, x - centre, 0.0)
        blocks.append(torch.stack([valid.sum(0).double(), centre, distance.sum(0), distance.square().sum(0)]))
    return torch.stack(blocks) if blocks else series.new_empty((0, 4, series.shape[1]), dtype=torch.float64)
