"""One place where ops meet torch: schema, reference kernel, fake kernel.

The reference is registered as the fallback for every device (CompositeExplicitAutograd); a compiled kernel for a device
outranks it. That is the whole dispatch: no flag, no environment variable, no silent change of results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("stprune", "DEF")

SCHEMAS: list[str] = []
"""The schemas of all ops, as they were given."""


def define(schema: str, reference: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register `schema` (without the namespace) with its reference and fake kernels."""
    SCHEMAS.append(schema)
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema, tags=(torch.Tag.needs_fixed_stride_order,))
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"stprune::{name}", fake, lib=_LIBRARY)


def define_autograd(name: str, backward: Callable[..., Any], setup_context: Callable[..., Any]) -> None:
    """Attach a backward to an op; call it right after `define`."""
    torch.library.register_autograd(f"stprune::{name}", backward, setup_context=setup_context, lib=_LIBRARY)


def define_cuda(name: str, kernel: Callable[..., Any]) -> None:
    """Give an op a kernel of its own on CUDA tensors; call it right after `define`."""
    _LIBRARY.impl(name, kernel, "CUDA")
