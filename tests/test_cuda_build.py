"""The CUDA library: that it compiles and links for every architecture, what it may depend on, and when it is built."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from library_symbols import needs_nm, symbols, torch_symbols

import stprune
from stprune import _load

ROOT = pathlib.Path(__file__).resolve().parents[1]
CUDA = ROOT / "csrc" / "cuda"
ARCHITECTURES = ("80", "90", "100")
# A library somebody built (CI does: .ci/cuda.sh), or the one in use.
LIBRARY = os.environ.get("STPRUNE_CUDA_LIBRARY") or stprune.library_status()["_C_cuda"].path
needs_library = pytest.mark.skipif(
    LIBRARY is None, reason="no CUDA library to look at: .ci/cuda.sh builds one and names it in STPRUNE_CUDA_LIBRARY"
)
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")


@needs_library
@needs_nm
def test_library_needs_only_the_stable_abi_and_the_c_and_cpp_runtimes():
    assert "aoti_torch_get_current_cuda_stream" in torch_symbols(LIBRARY)


@needs_library
@needs_nm
def test_library_exports_nothing_but_its_mark():
    functions = {name.split("@")[0] for kind, name in symbols(LIBRARY, "defined") if kind in "TDBR"}
    assert functions == {"stprune_contract"}
    assert _load._keeps(pathlib.Path(LIBRARY), _load.contract())


@needs_library
@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed")
def test_library_names_torch_and_no_folder():
    dynamic = subprocess.run(["readelf", "-d", LIBRARY], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"NEEDED.*\[(.*?)\]", dynamic))
    assert {"libtorch_cpu.so", "libtorch_cuda.so"} <= needed
    assert not {name for name in needed if name.startswith("libcuda")}
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic


def cuobjdump():
    """The tool on PATH, or the one in Triton's wheel."""
    found = shutil.which("cuobjdump")
    if found is None:
        for entry in sys.path:
            bundled = pathlib.Path(entry) / "triton" / "backends" / "nvidia" / "bin" / "cuobjdump"
            if bundled.is_file():
                return str(bundled)
    return found


@needs_library
@pytest.mark.skipif(cuobjdump() is None, reason="cuobjdump is neither on PATH nor in an installed triton")
def test_library_has_code_for_every_architecture():
    listing = subprocess.run([cuobjdump(), "--list-elf", LIBRARY], capture_output=True, text=True, check=True).stdout
    kernels = len(list(CUDA.glob("*.cu")))
    for architecture in ARCHITECTURES:
        assert len(re.findall(rf"\.sm_{architecture}\.cubin", listing)) == kernels
    listing = subprocess.run([cuobjdump(), "--list-ptx", LIBRARY], capture_output=True, text=True, check=True).stdout
    assert len(re.findall(r"\.sm_100\.ptx", listing)) == kernels


@needs_nvcc
def test_sources_compile_for_the_oldest_architecture(tmp_path):
    """The smallest source; .ci/cuda.sh compiles them all, which takes minutes."""
    command = ["nvcc", "-std=c++17", "--fmad=false", "-Werror=all-warnings", f"-I{ROOT / 'csrc'}", "-arch=sm_80"]
    command += ["-c", str(CUDA / "check_range.cu"), "-o", str(tmp_path / "out.o")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_every_source_has_its_registration_and_every_registration_a_cpu_kernel():
    kernels = {path.stem for path in CUDA.glob("*.cu")}
    registrations = {path.stem for path in CUDA.glob("*.cpp")}
    assert kernels == registrations
    for name in registrations:
        ops = re.findall(r'm\.impl\("(\w+)"', (CUDA / f"{name}.cpp").read_text())
        assert ops
        on_cpu = re.findall(r'm\.impl\("(\w+)"', (ROOT / "csrc" / "cpu" / f"{name}.cpp").read_text())
        assert set(ops) <= set(on_cpu)


def test_kernels_have_no_torch_and_no_fast_arithmetic():
    """nvcc never sees torch's headers; and nothing may change the bits or the order of positions."""
    for path in [*CUDA.glob("*.cu"), *CUDA.glob("*.h")]:
        text = path.read_text()
        if path.name != "glue.h":
            assert "torch/" not in text, path
        assert not re.search(r"fast_math|__fdividef|__expf|__logf|\bfmaf?\(", text), path
        assert "cudaDeviceSynchronize" not in text, path


def configure(folder, torch_folder, *options, path=None):
    command = ["cmake", "-S", str(ROOT), "-B", str(folder), f"-DPython_EXECUTABLE={sys.executable}", *options]
    environment = {**os.environ, "STPRUNE_TORCH_DIR": str(torch_folder), **({} if path is None else {"PATH": path})}
    environment.pop("CUDACXX", None)
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture
def torch_folder(tmp_path):
    """A folder that looks like torch's to the build: the one header it asks for, and no library."""
    folder = tmp_path / "torch"
    header = folder / "include" / "torch" / "csrc" / "stable" / "library.h"
    header.parent.mkdir(parents=True)
    header.touch()
    (folder / "lib").mkdir()
    return folder


@needs_cmake
def test_auto_leaves_a_cpu_torch_alone(tmp_path, torch_folder):
    result = configure(tmp_path / "build", torch_folder, "-DSTPRUNE_CUDA=AUTO")
    assert result.returncode == 0, result.stderr
    assert "CUDA library off (the torch in" in result.stdout


@needs_cmake
@needs_nvcc
def test_auto_builds_for_a_cuda_torch(tmp_path, torch_folder):
    (torch_folder / "lib" / "libtorch_cuda.so").touch()
    result = configure(tmp_path / "build", torch_folder, "-DSTPRUNE_CUDA=AUTO", "-DCMAKE_CUDA_ARCHITECTURES=90")
    assert result.returncode == 0, result.stderr
    assert "CUDA library on for 90" in result.stdout


@needs_cmake
def test_without_a_compiler_auto_goes_on_and_on_fails(tmp_path, torch_folder):
    (torch_folder / "lib" / "libtorch_cuda.so").touch()
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("cmake", "ninja", "make", "c++", "g++", "cc", "gcc", "ld", "as", "ar", "ranlib", "sh", "uname"):
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    nowhere = "-DCMAKE_CUDA_COMPILER=NOTFOUND"
    result = configure(tmp_path / "auto", torch_folder, "-DSTPRUNE_CUDA=AUTO", nowhere, path=str(tools))
    assert result.returncode == 0, result.stderr
    assert "CUDA library off (no nvcc found)" in result.stdout
    result = configure(tmp_path / "on", torch_folder, "-DSTPRUNE_CUDA=ON", nowhere, path=str(tools))
    assert result.returncode != 0
    assert "put nvcc on PATH or set CUDACXX" in " ".join(result.stderr.split())
