#!/usr/bin/env bash
# The selection kernels under ThreadSanitizer, on std::thread (tests/thread_sanitizer.cpp), in the folder given.
set -euo pipefail
folder=$(realpath -m "${1:?usage: .ci/threads.sh FOLDER}")
cd "$(dirname "$0")/.."
mkdir -p "$folder"
include=$("${PYTHON:-python}" cmake/find_torch.py)
flags=(-std=c++20 -O1 -g -ffp-contract=off -fsanitize=thread -DTORCH_TARGET_VERSION=0x020a000000000000ULL -DTORCH_STABLE_ONLY
  -DSTPRUNE_ISA=0 -Icsrc -isystem "$include")
sources=(-x c++ tests/thread_sanitizer.cpp csrc/cpu/isa.cpp csrc/cpu/kernels.inc csrc/cpu/plan_kernels.inc)
# Only the baseline set: races do not depend on the width of a register. Torch's functions and the kernels of other ops stay
# unresolved; none is called.
"${CXX:-c++}" "${flags[@]}" "${sources[@]}" -Wl,--unresolved-symbols=ignore-all -o "$folder/threads"
TSAN_OPTIONS="halt_on_error=1:exitcode=66" "$folder/threads"
