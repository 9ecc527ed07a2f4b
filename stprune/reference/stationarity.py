"""Oracle of ``stprune.stationarity``: every window computed on its own, in float64, straight from the equation."""

from __future__ import annotations

import torch
from torch import Tensor


def stationarity(
    series: Tensor,
    *,
    history: int,
    horizon: int,
    stride: int = 1,
    mask: Tensor | None = None,
    null_value: float | None = None,
) -> Tensor:
    """Drift between the history and the horizon of every window, one window at a time.

    Args:
        series: [time, node] or [time, node, channel], any real dtype; NaN is missing. Not modified.
        history: Steps before the cut of a window.
        horizon: Steps after the cut.
        stride: Steps between the starts of neighbouring windows.
        mask: Bool, shape of ``series``; False removes an entry. Not modified.
        null_value: Entries equal to it are removed too.

    Returns:
        [num_windows] float64, in the order of the windows' starts; NaN where no node can be measured.

    Example:
        >>> import torch
        >>> stationarity(torch.tensor([[0.0], [0.0], [2.0], [2.0]]), history=2, horizon=2)
        tensor([2.], dtype=torch.float64)

    Source:
        Our definition, eq. 9: z = mean_n |mean_t y - mean_t x| / std_n.
    """
    values = series.reshape(series.shape[0], -1).to(torch.float64)
    valid = ~torch.isnan(values)
    if mask is not None:
        valid &= mask.reshape(values.shape)
    if null_value is not None:
        valid &= values != null_value

    std = torch.zeros(values.shape[1], dtype=torch.float64)
    for node in range(values.shape[1]):
        kept = values[valid[:, node], node]
        # A constant is recognised by its extremes: its standard deviation is rounding noise, not 0.
        if kept.numel() and kept.max() > kept.min():
            std[node] = kept.std(correction=0)

    drifts = []
    for start in range(0, values.shape[0] - history - horizon + 1, stride):
        cut, stop = start + history, start + history + horizon
        terms = []
        for node in range(values.shape[1]):
            x = values[start:cut, node][valid[start:cut, node]]
            y = values[cut:stop, node][valid[cut:stop, node]]
            if x.numel() and y.numel() and std[node] > 0:
                terms.append((y.mean() - x.mean()).abs() / std[node])
        drifts.append(torch.stack(terms).mean() if terms else torch.tensor(float("nan"), dtype=torch.float64))
    return torch.stack(drifts)
