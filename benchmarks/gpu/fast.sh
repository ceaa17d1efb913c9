#!/usr/bin/env bash
# Part 2 of a visit: how fast is it? Alone on the machine, one after the other; what is asked most comes first.
#     benchmarks/gpu/fast.sh      settings: machine.sh
BUDGET=${BUDGET:-220}
. "$(dirname "$0")/machine.sh"
LINES="--output $OUT/gpu_timings.jsonl"
SPEED="benchmarks/speed.py resnet50 --size 224 --batch 64 --steps 64 --threads 8 --repeats 3 --device cuda --output $OUT/speed.jsonl"
{
    # shellcheck disable=SC2086
    part 25 "$PYTHON" benchmarks/gpu/ceilings.py $LINES
    part 40 "$PYTHON" benchmarks/gpu/membrane.py $LINES
    part 80 "$PYTHON" benchmarks/gpu/share.py $LINES
    # In torch's own arithmetic, TF32, and in float16 ...
    part 90 "$PYTHON" $SPEED --tf32 --only "floor,floor float16,ours exact,ours fast,ours int8,spikingjelly eager,spikingjelly multi-step"
    part 60 "$PYTHON" benchmarks/gpu/fused.py $LINES
    part 50 "$PYTHON" benchmarks/gpu/convolutions.py $LINES
    part 30 "$PYTHON" benchmarks/gpu/overheads.py --networks .visit/networks $LINES
    # ... where SpikingJelly first tries four kernels for every shape of a layer, which may take a minute ...
    part 90 "$PYTHON" $SPEED --tf32 --only "floor float16,ours fast,spikingjelly multi-step float16"
    # ... and in float32, which our default rounds like.
    part 60 "$PYTHON" $SPEED --only "floor,ours exact,spikingjelly multi-step"
} 2>&1 | cut -c-2500 | tee "$OUT/fast.txt"
