#!/usr/bin/env bash
# Before a visit, on a machine without a GPU: lays .visit/ (ignored by git), which travels with the checkout.
#     benchmarks/gpu/prepare.sh [FIXTURES]
# It holds networks with what the CPU says of them, the kernels compiled for the GPU, and wheels of what the machine may
# lack. PYTHON has s-resnet[test] installed; the rest says what is there: its Python, torch's torchvision, its GPU.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-.venv/bin/python} PYTHON_THERE=${PYTHON_THERE:-3.12} TORCHVISION=${TORCHVISION:-0.26.0} ARCH=${ARCH:-sm_90}
MOST=60 # MiB
rm -rf .visit && mkdir -p .visit/wheels

"$PYTHON" benchmarks/gpu/networks.py .visit/networks ${1:+--fixtures "$1"}

PLATFORMS=$(for glibc in 2_28 2_27 2_24 2_17; do echo "--platform manylinux_${glibc}_x86_64"; done)
OURS="torchvision==$TORCHVISION pillow safetensors tqdm click"
PEER="spikingjelly==2.0.0 loguru requests certifi charset-normalizer idna urllib3"
TESTS="pytest pytest-xdist execnet pluggy iniconfig packaging pygments hypothesis sortedcontainers"
# shellcheck disable=SC2086
"$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version "$PYTHON_THERE" --implementation cp \
    $PLATFORMS --platform manylinux2014_x86_64 --dest .visit/wheels $OURS $PEER $TESTS

# The checks run as if this were a GPU; what one that fails would have launched is compiled on the visit.
QUICK=$(mktemp -d)
"$PYTHON" benchmarks/gpu/networks.py "$QUICK" --quick > /dev/null
"$PYTHON" benchmarks/gpu/warm.py record .visit/instances.json --networks "$QUICK" > "$QUICK/told" || grep FAIL "$QUICK/told"
XDG_CACHE_HOME=$PWD/.visit/cache "$PYTHON" benchmarks/gpu/warm.py compile .visit/instances.json --arch "$ARCH"

size=$(du -sm .visit | cut -f1)
echo ".visit: $size MiB"
[ "$size" -le "$MOST" ] || { echo "expected at most $MOST MiB"; exit 1; }
