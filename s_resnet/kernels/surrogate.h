// One neuron that is trained, one step forward and one step back: the arithmetic that host and CUDA kernels share.
// The equations are those of fire_reference and slope in surrogate.py; V is float, or double on the host.
#pragma once

#include "membrane.h"

namespace sresnet {

enum Surrogate { RECTANGLE, TRIANGLE, ARCTAN, SIGMOID };

// Powers of two by their bits, and what the exponential of a type takes: the least argument whose result is normal,
// the terms of its series, log 2 in two parts of which a small whole number times the first is exact.
SRESNET_INLINE float power_of_two(float, int n) {
    union { int bits; float value; } both;
    both.bits = (n + 127) << 23;
    return both.value;
}
SRESNET_INLINE double power_of_two(double, int n) {
    union { long long bits; double value; } both;
    both.bits = (long long)(n + 1023) << 52;
    return both.value;
}
template <typename V> struct Exponential;
template <> struct Exponential<float> {
    static constexpr float LEAST = -87.0f, HIGH = 0.693359375f, LOW = -2.12194440e-4f;
    static constexpr int TERMS = 7;
};
template <> struct Exponential<double> {
    static constexpr double LEAST = -708.0, HIGH = 0.693147180369123816490, LOW = 1.90821492927058770002e-10;
    static constexpr int TERMS = 13;
};

// exp(y) for y <= 0, in operations that compilers put on whole vectors; what is not a number stays so.
template <typename V>
SRESNET_INLINE V exponential(V y) {
    using E = Exponential<V>;
    y = y < E::LEAST ? E::LEAST : y;
    const int n = (int)(y * (V)1.4426950408889634 - (V)0.5);
    const V r = (y - (V)n * E::HIGH) - (V)n * E::LOW;
    V sum = V(1);
#if defined(__CUDACC__)
#pragma unroll
#endif
    for (int i = E::TERMS; i > 0; i--) sum = V(1) + r * ((V)(1.0 / i) * sum);
    return sum * power_of_two(V(), n);
}

// The surrogate derivative at x, the potential above the threshold. inside, height: see Firing in surrogate.py.
template <Surrogate SURROGATE, typename V>
SRESNET_INLINE V slope(V x, V inside, V height) {
    const V distance = x < V(0) ? -x : x;
    if (SURROGATE == RECTANGLE) return distance < inside ? height : V(0);
    if (SURROGATE == TRIANGLE) {
        const V left = V(1) - distance * inside;
        return left < V(0) ? V(0) : left * height;
    }
    const V scaled = x * inside;
    if (SURROGATE == ARCTAN) return height / (V(1) + scaled * scaled);
    const V e = exponential(-(scaled < V(0) ? -scaled : scaled));
    return height * (e / ((V(1) + e) * (V(1) + e)));
}

// w <- the membrane after a step without its reset, u; then after it. Returns the spike.
template <bool HARD, typename V>
SRESNET_INLINE V reset(V u, V threshold, V& w) {
    const V s = u >= threshold ? V(1) : V(0);
    w = HARD ? u * (V(1) - s) : u - threshold * s;
    return s;
}

// What a step adds to the gradient of its current, and takes over from the step after it, where `later` is the
// gradient of the membrane after the reset. spikes: the gradient of the spikes.
template <bool HARD, bool DETACHED, Surrogate SURROGATE, typename V>
SRESNET_INLINE V back(V u, V threshold, V spikes, V later, V inside, V height) {
    const V s = u >= threshold ? V(1) : V(0);
    const V kept = HARD ? later * (V(1) - s) : later;
    const V through = DETACHED ? spikes : spikes - later * (HARD ? u : threshold);
    return through * slope<SURROGATE>(u - threshold, inside, height) + kept;
}

}  // namespace sresnet
