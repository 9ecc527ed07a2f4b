#!/usr/bin/env bash
# The op tests on a library built with AddressSanitizer and UndefinedBehaviorSanitizer, in build/sanitize,
# and the selection kernels under ThreadSanitizer (.ci/threads.sh).
# The installed package is not touched: STPRUNE_LIBRARY_DIR makes the loader take this build first. Needs the Python whose
# torch and test extras are used as `python` on PATH, or in $PYTHON, and cmake and a C++ compiler.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON="${PYTHON:-python}"
CXX="${CXX:-c++}"
# Kept, so that a second run compiles only what has changed.
BUILD="$PWD/build/sanitize"
mkdir -p "$BUILD"

cmake -S . -B "$BUILD/tree" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DSTPRUNE_SANITIZE=ON -DSTPRUNE_CUDA=OFF \
  -DPython_EXECUTABLE="$("$PYTHON" -c 'import sys; print(sys.executable)')" -DCMAKE_CXX_COMPILER="$CXX" >/dev/null
cmake --build "$BUILD/tree" --parallel 2

# Two halves of about equal time, side by side.
FIRST=(select draw draw_weighted shuffle random draw_nodes out budget plan_budget plan_weights finite_mean engine_properties)
SECOND=(draw_threshold spacing table gather_nodes gather_windows window_stats residual_stats pruned_loss pruned_step)
half() {
  local tests=() name
  for name in "$@"; do
    if [ -f "tests/test_$name.py" ]; then tests+=("tests/test_$name.py"); fi
  done
  # opcheck and torch.compile start compilers, which must not run under the preloaded runtimes: they have their own tests.
  # Vectors of more than 2^24 elements take minutes here and reach no other code; AddressSanitizer keeps freed memory back.
  LD_PRELOAD="$PRELOAD" "$PYTHON" -m pytest -q -p no:cacheprovider \
    -k "not opcheck and not compile and not beyond_2 and not more_items and not more_keys and not two_billion and not fresh_memory" "${tests[@]}"
}

# Python is not built with the sanitizers, so their runtimes come first; its own leaks are not ours. A report aborts.
export STPRUNE_LIBRARY_DIR="$BUILD/tree"
export ASAN_OPTIONS="detect_leaks=0:abort_on_error=1:detect_stack_use_after_return=0"
export UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1"
export OMP_WAIT_POLICY=passive
PRELOAD="$("$CXX" -print-file-name=libasan.so):$("$CXX" -print-file-name=libubsan.so)"
LD_PRELOAD="$PRELOAD" "$PYTHON" -c "
import stprune
status = stprune.library_status()['_C']
assert status.loaded and status.path.startswith('$BUILD'), status"
PYTHON="$PYTHON" CXX="$CXX" bash .ci/threads.sh "$BUILD/threads"
half "${FIRST[@]}" &
first=$!
half "${SECOND[@]}"
wait "$first"
