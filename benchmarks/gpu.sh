#!/usr/bin/env bash
# What a GPU is needed for, in stages of at most 100 s, each of use alone:
#   benchmarks/gpu.sh [--dry] FOLDER [stage ...]        without a stage: all of them, at most 800 s; --help prints this
# library    install and load the compiled library, say what runs where; always the first stage
# tests      every test that takes a GPU, in several processes
# sanitizer  every op once, under compute-sanitizer's memcheck and racecheck
# selection  select, draws and plans against torch, and our kernels against CUB's
# loss       PrunedLoss and the table's update against eager and compiled losses
# windows    statistics, batches and epochs of windows
# step       training steps with everything included: eager, captured, compiled
# train      the study's comparison at full size
# Two calls do everything: `FOLDER library tests sanitizer selection loss` and `FOLDER windows step train`.
#
# Logs, rows (*-cuda.jsonl), reports (train-*) and summary.txt go to FOLDER; rows of earlier calls stay until they are measured
# again, and `train` goes on where the last call ended. Where git does not know the commit, $STPRUNE_COMMIT names it in the rows.
# The status is 0 where every stage passed, else 1, and 130 after Ctrl-C, which ends all processes. Rows measured after red tests
# of the same call go to FOLDER/red.
# --dry runs every stage's commands on the CPU with small inputs: it proves that they work, and its times mean nothing.
#
# Needs python3 (or $PYTHON) with torch (CUDA), Triton, numpy, pip, pytest, hypothesis, tqdm, matplotlib and jinja2; no network.
# pytest-xdist, compute-sanitizer, nvcc, simbench and the series of ../shared (or $SHARED) are used where they are there; the
# summary says what was missing. What must be compiled can be made beforehand, on a machine without a GPU:
#   STPRUNE_CUDA=ON CMAKE_ARGS=-DCMAKE_CUDA_ARCHITECTURES=90 pip wheel --no-build-isolation --no-deps -w dist .
#   nvcc -O3 -std=c++17 --fmad=false -arch=sm_90 -Icsrc benchmarks/cuda_library.cu -o dist/cuda_library
# (scikit-build-core, cmake, ninja and any build of torch >= 2.10, or its folder in STPRUNE_TORCH_DIR.) The newest wheel in dist/
# (or $PREBUILT) gives the compiled code, the checkout everything else: a change of csrc/ needs a new wheel, others do not.
set -uo pipefail
STAGES=(library tests sanitizer selection loss windows step train)
LIMIT=${STAGE_LIMIT:-100} # seconds of a stage

