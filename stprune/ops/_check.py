"""Checks of user input, each with one message form: `op: argument must rule, got value`."""

from __future__ import annotations

import numbers
import sys
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


def ids(op: str, name: str, value: torch.Tensor, high: int) -> None:
    """`value` holds whole numbers in [0, high], where looking costs nothing: on the CPU, outside of a compiled graph."""
    if value.device.type != "cpu" or torch.compiler.is_compiling() or value.numel() == 0:
        return
    low, top = (int(bound) for bound in torch.aminmax(value))
    if low < 0 or top > high:
        raise ValueError(f"{op}: {name} must lie in [0, {high}], got {low if low < 0 else top}")


def members(op: str, name: str, value: torch.Tensor, known: torch.Tensor, of: str, *, hint: str = "") -> None:
    """All ids are known, [B] bool each; else the message ends with the hint."""
    if not bool(known.all()):
        raise ValueError(f"{op}: {name} must hold ids of {of}, got {int(value[~known][0])}{hint}")


def ids_on_device(op: str, name: str, value: torch.Tensor, high: int) -> None:
    """`value` holds whole numbers in [0, high], asserted by the device when it gets there: that ends the process's use of it.

    For what indexes with the ids of a user: the assertion of indexing names neither op nor argument.
    """
    torch._assert_async(((value >= 0) & (value <= high)).all(), f"{op}: {name} must lie in [0, {high}]")


def integer(op: str, name: str, value: Any, low: int, high: int | None = None, *, hint: str = "") -> int:
    """`value` is a whole number (no bool, no float) in [low, high]; else the message ends with the hint."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{op}: {name} must be an integer, got {value!r}")
    value = int(value)
    if value < low or (high is not None and value > high):
        rule = f"must lie in [{low}, {high}]" if high is not None else f"must be at least {low}"
        raise ValueError(f"{op}: {name} {rule}, got {value}{hint}")
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


def choice(op: str, name: str, value: Any, allowed: tuple[str, ...], *, hint: str = "") -> str:
    """`value` is one of the allowed words; else the message ends with the hint."""
    if value not in allowed:
        raise ValueError(f"{op}: {name} must be one of {', '.join(allowed)}, got {value!r}{hint}")
    return str(value)


def null(op: str, null_value: Any, null_tolerance: Any) -> tuple[float | None, float]:
    """Two numbers that say which entries mean missing: those within null_tolerance of null_value; None for none."""
    tolerance = real(op, "null_tolerance", null_tolerance, 0.0, sys.float_info.max)
    if null_value is None:
        return None, tolerance
    if isinstance(null_value, bool) or not isinstance(null_value, numbers.Real):
        raise TypeError(f"{op}: null_value must be a number, got {null_value!r}")
    return float(null_value), tolerance


def flag(op: str, name: str, value: Any) -> bool:
    """`value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be True or False, got {value!r}")
    return value


def buffer(op: str, name: str, value: Any, dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
    """`value` is a contiguous vector of this dtype on the device of `like`, and shares no memory with it."""
    value = vector(op, name, tensor(op, name, value)).detach()
    if value.dtype != dtype:
        raise TypeError(f"{op}: {name} must be {dtype}, got {value.dtype}")
    if value.device != like.device:
        raise ValueError(f"{op}: {name} must be on {like.device}, got {value.device}")
    if not value.is_contiguous():
        raise ValueError(f"{op}: {name} must be contiguous, got strides {value.stride()}")
    apart(op, name, value, like)
    return value


def room(op: str, name: str, value: torch.Tensor, size: int) -> torch.Tensor:
    """The first `size` elements of a buffer that has as many."""
    if value.numel() < size:
        raise ValueError(f"{op}: {name} must have at least {size} elements, got {value.numel()}")
    return value[:size]


def apart(op: str, name: str, value: torch.Tensor, other: torch.Tensor) -> None:
    """`value` shares no memory with `other`."""
    # Addresses are unknown to a compiler that traces.
    if torch.compiler.is_compiling() or value.numel() == 0 or other.numel() == 0:
        return
    (begin, end), (other_begin, other_end) = _addresses(value), _addresses(other)
    if begin < other_end and other_begin < end:
        raise ValueError(
            f"{op}: {name} must not overlap another argument, got {min(end, other_end) - max(begin, other_begin)} bytes"
        )


def _addresses(value: torch.Tensor) -> tuple[int, int]:
    """First address of a tensor's elements, and the first address after them."""
    span = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True)) + 1
    return value.data_ptr(), value.data_ptr() + span * value.element_size()


def same_keys(op: str, state: Any, names: tuple[str, ...]) -> None:
    """`state` is a dictionary with exactly these entries."""
    if not isinstance(state, dict):
        raise TypeError(f"{op}: state must be a dictionary, got {type(state).__name__}")
    if set(state) != set(names):
        raise ValueError(f"{op}: state must have the entries {', '.join(names)}, got {', '.join(map(str, state)) or 'none'}")


def same_settings(op: str, owner: str, mine: dict[str, Any], given: dict[str, Any]) -> None:
    """Saved settings are those of the object that loads them."""
    for name in {**mine, **given}:
        if name not in given or name not in mine or given[name] != mine[name]:
            raise ValueError(
                f"{op}: {name} must be {mine.get(name)!r} as in this {owner}, got {given.get(name)!r} in the saved state"
            )
