#!/usr/bin/env bash
# Part 1 of a visit: is it right? Checks against the CPU, compute-sanitizer, and tests; nothing stops the rest.
#     benchmarks/gpu/right.sh      settings: machine.sh
BUDGET=${BUDGET:-200}
. "$(dirname "$0")/machine.sh"
GROUPS_OF_CHECKS="engine analysis streams arithmetic training"
{
    part 20 nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,memory.total,memory.used --format=csv
    part 60 "$PYTHON" benchmarks/gpu/warm.py compile .visit/instances.json --processes 12
    # No timing is taken here, so all groups run beside each other; each tells in a file, so that lines do not mix.
    # Each has few threads: with more than there are cores, all wait for each other, and what takes 0.5 s takes 5.
    told=$(mktemp -d)
    export OMP_NUM_THREADS=2
    for group in $GROUPS_OF_CHECKS; do
        part 110 "$PYTHON" benchmarks/gpu/checks.py "$group" --networks .visit/networks --output "$OUT/gpu_checks.jsonl" \
            > "$told/$group" 2>&1 &
    done
    # Bindings ask the driver for functions that it does not have; that is an error of the API, and none of a kernel.
    for tool in "memcheck --report-api-errors no" racecheck; do
        name=${tool%% *}
        if command -v compute-sanitizer > /dev/null; then
            # shellcheck disable=SC2086
            PYTORCH_NO_CUDA_MEMORY_CACHING=1 part 110 compute-sanitizer --tool $tool --error-exitcode 9 \
                --kernel-name kns=sresnet "$PYTHON" benchmarks/gpu/sanitize.py > "$told/$name" 2>&1 &
        else
            echo "needs compute-sanitizer, which is not here: $name was not run" > "$told/$name"
        fi
    done
    wait
    for group in $GROUPS_OF_CHECKS; do cut -c-1500 "$told/$group"; done
    for file in memcheck racecheck; do echo "== $file" && tail -8 "$told/$file"; done
    # Tests keep a cache of their own, and the machine's pytest may have plugins that warn.
    mkdir -p .pytest_cache/compiled && cp -r .visit/cache/. .pytest_cache/compiled/
    export OMP_NUM_THREADS=1
    # Interrupted, pytest still tells what failed until then.
    SIGNAL=INT part 90 "$PYTHON" -m pytest -q -n 8 -m gpu tests/kernels/test_gpu.py tests/kernels/test_surrogate_cuda.py \
        tests/conversion/test_convert_device.py tests/analysis/test_operations.py --no-header --tb=short --durations=12 \
        --continue-on-collection-errors -p no:cacheprovider -p no:benchmark -o filterwarnings=default -o addopts= 2>&1 |
        tail -150
} 2>&1 | tee "$OUT/right.txt"