if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then sed -n '2,/^[^#]/s/^# \?//p' "$0" && exit 0; fi
dry=
if [ "${1:-}" = --dry ]; then dry=yes && shift; fi
if [[ ${1:--} == -* ]]; then echo "usage: benchmarks/gpu.sh [--dry] FOLDER [stage ...], stages: ${STAGES[*]}" >&2 && exit 2; fi
out=$(realpath -m "$1") && shift
if [ $# -eq 0 ]; then set -- "${STAGES[@]}"; fi
for name in "$@"; do
  if [[ " ${STAGES[*]} " != *" $name "* ]]; then echo "gpu.sh: stage must be one of ${STAGES[*]}, got $name" >&2 && exit 2; fi
done
cd "$(dirname "$0")/.."
mkdir -p "$out"
work=$(mktemp -d)
python=${PYTHON:-python3}
prebuilt=${PREBUILT:-dist}
site=$PWD/build/gpu${dry:+-dry}
device=cuda processes=8 minutes=1.1 small=()
if [ -n "$dry" ]; then
  device=cpu processes=2 minutes=$LIMIT small=(--small --budget 0.001)
  # torch.compile hands back what it is given: compiling for the CPU takes a minute and proves nothing of a GPU.
  export TORCHDYNAMO_DISABLE=1 OMP_NUM_THREADS=1
fi
export OMP_WAIT_POLICY=passive PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$PWD MPLCONFIGDIR=$work/matplotlib
# Kept for a second call.
export TRITON_CACHE_DIR=$site-cache/triton TORCHINDUCTOR_CACHE_DIR=$site-cache/inductor
begun=$SECONDS stage=start rows=$out results=() missing=() running=() failed=no

# finish STATUS: whatever happened, the summary comes last.
finish() {
  trap '' INT TERM
  {
    echo "gpu.sh${dry:+ --dry} $(date -u +%FT%TZ)"
    if [ ${#results[@]} -gt 0 ]; then printf '%s\n' "${results[@]}"; fi
    if [ ${#missing[@]} -gt 0 ]; then printf 'missing: %s\n' "${missing[@]}"; fi
    if [ "$1" -eq 0 ]; then echo "all stages passed in $((SECONDS - begun)) s"; else echo "FAILED"; fi
  } | tee "$out/summary.txt"
  rm -rf "$work"
  exit "$1"
}

stopped() {
  trap '' INT TERM
  # Each command leads a process group of its own, and `timeout` hands the signal to all of it.
  if [ ${#running[@]} -gt 0 ]; then kill "${running[@]}" 2>/dev/null && wait; fi
  results+=("$stage: stopped")
  finish 130
}
trap stopped INT TERM

# begin LOG COMMAND...: starts it beside what runs, to end when the stage's time is over.
begin() {
  local log=$out/$1.log left=$((stage_end - SECONDS))
  shift
  echo "+ $*" >>"$log"
  timeout --kill-after=5 "$((left > 1 ? left : 1))" "$@" >>"$log" 2>&1 &
  running+=($!)
}

# ended: waits for all of them; the status of the last that failed.
ended() {
  local status=0 one child
  for child in "${running[@]}"; do
    wait "$child"
    one=$?
    if [ "$one" -ne 0 ]; then status=$one; fi
  done
  running=()
  return "$status"
}

run() { begin "$stage" "$@" && ended; }

bench() { run "$python" benchmarks/run.py --device "$device" --no-gate --out "$rows" "$@" "${small[@]}"; }

there() { "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"; }

stage_library() {
  local wheel
  if [ -z "$dry" ]; then
    # Before anything is compiled.
    run "$python" -c "
import sys, torch
sys.exit(None if torch.cuda.is_available() else f'gpu.sh: torch {torch.__version__} finds no GPU; --dry needs none')" || return
  fi
  # shellcheck disable=SC2012 # the newest one, and wheels have plain names
  wheel=$(ls -t "$prebuilt"/stprune-*.whl 2>/dev/null | head -n 1)
  if [ -n "$wheel" ]; then
    run "$python" -m pip install --quiet --no-deps --no-index --upgrade --target "$site" "$wheel" || return
  elif [ -n "$dry" ]; then
    missing+=("a wheel in $prebuilt/: the library that is installed is used")
  else
    missing+=("a wheel in $prebuilt/: the library was compiled in this stage")
    run env STPRUNE_CUDA=ON CMAKE_ARGS=-DCMAKE_CUDA_ARCHITECTURES=native "$python" -m pip install --quiet --no-build-isolation \
      --no-deps --no-index --upgrade --target "$site" . || return
  fi
  # Its Python files are not used, and a library that was built for other op schemas is not loaded.
  if [ -z "$dry" ] || [ -n "$wheel" ]; then export STPRUNE_LIBRARY_DIR=$site/stprune; fi
  if [ -z "$dry" ] && command -v nvidia-smi >/dev/null; then run nvidia-smi; fi
  run "$python" -c "
import sys, stprune
from stprune.cli import info
print(info())
needed = ('_C', '_C_cuda', 'triton') if '$device' == 'cuda' else ('_C',)
found = stprune.library_status()
sys.exit('\n'.join(f'gpu.sh: {name} is not in use: {found[name].reason}' for name in needed if not found[name].loaded) or None)"
}

stage_tests() {
  local files several=()
  mapfile -t files < <(grep -l "cuda.is_available" tests/test_*.py)
  if there xdist; then several=(-n "$processes"); else missing+=("pytest-xdist: one process ran all tests"); fi
  # Their names say that they need one; those that only compile for GPUs, or try an input that is hard for them, need none.
  # Two threads of the host for each: what is expected of 10^8 items is computed there.
  run env OMP_NUM_THREADS=2 "$python" -m pytest -v -p no:cacheprovider -o addopts= --durations=10 "${several[@]}" \
    -k "(cuda or gpu) and not compiles and not misleading" "${files[@]}"
}

stage_sanitizer() {
  local tool status
  run "$python" benchmarks/every_op.py "$device" || return
  if [ -n "$dry" ]; then return; fi
  if ! command -v compute-sanitizer >/dev/null; then missing+=("compute-sanitizer: every op ran without it") && return; fi
  for tool in memcheck racecheck; do
    # Each tensor is an allocation of its own, so that the tool sees what is read or written behind its end. Torch and Triton
    # ask the driver for functions that it may not have, which the tool would call an error.
    begin "sanitizer-$tool" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" \
      --report-api-errors no --error-exitcode 9 "$python" benchmarks/every_op.py "$device"
  done
  ended
  status=$?
  tail -n 4 "$out"/sanitizer-*.log >>"$out/sanitizer.log"
  if grep -q "Device not supported" "$out"/sanitizer-*.log; then
    missing+=("compute-sanitizer does not support this machine: every op ran without it") && return
  fi
  return "$status"
}

stage_selection() {
  local status=0 program=$prebuilt/cuda_library architecture=native
  if [ -n "$dry" ]; then
    # Compiled beside the rest, as it cannot run; the sizes of the two calls below would be the same.
    program=$work/cuda_library architecture=sm_90
  fi
  if [ ! -x "$program" ]; then
    if ! command -v nvcc >/dev/null; then
      missing+=("$prebuilt/cuda_library, and nvcc to make it: our kernels were not timed against CUB's")
    else
      program=$work/cuda_library
      begin "$stage" nvcc -O3 -std=c++17 --fmad=false "-arch=$architecture" -Icsrc benchmarks/cuda_library.cu -o "$program"
    fi
  fi
  if [ -n "$dry" ]; then
    bench --suite selection
    return
  fi
  ended || status=$?
  bench --suite selection --sizes 1e8 --only "select k=" --only draw --budget 0.1 --seconds 25 || status=$?
  bench --suite selection --sizes 1e7 --budget 0.05 --seconds 25 || status=$?
  if [ -x "$program" ]; then
    begin cuda_library "$program" 8
    ended || status=$?
    grep '^{' "$out/cuda_library.log" >"$rows/cuda_library.jsonl" || status=1
  fi
  return "$status"
}

stage_loss() { bench --suite loss --budget 0.05 --seconds 75; }

stage_windows() { bench --suite windows --budget 0.1 --seconds 75; }

stage_step() { bench --suite step --budget 0.05 --seconds 60; }

stage_train() {
  local grid name shared=${SHARED:-../shared} status
  # The grids name real series by ../shared, wherever that lies here.
  mkdir -p "$work/here"
  for name in gpu gpu-real gpu-simbench; do
    grid=$PWD/benchmarks/studies/$name.json
    case $name in
      gpu-real)
        if [ ! -d "$shared/data" ]; then missing+=("$shared/data: no real series were trained on") && continue; fi
        ln -sfn "$(realpath "$shared")" "$work/shared"
        ;;
      gpu-simbench) if ! there simbench; then missing+=("simbench: its series was not trained on") && continue; fi ;;
    esac
    if [ -n "$dry" ]; then
      "$python" -c "$SMALL_GRID" "$grid" >"$work/$name.json" && grid=$work/$name.json
    fi
    begin "train-$name" env -C "$work/here" "$python" -m stprune.cli study "$grid" --device "$device" \
      --processes "$((processes / 2))" --minutes "$minutes" --output "$out/train-$name"
  done
  ended
  status=$?
  tail -n 12 "$out"/train-*.log >>"$out/train.log"
  cat "$out"/train-*/rows.jsonl >"$rows/study-$device.jsonl" || status=1
  return "$status"
}

# The first series of a grid, short and with few nodes, and few runs on it.
SMALL_GRID='
import json, re, sys
grid = json.load(open(sys.argv[1]))
block = grid["blocks"][0]
name, _, options = block["data"][0].partition("?")
kept = [each for each in options.split("&") if each and not re.match("nodes|days|steps|stride", each)]
block.update(data=["?".join([name, "&".join([*kept, "nodes=20", "steps=240"])])], cost=0.2, seeds=1, batches=[64],
             node_batches=[[64, 16]], rate_factors=[], curve=[], dim=4)
print(json.dumps({**grid, "blocks": [block]}))'

chosen=(library)
for name in "$@"; do
  if [ "$name" != library ]; then chosen+=("$name"); fi
done
for stage in "${chosen[@]}"; do
  printf '\n== %s ==\n' "$stage"
  rm -f "$out/$stage".log "$out/$stage"-*.log
  start=$SECONDS stage_end=$((SECONDS + LIMIT))
  "stage_$stage"
  status=$?
  tail -n 40 "$out/$stage.log"
  result="passed"
  if [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then result="FAILED: not done after $LIMIT s"; fi
  if [ "$status" -ne 0 ] && [ "$result" = passed ]; then result="FAILED with status $status"; fi
  results+=("$stage: $result, $((SECONDS - start)) s")
  echo "${results[-1]}"
  if [ "$status" -eq 0 ]; then continue; fi
  failed=yes
  if [ "$stage" = library ]; then break; fi
  if [ "$stage" = tests ]; then rows=$out/red && mkdir -p "$rows"; fi
done
if [ "$failed" = yes ]; then finish 1; else finish 0; fi
