"""Loads a kernel's file and compiles its kernels: for scripts that run in a process of their own."""

import contextlib
import importlib
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import types

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CUOBJDUMP = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
# The simulated GPU on which kernels run, where own_process.simulated has started this script, else None: the interpreter.
DRIVER = None
if "SIMULATED_GPU" in os.environ:
    from gpu.device import Gpu, TritonDriver

    library, seed, capability = os.environ["SIMULATED_GPU"].split(",")
    DRIVER = TritonDriver(Gpu(pathlib.Path(library)), int(capability))
    DRIVER.gpu.set(int(seed))
    DRIVER.install()


def load(name):
    """The module kernels/<name>.py, which may import its neighbours."""
    return importlib.import_module(f"kernels.{name}")


@contextlib.contextmanager
def launches():
    """Counts the launches of kernels inside, in `.count` of what it gives."""
    counted = types.SimpleNamespace(count=0)
    if DRIVER is not None:
        before = DRIVER.launches
        yield counted
        counted.count = DRIVER.launches - before
        return
    from triton.runtime import interpreter

    call = interpreter.GridExecutor.__call__

    def counts(self, *args, **kwargs):
        counted.count += 1
        # What the interpreter itself does is no work of ours.
        with torch.utils._python_dispatch._disable_current_modes():
            return call(self, *args, **kwargs)

    interpreter.GridExecutor.__call__ = counts
    yield counted
    interpreter.GridExecutor.__call__ = call


def assembly(function, types, constants, *, num_warps, capabilities=(80, 90, 100), stack=0, **options):
    """Compile a kernel for GPUs; a line is printed for each, and its PTX returned. Parameters without a type are 32-bit.

    No more than `stack` bytes may be spilled: what a thread holds fits into its registers.
    """
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in function.arg_names}
    signature |= {p.name: p.annotation_type for p in function.params if p.annotation_type and not p.is_constexpr}
    source = ASTSource(function, signature=signature, constexprs=constants)
    texts = []
    for capability in capabilities:
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": num_warps, **options})
        assert made.metadata.shared <= 227 * 1024
        assert len(made.asm["cubin"]) > 1000
        texts.append(made.asm["ptx"])
        assert stack_of(made.asm["cubin"]) <= stack, f"{function.__name__} for {capability} spills"
        print(function.__name__, capability)
    return texts


def stack_of(cubin):
    """Bytes of memory that each thread takes beside its registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        shown = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", shown)[1])
