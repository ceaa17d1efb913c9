#!/usr/bin/env bash
# Part 3 of a visit: one kernel for a convolution and its neurons, alone, in the network, and on photographs.
#     benchmarks/gpu/engine.sh      settings: machine.sh; PHOTOGRAPHS: a folder that packed.py made
BUDGET=${BUDGET:-230} PHOTOGRAPHS=${PHOTOGRAPHS:-.visit/photographs}
. "$(dirname "$0")/machine.sh"
LINES="--output $OUT/gpu_timings.jsonl"
SPEED="benchmarks/speed.py resnet50 --size 224 --batch 64 --threads 8 --device cuda --tf32"
WHOLE="int8 exact as on the CPU, bit for bit;int8 fast as on the CPU, bit for bit;calibrated-lagged-int8 exact as on the CPU, bit for bit"
told=$(mktemp -d)
quietly() { # quietly NAME SECONDS COMMAND ...: beside others, for what it compiles or checks; told in a file
    local name=$1
    shift
    part "$@" > "$told/$name" 2>&1 &
}
{
    # Compilers run beside each other, and nothing is timed.
    quietly sj 85 "$PYTHON" $SPEED --steps 64 --repeats 1 --only "spikingjelly multi-step float16" --output /dev/null
    quietly compiled-ann 85 "$PYTHON" benchmarks/gpu/ann.py --output /dev/null
    part 60 "$PYTHON" benchmarks/gpu/fused.py --task compile --processes 13
    wait
    tail -n 2 "$told"/*
    # shellcheck disable=SC2086
    part 40 "$PYTHON" benchmarks/gpu/fused.py --task measure $LINES
    part 75 "$PYTHON" $SPEED --steps 64 --repeats 3 --output "$OUT/speed.jsonl" \
        --only "floor float16,ours fast,ours int8,spikingjelly multi-step,spikingjelly multi-step float16"
    quietly checks 60 "$PYTHON" benchmarks/gpu/checks.py --only "$WHOLE" --networks .visit/networks \
        --output "$OUT/gpu_checks.jsonl"
    quietly tests 60 "$PYTHON" -m pytest -q -n 4 -m gpu tests/kernels/test_gpu.py --no-header --tb=short -p no:cacheprovider \
        -p no:benchmark -o filterwarnings=default -o addopts= -k "operator_keeps or threads_may or compiled_it"
    for network in $(cd "$PHOTOGRAPHS" && ls | sed -n 's/\.snn\.xz$//p'); do
        quietly "$network" 60 "$PYTHON" benchmarks/gpu/gpu_imagenet.py --networks "$PHOTOGRAPHS" --only "$network" \
            --output /dev/null
    done
    wait
    cat "$told"/*
    part 40 "$PYTHON" benchmarks/gpu/gpu_imagenet.py --networks "$PHOTOGRAPHS" --output "$OUT/gpu_imagenet.jsonl"
    # shellcheck disable=SC2086
    part 30 "$PYTHON" benchmarks/gpu/ann.py $LINES
    cp "$XDG_CACHE_HOME"/s_resnet/tiles-*.json "$OUT/" 2> /dev/null
} 2>&1 | cut -c1-2500 | tee "$OUT/engine.txt"
