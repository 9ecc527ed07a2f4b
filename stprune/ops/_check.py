"""Checks of user input, each with one message form: `op: argument must rule, got value`."""

from __future__ import annotations

import numbers
from typing import Any

import torch

FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def tensor(op: str, name: str, value: Any) -> torch.Tensor:
    """`value` is a tensor."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
    return value


def floating(op: str, name: str, value: Any) -> torch.Tensor:
    """`value` is a tensor of one of the four floating dtypes."""
    value = tensor(op, name, value)
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{op}: {name} must be float32, float64, bfloat16 or float16, got {value.dtype}")
    return value


def vector(op: str, name: str, value: torch.Tensor) -> torch.Tensor:
    """`value` has one dimension."""
    if value.dim() != 1:
        raise ValueError(f"{op}: {name} must have one dimension, got shape {tuple(value.shape)}")
    return value


def index(op: str, name: str, value: Any) -> torch.Tensor:
    """`value` is an int64 vector; bool, float and narrower integers are refused rather than cast."""
    value = tensor(op, name, value)
    if value.dtype != torch.int64:
        raise TypeError(f"{op}: {name} must be int64, got {value.dtype}")
    return vector(op, name, value)


def integer(op: str, name: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` is a whole number (no bool, no float) in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{op}: {name} must be an integer, got {value!r}")
    value = int(value)
    if value < low or (high is not None and value > high):
        rule = f"must lie in [{low}, {high}]" if high is not None else f"must be at least {low}"
        raise ValueError(f"{op}: {name} {rule}, got {value}")
    return value


def seed_and_epoch(op: str, seed: Any, epoch: Any) -> tuple[int, int]:
    """A 63-bit seed and a 32-bit epoch: what the counter-based generator is keyed by."""
    return integer(op, "seed", seed, 0, 2**63 - 1), integer(op, "epoch", epoch, 0, 2**32 - 1)


def real(op: str, name: str, value: Any, low: float, high: float, *, low_open: bool = False) -> float:
    """`value` is a finite number in [low, high], or (low, high] with low_open."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{op}: {name} must be a number, got {value!r}")
    value = float(value)
    inside = (value > low if low_open else value >= low) and value <= high
    if not inside:
        bracket = "(" if low_open else "["
        raise ValueError(f"{op}: {name} must lie in {bracket}{low:g}, {high:g}], got {value:g}")
    return value


def choice(op: str, name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """`value` is one of the allowed words."""
    if value not in allowed:
        raise ValueError(f"{op}: {name} must be one of {', '.join(allowed)}, got {value!r}")
    return str(value)
