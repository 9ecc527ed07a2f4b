#!/usr/bin/env bash
# Compiles the CUDA library for every architecture, without a GPU and whatever torch is installed, looks at what came out
# and runs it on a simulated GPU; then the kernels' logic on the host under AddressSanitizer. Says so where there is no nvcc.
# Needs the Python whose torch and test extras are used as `python` on PATH, or in $PYTHON; cmake, ninja and a C++ compiler.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON="${PYTHON:-python}"
CXX="${CXX:-c++}"
mkdir -p build
BUILD="$(mktemp -d "$PWD/build/cuda-XXXXXX")"
trap 'rm -rf "$BUILD"' EXIT

if command -v nvcc >/dev/null; then
  nvcc --version | tail -2
  GENERATOR=()
  if command -v ninja >/dev/null; then GENERATOR=(-G Ninja); fi
  cmake -S . -B "$BUILD/tree" "${GENERATOR[@]}" -DCMAKE_BUILD_TYPE=Release -DSTPRUNE_CUDA=ON \
    -DCMAKE_CUDA_ARCHITECTURES="80-real;90-real;100" -DCMAKE_CUDA_FLAGS="-Werror=all-warnings -Xptxas=-v" \
    -DPython_EXECUTABLE="$("$PYTHON" -c 'import sys; print(sys.executable)')" -DCMAKE_CXX_COMPILER="$CXX" >/dev/null
  cmake --build "$BUILD/tree" --target _C_cuda --parallel 2 >"$BUILD/log" 2>&1 || { cat "$BUILD/log"; exit 1; }
  # Registers that spill to memory make a kernel slow; ptxas spills a few bytes of some kernel on some architecture.
  grep -oE "[0-9]+ bytes spill stores" "$BUILD/log" | sort -n | uniq -c | sed 's/^/registers: kernels with /'
  STPRUNE_CUDA_LIBRARY="$BUILD/tree/_C_cuda.so" "$PYTHON" -m pytest -q -p no:cacheprovider tests/test_cuda_build.py
  # What nvcc made runs on a simulated GPU.
  STPRUNE_CUDA_OBJECTS="$BUILD/tree/CMakeFiles/_C_cuda.dir/csrc/cuda" "$PYTHON" -m pytest -q -p no:cacheprovider \
    tests/test_simulated_cuda.py
  echo "CUDA library compiled for sm_80, sm_90 and sm_100: $(du -h "$BUILD/tree/_C_cuda.so" | cut -f1)"
else
  echo "nvcc is not on PATH: the CUDA sources were not compiled" >&2
fi

# Python is not built with the sanitizer, so its runtime comes first; its own leaks are not ours.
export ASAN_OPTIONS="detect_leaks=0:abort_on_error=1:detect_stack_use_after_return=0"
export STPRUNE_EMULATION_FLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined -g1"
export OMP_WAIT_POLICY=passive
PRELOAD="$("$CXX" -print-file-name=libasan.so):$("$CXX" -print-file-name=libubsan.so)"
# The order of blocks and threads that has all sizes.
LD_PRELOAD="$PRELOAD" CXX="$CXX" "$PYTHON" -m pytest -q -p no:cacheprovider tests/test_cuda_host.py \
  -k "in_mixed_order or wild_write or out_of_range"
