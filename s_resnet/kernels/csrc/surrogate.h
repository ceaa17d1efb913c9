// One neuron that is trained, one step forward and one step back: the arithmetic that host and CUDA kernels share.
// The equations are those of fire_reference and slope in surrogate.py; V is float, or double on the host.
#pragma once

#if !defined(__CUDACC__)
#include <cstring>
#endif

#include "membrane.h"

namespace sresnet {

enum Surrogate { RECTANGLE, TRIANGLE, ARCTAN, SIGMOID };

// 2^n by its bits, which lie as those of a number do.
SRESNET_INLINE float power_of_two(float, int n) {
    const int bits = (n + 127) << 23;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
SRESNET_INLINE double power_of_two(double, int n) {
    const long long bits = (long long)(n + 1023) << 52;
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
// The least argument whose exponential is normal; log 2 in two parts, the first of few bits so that its multiples are
// exact; and how many terms of the series are enough.
template <typename V> struct Exponential;
template <> struct Exponential<float> {
    static constexpr float LEAST = -87.0f, HIGH = 0.693359375f, LOW = -2.12194440e-4f;
    static constexpr int TERMS = 7;
};
template <> struct Exponential<double> {
    static constexpr double LEAST = -708.0, HIGH = 0.693147180369123816490, LOW = 1.90821492927058770002e-10;
    static constexpr int TERMS = 13;
};

// 1 + r / 1 * (1 + r / 2 * (1 + ...)) down to the first of N terms. Not a loop: compilers give up on one in another.
template <int N, typename V>
SRESNET_INLINE V series(V r, V sum) {
    if constexpr (N == 0) return sum;
    else return series<N - 1>(r, V(1) + r * ((V)(1.0 / N) * sum));
}

// exp(y) for y <= 0, in operations that compilers put on whole vectors: 0 where it is not normal, and not a number where
// y is not finite. By products with 0 and 1, since compilers make a choice between constants a branch.
template <typename V>
SRESNET_INLINE V exponential(V y) {
    using E = Exponential<V>;
    const V normal = y < E::LEAST ? V(0) : V(1);
    y = y * normal;
    const int n = (int)(y * (V)1.4426950408889634 - (V)0.5);
    const V r = (y - (V)n * E::HIGH) - (V)n * E::LOW;
    return series<E::TERMS>(r, V(1)) * power_of_two(V(), n) * normal;
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
