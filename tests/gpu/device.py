"""The simulated GPU from Python, and the driver that makes Triton compile for a real one and run on it."""

from __future__ import annotations

import ctypes
import os
import pathlib
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from gpu import program

HERE = pathlib.Path(__file__).resolve().parent
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
FLAGS = "-std=c++20 -O2 -march=native -fno-strict-aliasing -ffp-contract=off -Wall -Wextra -Werror -fPIC -shared -Wl,-Bsymbolic"
Long = ctypes.c_int64


def build(folder: pathlib.Path, objects: Sequence[pathlib.Path] = (), launchers: Sequence[str] = ()) -> pathlib.Path:
    """The simulator as a library; with objects that nvcc made for the host also the CUDA runtime that they call.

    The names of functions in the objects, which are hidden there, can be called on `Gpu.library`.
    """
    library, found = folder / "libgpu.so", folder / "launchers.cpp"
    found.write_text("".join(f'extern "C" {{ int {x}(); void* address_of_{x} = (void*)&{x}; }}\n' for x in launchers))
    sources = [HERE / "simulator.cpp", *([HERE / "cuda_runtime.cpp", found] if objects else [])]
    command = [str(COMPILER), *FLAGS.split(), *map(str, [*sources, *objects]), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return library


class Gpu:
    """The simulated device: kernels by name, memory that they may use, and the order in which threads run."""

    def __init__(self, library: pathlib.Path, launchers: Sequence[str] = ()) -> None:
        self.library = ctypes.CDLL(str(library))
        for name in launchers:
            address = ctypes.c_void_p.in_dll(self.library, f"address_of_{name}").value
            setattr(self.library, name, self.library._FuncPtr(address))
        self.library.gpu_error.restype = ctypes.c_char_p
        for name in ("launches", "waits", "bytes_read", "bytes_written"):
            getattr(self.library, f"gpu_{name}").restype = Long
        self.constants: list[bytearray] = []
        self.kernels: dict[str, program.Kernel] = {}

    def define(self, ptx: str, prefix: str = "") -> list[program.Kernel]:
        """Makes the kernels of a module known by their names, which a prefix tells from others."""
        kernels = program.read(ptx, self.constants)
        for k in kernels:
            k.name = prefix + k.name
            self.kernels[k.name] = k
            flat = [x for one in k.parameters for x in one]
            numbers = (ctypes.c_int32 * len(flat))(*flat)
            self.library.gpu_define(
                k.name.encode(), k.code, Long(len(k.code) // program.INSTRUCTION.size), k.slots, Long(len(k.slots) // 8),
                k.lists, Long(len(k.lists) // 4), numbers, Long(len(k.parameters)), Long(k.shared), Long(k.local),
                Long(k.threads),
            )  # fmt: skip
        return kernels

    def set(self, seed: int = 0, processors: int = 3) -> None:
        """seed: of the order in which threads run, 0 for one after the other. Counts begin anew."""
        self.library.gpu_set(ctypes.c_uint64(seed), Long(processors))

    def allow(self, address: int, size: int, *, known: bool = True) -> None:
        """Memory that kernels may use; what is not known must be written before it is read."""
        self.library.gpu_allow(ctypes.c_void_p(address), Long(size), int(known))

    def forget(self) -> None:
        """No memory may be used any more but the kernels' own constants."""
        self.library.gpu_allow_nothing()
        for held in self.constants:
            self.allow(ctypes.addressof((ctypes.c_char * len(held)).from_buffer(held)), len(held))

    @property
    def launches(self) -> int:
        return int(self.library.gpu_launches())

    @property
    def waits(self) -> int:
        """For the device, by the host."""
        return int(self.library.gpu_waits())

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes of memory read and written by all launches, each byte once a launch."""
        return int(self.library.gpu_bytes_read()), int(self.library.gpu_bytes_written())

    @property
    def error(self) -> str:
        text = str(self.library.gpu_error().decode())
        where = re.match(r"(.*), block \d+, thread \d+, instruction (\d+): ", text)
        return f"{text}: {self.kernels[where[1]].text[int(where[2])]}" if where else text

    def launch(self, name: str, grid: tuple[int, ...], threads: int, shared: int, arguments: list[Any]) -> None:
        """arguments: ctypes values of the kernel's parameters; those after the last one are 0."""
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(x) for x in arguments))
        sizes = (ctypes.c_uint32 * 3)(*grid), (ctypes.c_uint32 * 3)(threads, 1, 1)
        if self.library.gpu_launch(name.encode(), *sizes, Long(shared), pointers, Long(len(arguments)), 0) != 0:
            raise AssertionError(self.error)


_VALUES = {
    "i1": ctypes.c_int8, "i8": ctypes.c_int8, "i16": ctypes.c_int16, "i32": ctypes.c_int32, "i64": ctypes.c_int64,
    "u1": ctypes.c_uint8, "u8": ctypes.c_uint8, "u16": ctypes.c_uint16, "u32": ctypes.c_uint32, "u64": ctypes.c_uint64,
    "fp32": ctypes.c_float, "fp64": ctypes.c_double,
}  # fmt: skip


class TritonDriver:
    """What Triton asks of a device: it compiles for `capability`, and runs on the simulated GPU over tensors of the CPU."""

    def __init__(self, gpu: Gpu, capability: int = 90) -> None:
        self.gpu, self.target, self.ptx = gpu, GPUTarget("cuda", capability, 32), ""
        self.utils = self
        self.loaded, self.launches = 0, 0

    def install(self) -> None:
        """Makes it the driver of this process."""
        # Triton loads a kernel's binary; the text beside it is what runs here.
        triton.knobs.runtime.kernel_load_start_hook.add(self._remember)
        triton.runtime.driver.set_active(self)

    def _remember(self, module: Any, function: Any, name: str, group: dict[str, str], hash: str) -> None:
        self.ptx = pathlib.Path(next(path for file, path in group.items() if file.endswith(".ptx"))).read_text()

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 * 1024}

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[None, str, int, int, int]:
        self.loaded += 1
        (found,) = self.gpu.define(self.ptx, prefix=f"{self.loaded} ")
        return None, found.name, 0, 0, found.threads

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        kinds = list(source.signature.values())

        def launch(x: int, y: int, z: int, stream: int, function: str, *rest: Any) -> None:
            values: list[Any] = []
            self.gpu.forget()
            for kind, value in zip(kinds, rest[4:], strict=True):
                if kind.startswith("*"):
                    storage = value.untyped_storage()
                    self.gpu.allow(storage.data_ptr(), storage.nbytes())
                    values.append(ctypes.c_void_p(value.data_ptr()))
                elif kind != "constexpr":
                    values.append(_VALUES[kind](value))
            self.launches += 1
            self.gpu.launch(function, (x, y, z), metadata.num_warps * 32, metadata.shared, values)

        return launch
