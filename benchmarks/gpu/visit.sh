#!/usr/bin/env bash
# One visit to a machine with a GPU: is it right, is it clean, how fast is it? In this order, and it stops at the first no.
#     benchmarks/gpu/visit.sh [PYTHON]      default: .venv/bin/python, with s-resnet[test] installed
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${1:-.venv/bin/python}

nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,memory.total --format=csv
"$PYTHON" -c 'from s_resnet import kernels; print(kernels.describe())'

echo "== correctness"
# pytest is content when everything is skipped; a visit is not.
"$PYTHON" -m pytest -m gpu tests/test_gpu.py -p no:cacheprovider | tee /dev/stderr | grep -E '[1-9][0-9]* passed' > /dev/null

echo "== compute-sanitizer"
if command -v compute-sanitizer > /dev/null; then
    # Without torch's caching every tensor is an allocation of its own, so that one byte beside it is seen.
    for tool in memcheck racecheck synccheck; do
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 \
            --kernel-regex kns=membrane "$PYTHON" -m pytest -m gpu tests/test_gpu.py -p no:cacheprovider -q \
            -k "equals_the_reference or real_size"
    done
else
    echo "compute-sanitizer is not here: memcheck and racecheck were NOT run"
fi

echo "== timings"
for steps in 1 8; do
    "$PYTHON" benchmarks/gpu/membrane.py --steps "$steps"
done
"$PYTHON" benchmarks/gpu/share.py
# Beside SpikingJelly's own GPU paths, where they are installed: pip install '.[bench]'
"$PYTHON" benchmarks/speed.py resnet50 --size 224 --batch 64 --steps 64 --device cuda --repeats 5
