"""Where a result was measured: versions, processor, device."""

from __future__ import annotations

import os
import pathlib
import platform
from typing import Any

import numpy as np
import torch

import stprune


def versions() -> dict[str, str]:
    """Versions of everything a result depends on; for a Triton that is absent or cannot be imported, that."""
    triton = stprune.library_status()["triton"]
    return {
        "stprune": stprune.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "triton": triton.version or triton.reason,
    }


def processor() -> str:
    """Name of the processor, or its architecture where the system does not tell."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else (platform.processor() or platform.machine())


def cores() -> int:
    """Processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device_name(device: torch.device) -> str:
    """The device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def describe(device: torch.device) -> dict[str, Any]:
    """Everything about the machine that belongs beside a measured number."""
    return {
        "processor": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "device": device_name(device),
        "system": platform.system(),
        "versions": versions(),
        "libraries": {name: status.loaded for name, status in stprune.library_status().items()},
    }


def choose_device(name: str) -> torch.device:
    """Turn a device name into a device that works here.

    Args:
        name: "auto" (CUDA where present, else the CPU) or a torch device name.

    Returns:
        The device.

    Raises:
        ValueError: torch does not know the name, or the device cannot be used here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device: {name} cannot be used here ({str(error).splitlines()[0]})") from None
    return device
