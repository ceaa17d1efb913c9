// A neuron layer on the CPU: its tensors, and one step of a run of neurons. The arithmetic is that of membrane.h.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "membrane.h"

namespace sresnet {

enum Type : int32_t { NONE, FLOAT32, BFLOAT16, UINT8, INT32, INT8 };

struct Layer {
    int64_t steps, images, neurons, channels, inner;  // neurons of one image; those of one channel that lie together
    int64_t wait, answers;                             // steps before the first at which they may fire; those from it on
    int64_t current_step, shortcut_step, bias_step;    // elements from one step to the next; 0 for a constant
    int32_t current_type, shortcut_type, spike_type, rule, schedule, most, threads;
    float decay;
    const void *current, *v, *threshold, *bias, *shortcut, *scale;  // threshold, bias, scale: [channels] or null
    const void *emitted;  // of signed neurons
    void *v_after, *emitted_after, *spikes;  // v_after may be v; emitted_after may be emitted, or null
    int32_t* counts;  // [answers, images] or null
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
    bool unit = false;  // whether all thresholds are 1

    void set(const Layer& l, int64_t first, int64_t n) {
        spread(l, l.threshold, V(1), first, n, threshold);
        unit = std::all_of(threshold.begin(), threshold.end(), [](V theta) { return theta == V(1); });
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

// What a run of neurons does at a step: it integrates and fires, streaming or waiting, or it only integrates.
enum Part { STREAM, WAIT, GATHER };

// The shortcut branch of a run of neurons: `values` of a type from the `from`th on, or nothing.
struct Branch {
    int32_t type;
    const void* values;
    int64_t from;
};

// One step of n neurons. Returns how many fired.
template <typename V, Part PART, bool HARD, bool SHORTCUT, typename C, typename S>
int32_t step(const C* __restrict current, const S* __restrict shortcut, const Parameters<V>& p, V decay,
             V* __restrict v, uint8_t* __restrict fired, int64_t n) {
    const V *__restrict bias = p.bias.data(), *__restrict scale = p.scale.data();
    const V* __restrict threshold = p.threshold.data();
    int32_t count = 0;
    for (int64_t j = 0; j < n; j++) {
        V u = (V)current[j];
        if (PART == STREAM) {
            u = integrate<V, true>(v[j], u, decay) + bias[j];  // times 1 changes no bit
            if (SHORTCUT) u = u + (V)shortcut[j] * scale[j];
        } else {
            if (SHORTCUT) u = u + (V)shortcut[j] * scale[j];
            u = v[j] + (u + bias[j]);
        }
        if (PART != GATHER) {
            const bool s = fire<V, HARD>(u, threshold[j]);
            fired[j] = s;
            count += s;
        }
        v[j] = u;
    }
    return count;
}

template <Part PART, typename V, typename C, typename S, bool SHORTCUT>
int32_t step(const Layer& l, const C* current, const S* shortcut, const Parameters<V>& p, V* v, uint8_t* fired,
             int64_t n) {
    if (PART != GATHER && l.rule == ZERO)
        return step<V, PART, true, SHORTCUT>(current, shortcut, p, (V)l.decay, v, fired, n);
    return step<V, PART, false, SHORTCUT>(current, shortcut, p, (V)l.decay, v, fired, n);
}

template <Part PART, typename V, typename C>
int32_t step(const Layer& l, const C* current, const Branch& b, const Parameters<V>& p, V* v, uint8_t* fired,
             int64_t n) {
    switch (b.type) {
        case INT8: return step<PART, V, C, int8_t, true>(l, current, (const int8_t*)b.values + b.from, p, v, fired, n);
        case UINT8: return step<PART, V, C, uint8_t, true>(l, current, (const uint8_t*)b.values + b.from, p, v, fired, n);
        case FLOAT32: return step<PART, V, C, float, true>(l, current, (const float*)b.values + b.from, p, v, fired, n);
        case BFLOAT16: return step<PART, V, C, Bf16, true>(l, current, (const Bf16*)b.values + b.from, p, v, fired, n);
        case INT32: return step<PART, V, C, int32_t, true>(l, current, (const int32_t*)b.values + b.from, p, v, fired, n);
    }
    return step<PART, V, C, uint8_t, false>(l, current, (const uint8_t*)nullptr, p, v, fired, n);
}

// What n binary neurons emit that integrate nothing more.
template <typename V>
int32_t answer(const Layer& l, const V* __restrict threshold, V* __restrict v, uint8_t* __restrict fired, int64_t n) {
    int32_t count = 0;
    if (l.rule == ZERO)
        for (int64_t j = 0; j < n; j++) count += fired[j] = fire<V, true>(v[j], threshold[j]);
    else
        for (int64_t j = 0; j < n; j++) count += fired[j] = fire<V, false>(v[j], threshold[j]);
    return count;
}

inline bool is_binary(const Layer& l) { return l.rule == SUBTRACT || l.rule == ZERO; }

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

// ---- other alphabets, and terms apart: one loop for each term, so that types do not multiply ----

// n numbers as V: where they lie, or in `room`.
template <typename V>
const V* as(int32_t type, const void* from, int64_t at, V* room, int64_t n) {
    const bool there = type == (std::is_same<V, float>::value ? FLOAT32 : INT32);
    if (there) return (const V*)from + at;
    switch (type) {
        case FLOAT32: convert((const float*)from + at, room, n); break;
        case BFLOAT16: convert((const Bf16*)from + at, room, n); break;
        case INT32: convert((const int32_t*)from + at, room, n); break;
        case UINT8: convert((const uint8_t*)from + at, room, n); break;
        case INT8: convert((const int8_t*)from + at, room, n); break;
    }
    return room;
}

// Emissions in the type that the next layer reads.
inline void store(int32_t type, const int16_t* k, void* to, int64_t at, int64_t n) {
    switch (type) {
        case FLOAT32: return convert(k, (float*)to + at, n);
        case BFLOAT16: return convert(k, (Bf16*)to + at, n);
        case INT32: return convert(k, (int32_t*)to + at, n);
        case UINT8: return convert(k, (uint8_t*)to + at, n);
        case INT8: return convert(k, (int8_t*)to + at, n);
    }
}

inline float quotient(float v, float threshold) { return v / threshold; }
// Rounded down. Exact, and done on whole vectors: 53 bits are more than enough for a quotient of 32-bit numbers.
inline int32_t quotient(int32_t v, int32_t threshold) {
    const int32_t cut = (int32_t)((double)v / threshold);
    return cut - (cut * threshold > v);
}

// The powers of two that all |k| are sums of. Bits are added side by side: not every processor counts them in vectors.
inline int32_t amplitudes(const int16_t* k, int64_t n) {
    int32_t count = 0;
    for (int64_t j = 0; j < n; j++) {
        const uint16_t all = (uint16_t)(k[j] < 0 ? -k[j] : k[j]);
        const uint16_t pairs = (uint16_t)(all - (all >> 1 & 0x55));
        const uint16_t fours = (uint16_t)((pairs & 0x33) + (pairs >> 2 & 0x33));
        count += (fours & 15) + (fours >> 4);
    }
    return count;
}

// Everything that arrives at n neurons at a step.
template <typename V>
void arrive(const Layer& l, const Parameters<V>& p, const V* __restrict current, const V* __restrict shortcut,
            V* __restrict v, int64_t n) {
    const V decay = (V)l.decay, *__restrict bias = p.bias.data(), *__restrict scale = p.scale.data();
    if (l.schedule != STREAMING && shortcut)
        for (int64_t j = 0; j < n; j++) v[j] = v[j] + ((current[j] + shortcut[j] * scale[j]) + bias[j]);
    else if (l.schedule != STREAMING)
        for (int64_t j = 0; j < n; j++) v[j] = v[j] + (current[j] + bias[j]);
    else if (shortcut)
        for (int64_t j = 0; j < n; j++)
            v[j] = (integrate<V, true>(v[j], current[j], decay) + bias[j]) + shortcut[j] * scale[j];
    else
        for (int64_t j = 0; j < n; j++) v[j] = integrate<V, true>(v[j], current[j], decay) + bias[j];
}

template <Rule RULE, bool UNIT, typename V>
void emit(const V* __restrict threshold, V most, V* __restrict v, V* __restrict emitted, int16_t* __restrict k, int64_t n) {
    V none = V(0);
    for (int64_t j = 0; j < n; j++) {
        V& c = RULE == SIGNED ? emitted[j] : none;
        const V theta = UNIT ? V(1) : threshold[j];
        k[j] = (int16_t)emit<RULE>(v[j], c, UNIT ? v[j] : quotient(v[j], theta), theta, most);
    }
}

// What n neurons of an alphabet that is not binary emit, in thresholds; `emitted` of signed ones.
template <typename V>
void emit(const Layer& l, const Parameters<V>& p, V* v, V* emitted, int16_t* k, int64_t n) {
    const V *threshold = p.threshold.data(), most = (V)l.most;
    if (l.rule == SIGNED && p.unit) emit<SIGNED, true>(threshold, most, v, emitted, k, n);
    else if (l.rule == SIGNED) emit<SIGNED, false>(threshold, most, v, emitted, k, n);
    else if (p.unit) emit<LEVELS, true>(threshold, most, v, emitted, k, n);
    else emit<LEVELS, false>(threshold, most, v, emitted, k, n);
}

}  // namespace sresnet
