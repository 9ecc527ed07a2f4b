"""Loads a kernel's file and compiles its kernels: for scripts that run in a process of their own."""

import importlib
import pathlib
import re
import subprocess
import sys
import tempfile

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CUOBJDUMP = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))


def load(name):
    """The module kernels/<name>.py, which may import its neighbours."""
    return importlib.import_module(f"kernels.{name}")


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
