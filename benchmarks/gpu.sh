#!/usr/bin/env bash
# The whole GPU check in one command: build, tests, memory and race checks, benchmark rows, a short demo. At most 9 minutes:
# the limits of the steps add up to 540 s. Logs and rows go to the folder; the checkout is left as it was.
#   benchmarks/gpu.sh OUTPUT_FOLDER
# Needs python3 (or $PYTHON) with torch (CUDA), scikit-build-core, cmake, ninja, pytest, hypothesis, tqdm and matplotlib;
# nvcc; no network. compute-sanitizer is used where it is on PATH.
set -uo pipefail
out=$(realpath -m "${1:?usage: benchmarks/gpu.sh OUTPUT_FOLDER}")
cd "$(dirname "$0")/.."
mkdir -p "$out"
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_WAIT_POLICY=passive PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MPLCONFIGDIR="$work/matplotlib"
failed=()

# step NAME SECONDS COMMAND...: runs it under a limit, its output to NAME.log; a failure is remembered.
step() {
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  printf '\n== %s ==\n' "$name"
  timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1
  status=$?
  tail -n "${LINES_SHOWN:-15}" "$out/$name.log"
  echo "$name: status $status, $((SECONDS - start)) s"
  if [ "$status" -ne 0 ]; then failed+=("$name"); fi
  return "$status"
}

finish() {
  echo
  if [ "${#failed[@]}" -eq 0 ]; then echo "all steps passed in $SECONDS s"; else echo "failed: ${failed[*]}"; fi
  [ "${#failed[@]}" -eq 0 ]
}

"$python" -c "import torch; assert torch.cuda.is_available(), 'no GPU'; print(torch.__version__, torch.cuda.get_device_name())" || exit 1
architecture=$("$python" -c "import torch; print('%d%d' % torch.cuda.get_device_capability())")
# The folder with the compiled library comes before the checkout's sources.
export STPRUNE_CUDA=ON CMAKE_ARGS="-DCMAKE_CUDA_ARCHITECTURES=$architecture"
step build 85 "$python" -m pip install --no-build-isolation --no-deps --no-index --upgrade --target "$work/site" \
  --config-settings=build-dir="$work/build" . || { finish; exit 1; }
export PYTHONPATH="$work/site"
step library 15 "$python" -c "
import stprune
status = stprune.library_status()
print(status)
assert status['_C_cuda'].loaded and status['_C_cuda'].path.startswith('$work'), status" || { finish; exit 1; }

pytest=("$python" -m pytest -q -p no:cacheprovider -o addopts=)
LINES_SHOWN=30 step tests 130 "${pytest[@]}" tests/test_cuda.py
green=$?
# Other files' tests that take a device. Status 5: there is none.
step tests_of_other_files 35 "${pytest[@]}" tests --ignore=tests/test_cuda.py --ignore=tests/test_cuda_build.py \
  --ignore=tests/test_cuda_host.py -k "cuda or gpu"
if [ $? -eq 5 ]; then unset 'failed[-1]'; fi

if command -v compute-sanitizer >/dev/null; then
  cat >"$work/every_op.py" <<'PYTHON'
import torch
import stprune
from stprune.ops.budget import inclusion_budget
keys = torch.randn(30_001, device="cuda").abs()
p = keys.double() / (keys.max().double() * 2)
p *= round(float(p.sum())) / float(p.sum())
ids = torch.arange(5000, device="cuda")
assert len(stprune.select(keys, 9000)) == 9000
assert len(stprune.select(torch.ones_like(keys), 9000)) == 9000
assert len(stprune.topk(keys.double(), 5000).indices) == 5000
stprune.draw(p, seed=1, epoch=2)
assert len(stprune.draw(p, seed=1, epoch=2, count=round(float(p.sum())))) == round(float(p.sum()))
for law in ("priority", "race"):
    assert len(stprune.draw_weighted(keys, 9000, seed=1, epoch=2, law=law)[0]) == 9000
assert int(stprune.shuffle(ids, seed=1, epoch=2).sum()) == int(ids.sum())
assert int(stprune.shuffle(ids[:500], seed=1, epoch=2).sum()) == int(ids[:500].sum())
assert abs(float(inclusion_budget(keys, alpha=0.5, count=9000.0, minimum=0.06).double().sum()) - 9000) < 0.1
for exact in (False, True):
    stprune.ops.draw_threshold(keys, 0.5, seed=1, epoch=2, exact_count=exact)
for nodes in (170, 10_300):
    weights = torch.rand(8, nodes, device="cuda") + 0.1
    stprune.draw_nodes_weighted(weights, ids[:8], count=50, seed=1, epoch=2)
    node = stprune.draw_nodes(ids[:8], num_nodes=nodes, count=50, seed=1, epoch=2)
    x = torch.randn(8, 3, nodes, 2, device="cuda", requires_grad=True)
    stprune.gather_nodes(x, node).sum().backward()
    assert int(x.grad.sum()) == 8 * 3 * 50 * 2
torch.cuda.synchronize()
PYTHON
  for tool in memcheck racecheck; do
    if ! step "$tool" 30 compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" "$work/every_op.py" &&
      grep -q "Device not supported" "$out/$tool.log"; then
      echo "compute-sanitizer does not support this machine: not run"
      unset 'failed[-1]'
    fi
  done
else
  echo "compute-sanitizer is not on PATH: not run"
fi

if [ "$green" -eq 0 ]; then
  # Nothing is timed on red.
  LINES_SHOWN=60 step benchmarks 45 "$python" benchmarks/run.py --device cuda --sizes 1e6,1e7 --budget 0.1 --no-gate --out "$out"
  for job in select draw; do
    LINES_SHOWN=30 step "benchmarks_$job" 20 "$python" benchmarks/run.py --device cuda --sizes 1e8 --only "$job" --budget 0.1 \
      --no-gate --out "$out"
  done
  # torch.compile's turn takes the longest: one shape and dtype, then the table's update.
  LINES_SHOWN=40 step benchmarks_loss 40 "$python" benchmarks/run.py --device cuda --suite loss --only "(64, 12, 8600) float32" \
    --only ScoreTable --budget 0.05 --seconds 28 --no-gate --out "$out"
  step library_build 35 nvcc -O3 -std=c++17 --fmad=false -arch="sm_$architecture" -Icsrc benchmarks/cuda_library.cu \
    -o "$work/cuda_library" &&
    LINES_SHOWN=60 step library_rows 15 "$work/cuda_library" 8 && cp "$out/library_rows.log" "$out/cuda_library.jsonl"
else
  echo "the tests are red: nothing is timed"
fi
step demo 40 "$python" -c "import sys; from stprune.cli import main; sys.exit(main())" demo --data demand --device cuda \
  --quick --output "$out/demo"
finish
