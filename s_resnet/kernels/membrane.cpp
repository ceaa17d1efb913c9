// The membrane update on the CPU: a block of neurons stays in the first cache over the whole chunk of steps, so that
// memory sees each current once, each spike once, and the membrane twice. The arithmetic is that of membrane.h.
#include <cstdint>
#include <cstring>
#include <vector>

#include "membrane.h"

namespace {

enum Type : int32_t { NONE, FLOAT32, BFLOAT16, UINT8, INT32 };
const int64_t BLOCK = 512;  // neurons: its few buffers of 2 kB fit the first cache

struct Layer {
    int64_t steps, images, neurons, channels, inner;  // neurons of one image; those of one channel that lie together
    int64_t current_step, shortcut_step;               // elements from one step to the next; 0 for a constant
    int32_t current_type, shortcut_type, spike_type, hard, threads;
    float decay;
    const void *current, *v, *threshold, *bias, *shortcut, *scale;  // threshold, bias, scale: [channels] or null
    void *v_after, *spikes;
    int32_t* counts;  // [steps, images] or null
};

template <typename V, typename T>
inline void widen(const T* from, V* to, int64_t n) {
    for (int64_t j = 0; j < n; j++) to[j] = (V)from[j];
}

template <typename V>
inline void load(int32_t type, const void* from, int64_t at, V* to, int64_t n) {
    switch (type) {
        case FLOAT32: return widen((const float*)from + at, to, n);
        case UINT8: return widen((const uint8_t*)from + at, to, n);
        case INT32: return widen((const int32_t*)from + at, to, n);
        case BFLOAT16: {
            const uint16_t* half = (const uint16_t*)from + at;
            for (int64_t j = 0; j < n; j++) {
                const uint32_t bits = (uint32_t)half[j] << 16;
                float value;
                memcpy(&value, &bits, sizeof value);
                to[j] = (V)value;
            }
        }
    }
}

inline void store(int32_t type, const uint8_t* fired, void* to, int64_t at, int64_t n) {
    switch (type) {
        case UINT8: memcpy((uint8_t*)to + at, fired, n); return;
        case FLOAT32: return widen(fired, (float*)to + at, n);
        case INT32: return widen(fired, (int32_t*)to + at, n);
        case BFLOAT16:
            for (int64_t j = 0; j < n; j++) ((uint16_t*)to)[at + j] = fired[j] ? 0x3f80 : 0;
    }
}

template <typename V, bool LEAKY>
inline void add(V* u, const V* other, int64_t n, V decay) {
    for (int64_t j = 0; j < n; j++) u[j] = sresnet::integrate<V, LEAKY>(u[j], other[j], decay);
}

template <typename V, bool HARD>
inline int32_t fire(V* u, const V* threshold, uint8_t* fired, int64_t n) {
    int32_t count = 0;
    for (int64_t j = 0; j < n; j++) {
        const bool s = sresnet::fire<V, HARD>(u[j], threshold[j]);
        fired[j] = s;
        count += s;
    }
    return count;
}

// A parameter for each neuron of a block that starts at a multiple of the channels (or lies within one channel).
template <typename V>
void spread(const Layer& l, const void* values, int64_t first, int64_t n, std::vector<V>& to) {
    if (!values) return;
    to.resize(n);
    for (int64_t j = 0; j < n; j++) to[j] = ((const V*)values)[(first + j) / l.inner % l.channels];
}

template <typename V>
struct Parameters {
    std::vector<V> threshold, bias, scale;
    void set(const Layer& l, int64_t first, int64_t n) {
        spread(l, l.threshold, first, n, threshold);
        spread(l, l.bias, first, n, bias);
        spread(l, l.scale, first, n, scale);
    }
};

template <typename V>
void advance(const Layer& l, const Parameters<V>& p, int64_t image, int64_t first, int64_t n, V* u, V* input,
             uint8_t* fired) {
    const int64_t at = image * l.neurons + first;
    memcpy(u, (const V*)l.v + at, n * sizeof(V));
    for (int64_t t = 0; t < l.steps; t++) {
        load(l.current_type, l.current, at + t * l.current_step, input, n);
        if (l.decay != 1.0f) add<V, true>(u, input, n, (V)l.decay);
        else add<V, false>(u, input, n, V(1));
        if (l.bias) add<V, false>(u, p.bias.data(), n, V(1));
        if (l.shortcut_type != NONE) {
            load(l.shortcut_type, l.shortcut, at + t * l.shortcut_step, input, n);
            if (l.scale)
                for (int64_t j = 0; j < n; j++) input[j] *= p.scale[j];
            add<V, false>(u, input, n, V(1));
        }
        const int32_t count = l.hard ? fire<V, true>(u, p.threshold.data(), fired, n)
                                     : fire<V, false>(u, p.threshold.data(), fired, n);
        store(l.spike_type, fired, l.spikes, at + t * l.images * l.neurons, n);
        if (l.counts) {
#pragma omp atomic
            l.counts[t * l.images + image] += count;
        }
    }
    memcpy((V*)l.v_after + at, u, n * sizeof(V));
}

template <typename V>
void update(const Layer& l) {
    // Channels last: blocks of whole pixels, whose parameters are all alike. Channels first: blocks within a channel.
    const int64_t run = l.inner == 1 ? l.neurons : l.inner;
    const int64_t unit = l.inner == 1 ? l.channels : 1;
    const int64_t most = BLOCK / unit > 1 ? BLOCK / unit * unit : unit;
    const int64_t block = most < run ? most : run;
    const int64_t in_run = (run + block - 1) / block, blocks = l.neurons / run * in_run;
#pragma omp parallel num_threads(l.threads)
    {
        std::vector<V> u(block), input(block);
        std::vector<uint8_t> fired(block);
        Parameters<V> p;
        if (l.inner == 1) p.set(l, 0, block);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < blocks * l.images; i++) {
            const int64_t index = i % blocks, first = index / in_run * run + index % in_run * block;
            const int64_t left = run - index % in_run * block, n = left < block ? left : block;
            if (l.inner != 1) p.set(l, first, n);
            advance<V>(l, p, i / blocks, first, n, u.data(), input.data(), fired.data());
        }
    }
}

}  // namespace

extern "C" {
void sresnet_update_float(const Layer* l) { update<float>(*l); }
void sresnet_update_int(const Layer* l) { update<int32_t>(*l); }
}
