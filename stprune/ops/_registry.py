"""Registration of ops with torch: schema, reference kernel, fake kernel; and the way to the Triton kernels.

The reference is registered as the fallback for every device (CompositeExplicitAutograd); a compiled kernel for a device
outranks it, and so does a Triton kernel on CUDA tensors where Triton is installed. That is the whole dispatch: no flag, no
environment variable, no silent change of results.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

_LIBRARY = torch.library.Library("stprune", "DEF")

SCHEMAS: list[str] = []
"""The schemas of all ops, as they were given."""

BY_TRITON: dict[str, str] = {}
"""The ops that have a Triton kernel, each with the file in `kernels/` that holds its launcher."""

_ON_CUDA: set[str] = set()


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
    _ON_CUDA.add(name)
    _LIBRARY.impl(name, kernel, "CUDA")


def implementation(name: str, device: str) -> str:
    """What runs an op on "cpu" or "cuda" tensors: "compiled", "triton", or "torch" for plain torch and for other ops."""
    by_python = device == "cuda" and name in _ON_CUDA
    if not by_python and torch._C._dispatch_has_kernel_for_dispatch_key(f"stprune::{name}", device.upper()):
        return "compiled"
    return "triton" if device == "cuda" and name in BY_TRITON and has_triton() else "torch"


def has_triton() -> bool:
    """Whether the package triton, an optional dependency, is installed; whether it works is seen when it is imported."""
    try:
        found = importlib.util.find_spec("triton")
    except ValueError:  # a module that somebody made in its place has no spec
        return False
    # A folder of this name, such as a checkout of Triton, has no origin.
    return found is not None and found.origin is not None


@functools.cache
def kernel_module(file: str) -> ModuleType | None:
    """`stprune.kernels.<file>`, imported when it is first needed, or None where Triton is not installed.

    Raises:
        RuntimeError: Triton is installed, but it or the file cannot be imported: the slow path would hide that.
    """
    if not has_triton():
        return None
    try:
        return importlib.import_module(f"stprune.kernels.{file}")
    except Exception as error:  # An import runs the file: whatever it raises is the reason.
        raise RuntimeError(
            f"stprune: the Triton kernels of {file} cannot be imported ({type(error).__name__}: {error}); install a triton "
            "that fits torch, or remove it to run on plain torch"
        ) from error


def by_triton(name: str, reference: Callable[..., Any], *, file: str | None = None) -> Callable[..., Any]:
    """What runs an op on CUDA tensors: its Triton kernel, or the reference where Triton is not installed.

    Args:
        name: of the op, and of its launcher, which takes the op's arguments and returns its results.
        reference: the op in plain torch.
        file: in `kernels/`, with the launcher; None: named as the op.

    Returns:
        A function of the op's arguments, which launches on the device that its tensors are on. It raises as `kernel_module`.
    """
    home = BY_TRITON[name] = name if file is None else file

    def run(*arguments: Any) -> Any:
        kernels = kernel_module(home)
        if kernels is None:
            return reference(*arguments)
        with _device_of(arguments):
            return getattr(kernels, name)(*arguments)

    return run


def _device_of(arguments: tuple[Any, ...]) -> contextlib.AbstractContextManager[Any]:
    """Makes the tensors' device the current one, on which Triton launches whatever its arguments are."""
    first = next(x for x in arguments if isinstance(x, torch.Tensor))
    return torch.cuda.device(first.device) if first.is_cuda else contextlib.nullcontext()
