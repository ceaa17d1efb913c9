#!/usr/bin/env bash
# Part 1 of a visit: is it right? Tests, checks against the CPU, and compute-sanitizer; nothing stops the rest.
#     benchmarks/gpu/right.sh      settings: machine.sh
BUDGET=${BUDGET:-200}
. "$(dirname "$0")/machine.sh"
{
    part 20 nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,memory.total,memory.used --format=csv
    part 60 "$PYTHON" benchmarks/gpu/warm.py compile .visit/instances.json --processes 12
    # Tests keep a cache of their own, and the machine's pytest may have plugins that warn.
    mkdir -p .pytest_cache/compiled && cp -rn .visit/cache/. .pytest_cache/compiled/
    part 90 "$PYTHON" -m pytest -q -n 12 -m gpu tests/kernels/test_gpu.py tests/kernels/test_surrogate_cuda.py --no-header \
        --continue-on-collection-errors -p no:cacheprovider -p no:benchmark -o filterwarnings=default -o addopts= 2>&1 |
        tail -40
    # No timing is taken here, so all groups run beside each other; each tells in a file, so that lines do not mix.
    told=$(mktemp -d)
    for group in engine streams arithmetic training; do
        part 110 "$PYTHON" benchmarks/gpu/checks.py "$group" --networks .visit/networks --output "$OUT/gpu_checks.jsonl" \
            > "$told/$group" 2>&1 &
    done
    for tool in memcheck racecheck; do
        if command -v compute-sanitizer > /dev/null; then
            PYTORCH_NO_CUDA_MEMORY_CACHING=1 part 110 compute-sanitizer --tool "$tool" --error-exitcode 9 \
                --kernel-regex kns=sresnet "$PYTHON" benchmarks/gpu/sanitize.py > "$told/$tool" 2>&1 &
        else
            echo "needs compute-sanitizer, which is not here: $tool was not run" > "$told/$tool"
        fi
    done
    wait
    for file in engine streams arithmetic training; do cut -c-1500 "$told/$file"; done
    for file in memcheck racecheck; do echo "== $file" && tail -8 "$told/$file"; done
} 2>&1 | tee "$OUT/right.txt"
