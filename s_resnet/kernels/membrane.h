// One neuron, one step: the arithmetic that the CUDA kernel and the host kernel share.
// The equation is that of integrate_and_fire in reference.py; V is float, or int in an integer network.
#pragma once

#if defined(__CUDACC__)
#define SRESNET_INLINE __device__ __forceinline__
#else
#define SRESNET_INLINE inline __attribute__((always_inline))
#endif

namespace sresnet {

// What neurons do at their threshold: one spike and reset by subtraction, or to zero; up to `most` thresholds at a time;
// or as many back as well, and no more than they have emitted.
enum Rule { SUBTRACT, ZERO, LEVELS, SIGNED };

// v <- decay * v + current, in the order of the reference: the other currents are added one by one.
template <typename V, bool LEAKY>
SRESNET_INLINE V integrate(V v, V current, V decay) {
    if (LEAKY) v = decay * v;
    return v + current;
}

// Whether the neuron fires, and its membrane after the reset. Written without a branch, so that lanes stay together.
template <typename V, bool HARD>
SRESNET_INLINE bool fire(V& v, V threshold) {
    const bool fired = v >= threshold;
    const V after = HARD ? V(0) : v - threshold;
    v = fired ? after : v;
    return fired;
}

// What a neuron of the other rules emits, in thresholds, and its membrane after that. k: v / threshold rounded down;
// c: what a signed neuron has emitted. First what is too low: a membrane that is not a number emits the lowest.
template <typename V, Rule RULE>
SRESNET_INLINE V emit(V& v, V& c, V k, V threshold, V most) {
    const V low = RULE == SIGNED ? (c < most ? -c : -most) : V(0);
    k = k > low ? k : low;
    k = k < most ? k : most;
    v = v - threshold * k;
    if (RULE == SIGNED) c = c + k;
    return k;
}

}  // namespace sresnet
