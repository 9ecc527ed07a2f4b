"""In which precision ops compute."""

from __future__ import annotations

import torch


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """In what values of a floating dtype are computed and added up: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
