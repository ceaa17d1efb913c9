// One neuron, one step: the arithmetic that the CUDA kernel and the host kernel share.
// The equation is that of integrate_and_fire in reference.py; V is float, or int in an integer network.
#pragma once

#if defined(__CUDACC__)
#define SRESNET_INLINE __device__ __forceinline__
#else
#define SRESNET_INLINE inline __attribute__((always_inline))
#endif

namespace sresnet {

// What neurons do at their threshold: one spike and reset by subtraction, or to zero; up to `most` thresholds at once;
// or as many back as well, and no more than they have emitted.
enum Rule { SUBTRACT, ZERO, LEVELS, SIGNED };

// When they fire: at each step as they integrate it; after one step more; after all.
enum Schedule { STREAMING, LAGGED, PHASED };

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

// What a neuron of the other rules emits, in thresholds, and its membrane after that. q: v / threshold, for floats not
// rounded yet: the limits are whole, so that it may be held to them first; what is not a number goes to the lower one.
// c: what a signed neuron has emitted. Cut off and corrected rather than floor(), which some compilers do lane by lane.
template <Rule RULE, typename V>
SRESNET_INLINE int emit(V& v, V& c, V q, V threshold, V most) {
    const V low = RULE == SIGNED ? -(c < most ? c : most) : V(0);
    q = q > low ? q : low;
    q = q < most ? q : most;
    const int cut = (int)q, k = RULE == SIGNED ? cut - ((V)cut > q) : cut;
    v = v - threshold * (V)k;
    if (RULE == SIGNED) c = c + (V)k;
    return k;
}

}  // namespace sresnet
