#!/usr/bin/env bash
# The whole GPU check in one command: build, tests, benchmark rows, a short demo on the GPU. At most 9 minutes.
#   benchmarks/gpu.sh OUTPUT_FOLDER
# Needs python3 with torch (CUDA), scikit-build-core, cmake, ninja, pytest and hypothesis; no network.
set -euo pipefail
out=$(realpath -m "${1:?usage: benchmarks/gpu.sh OUTPUT_FOLDER}")
cd "$(dirname "$0")/.."
mkdir -p "$out"
python=${PYTHON:-python3}
site="$out/../stprune-site"
export OMP_WAIT_POLICY=passive

"$python" -c "import torch; assert torch.cuda.is_available(), 'no GPU'; print(torch.__version__, torch.cuda.get_device_name())"
"$python" -m pip install --quiet --no-build-isolation --no-deps --no-index --upgrade --target "$site" .
# The folder with the compiled library comes before the checkout's sources.
export PYTHONPATH="$site"
"$python" -c "import stprune; print(stprune.library_status())"

timeout 240 "$python" -m pytest -x -q tests -k "cuda or gpu" -p no:cacheprovider | tee "$out/tests.log"
timeout 180 "$python" benchmarks/run.py --device cuda --sizes 1e6,1e7 --budget 0.5 --no-gate --out "$out" | tee "$out/ops.log"
timeout 90 "$python" -m stprune.cli demo --data synthetic --device cuda --quick --output "$out/demo" | tee "$out/demo.log"
rm -rf "$site"
