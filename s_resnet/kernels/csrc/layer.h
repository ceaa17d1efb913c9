// A neuron layer on the CPU: its tensors, and one step of a run of neurons. The arithmetic is that of membrane.h.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

#include "membrane.h"

namespace sresnet {

enum Type : int32_t { NONE, FLOAT32, BFLOAT16, UINT8, INT32, INT8 };

struct Layer {
    int64_t steps, images, neurons, channels, inner;  // neurons of one image; those of one channel that lie together
    int64_t current_step, shortcut_step, bias_step;    // elements from one step to the next; 0 for a constant
    int32_t current_type, shortcut_type, spike_type, rule, schedule, most, threads;
    float decay;
    const void *current, *v, *threshold, *bias, *shortcut, *scale;  // threshold, bias, scale: [channels] or null
    const void *emitted;  // of signed neurons
    void *v_after, *emitted_after, *spikes;  // v_after may be v; emitted_after may be emitted, or null
    int32_t* counts;  // [steps, images] or null
};

struct Bf16 {
    uint16_t bits;
    Bf16() = default;
    // Whole numbers of up to 8 bits, which need no rounding.
    explicit inline Bf16(float whole) {
        uint32_t wide;
        memcpy(&wide, &whole, sizeof wide);
        bits = (uint16_t)(wide >> 16);
    }
    inline operator float() const {
        const uint32_t wide = (uint32_t)bits << 16;
        float value;
        memcpy(&value, &wide, sizeof value);
        return value;
    }
    explicit inline operator int32_t() const { return (int32_t)(float)*this; }
};

// The parameters of a run of neurons, which lies within one channel where channels are not innermost.
template <typename V>
struct Parameters {
    std::vector<V> threshold, bias, scale;

    void set(const Layer& l, int64_t first, int64_t n) {
        spread(l, l.threshold, V(1), first, n, threshold);
        spread(l, l.bias, V(0), first, n, bias);
        spread(l, l.scale, V(1), first, n, scale);
    }

    static void spread(const Layer& l, const void* values, V missing, int64_t first, int64_t n, std::vector<V>& to) {
        const V* given = (const V*)values;
        to.assign(n, given && l.inner != 1 ? given[first / l.inner % l.channels] : missing);
        if (!given || l.inner != 1) return;
        int64_t channel = first % l.channels;
        for (int64_t j = 0; j < n;) {
            const int64_t run = l.channels - channel < n - j ? l.channels - channel : n - j;
            memcpy(to.data() + j, given + channel, run * sizeof(V));
            j += run, channel = 0;
        }
    }

    // The biases of step t, where they differ from step to step.
    void at_step(const Layer& l, int64_t t, int64_t first, int64_t n) {
        if (l.bias_step) spread(l, (const V*)l.bias + t * l.bias_step, V(0), first, n, bias);
    }
};

// One step of n neurons whose parameters begin at `at`. Returns how many fired.
template <typename V, bool HARD, bool SHORTCUT, typename C, typename S>
int32_t step(const C* __restrict current, const S* __restrict shortcut, const V* __restrict bias,
             const V* __restrict scale, const V* __restrict threshold, V decay, V* __restrict v,
             uint8_t* __restrict fired, int64_t n) {
    int32_t count = 0;
    for (int64_t j = 0; j < n; j++) {
        V u = integrate<V, true>(v[j], (V)current[j], decay) + bias[j];  // times 1 changes no bit
        if (SHORTCUT) u = u + (V)shortcut[j] * scale[j];
        const bool s = fire<V, HARD>(u, threshold[j]);
        v[j] = u;
        fired[j] = s;
        count += s;
    }
    return count;
}

template <typename V, typename C, typename S, bool SHORTCUT>
int32_t step(const Layer& l, const C* current, const S* shortcut, const Parameters<V>& p, int64_t at, V* v,
             uint8_t* fired, int64_t n) {
    const V *bias = p.bias.data() + at, *scale = p.scale.data() + at, *threshold = p.threshold.data() + at;
    return l.rule == ZERO ? step<V, true, SHORTCUT>(current, shortcut, bias, scale, threshold, (V)l.decay, v, fired, n)
                          : step<V, false, SHORTCUT>(current, shortcut, bias, scale, threshold, (V)l.decay, v, fired, n);
}

// The same; `from` is where the neurons begin within the whole shortcut.
template <typename V, typename C>
int32_t step(const Layer& l, const C* current, int64_t from, const Parameters<V>& p, int64_t at, V* v, uint8_t* fired,
             int64_t n) {
    switch (l.shortcut_type) {
        case INT8: return step<V, C, int8_t, true>(l, current, (const int8_t*)l.shortcut + from, p, at, v, fired, n);
        case UINT8: return step<V, C, uint8_t, true>(l, current, (const uint8_t*)l.shortcut + from, p, at, v, fired, n);
        case FLOAT32: return step<V, C, float, true>(l, current, (const float*)l.shortcut + from, p, at, v, fired, n);
        case BFLOAT16: return step<V, C, Bf16, true>(l, current, (const Bf16*)l.shortcut + from, p, at, v, fired, n);
        case INT32: return step<V, C, int32_t, true>(l, current, (const int32_t*)l.shortcut + from, p, at, v, fired, n);
    }
    return step<V, C, uint8_t, false>(l, current, (const uint8_t*)nullptr, p, at, v, fired, n);
}

template <typename F, typename T>
inline void convert(const F* from, T* to, int64_t n) {
    for (int64_t j = 0; j < n; j++) to[j] = (T)from[j];
}

// Spikes in the type that the next layer reads.
inline void store(int32_t type, const uint8_t* fired, void* to, int64_t at, int64_t n) {
    switch (type) {
        case INT8:
        case UINT8: memcpy((uint8_t*)to + at, fired, n); return;
        case FLOAT32: return convert(fired, (float*)to + at, n);
        case INT32: return convert(fired, (int32_t*)to + at, n);
        case BFLOAT16:
            for (int64_t j = 0; j < n; j++) ((uint16_t*)to)[at + j] = fired[j] ? 0x3f80 : 0;
    }
}

inline void add_count(const Layer& l, int64_t t, int64_t image, int32_t count) {
    if (l.counts) {
#pragma omp atomic
        l.counts[t * l.images + image] += count;
    }
}

}  // namespace sresnet
