// The membrane update on the CPU for currents that are in memory: a block of neurons stays in the first cache over the
// whole chunk of steps, so that memory sees each current once, each spike once, and the membrane twice.
#include <type_traits>

#include "layer.h"

namespace {

using namespace sresnet;

const int64_t BLOCK = 1024;  // neurons: membrane and parameters fit the first cache

template <typename V, typename C>
void advance(const Layer& l, const Parameters<V>& p, int64_t image, int64_t first, int64_t n, V* v, uint8_t* fired) {
    const int64_t at = image * l.neurons + first;
    memcpy(v, (const V*)l.v + at, n * sizeof(V));
    for (int64_t t = 0; t < l.steps; t++) {
        const C* current = (const C*)l.current + at + t * l.current_step;
        const Branch branch = {l.shortcut_type, l.shortcut, at + t * l.shortcut_step};
        add_count(l, t, image, step<STREAM>(l, current, branch, p, v, fired, n));
        store(l.spike_type, fired, l.spikes, at + t * l.images * l.neurons, n);
    }
    memcpy((V*)l.v_after + at, v, n * sizeof(V));
}

template <typename V>
void advance(const Layer& l, const Parameters<V>& p, int64_t image, int64_t first, int64_t n, V* v, uint8_t* fired) {
    switch (l.current_type) {
        case FLOAT32: return advance<V, float>(l, p, image, first, n, v, fired);
        case BFLOAT16: return advance<V, Bf16>(l, p, image, first, n, v, fired);
        case INT32: return advance<V, int32_t>(l, p, image, first, n, v, fired);
        case UINT8: return advance<V, uint8_t>(l, p, image, first, n, v, fired);
        case INT8: return advance<V, int8_t>(l, p, image, first, n, v, fired);
    }
}

// ---- other alphabets, schedules and biases by step: one loop for each term, so that types do not multiply ----

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

// What a thread has for its block of neurons, in the first cache.
template <typename V>
struct Room {
    std::vector<V> v, emitted, current, shortcut;
    std::vector<int16_t> k;
    std::vector<uint8_t> fired;

    explicit Room(int64_t block) : v(block), emitted(block), current(block), shortcut(block), k(block), fired(block) {}
};

// Everything that arrives at a step.
template <typename V>
void arrive(const Layer& l, const Parameters<V>& p, int64_t at, int64_t t, int64_t n, Room<V>& room) {
    const V decay = (V)l.decay, *bias = p.bias.data(), *scale = p.scale.data();
    V* __restrict v = room.v.data();
    const V* current = as(l.current_type, l.current, at + t * l.current_step, room.current.data(), n);
    const V* shortcut = nullptr;
    if (l.shortcut_type) shortcut = as(l.shortcut_type, l.shortcut, at + t * l.shortcut_step, room.shortcut.data(), n);
    if (l.schedule == STREAMING) {
        for (int64_t j = 0; j < n; j++) v[j] = integrate<V, true>(v[j], current[j], decay) + bias[j];
        for (int64_t j = 0; shortcut && j < n; j++) v[j] = v[j] + shortcut[j] * scale[j];
    } else if (shortcut) {
        for (int64_t j = 0; j < n; j++) v[j] = v[j] + ((current[j] + shortcut[j] * scale[j]) + bias[j]);
    } else {
        for (int64_t j = 0; j < n; j++) v[j] = v[j] + (current[j] + bias[j]);
    }
}

// What the neurons emit at a step, into `to` of all spikes; returns their number.
template <typename V, Rule RULE>
int32_t answer(const Layer& l, const V* __restrict threshold, int64_t to, int64_t n, Room<V>& room) {
    if constexpr (RULE == SUBTRACT || RULE == ZERO) {
        const int32_t count = sresnet::answer(l, threshold, room.v.data(), room.fired.data(), n);
        sresnet::store(l.spike_type, room.fired.data(), l.spikes, to, n);
        return count;
    } else {
        int16_t* __restrict k = room.k.data();
        V *__restrict v = room.v.data(), *__restrict c = room.emitted.data();
        const V most = (V)l.most;
        for (int64_t j = 0; j < n; j++)
            k[j] = (int16_t)emit<RULE>(v[j], c[j], quotient(v[j], threshold[j]), threshold[j], most);
        store(l.spike_type, k, l.spikes, to, n);
        return l.counts ? amplitudes(k, n) : 0;
    }
}

template <typename V, Rule RULE>
void advance(const Layer& l, Parameters<V>& p, int64_t image, int64_t first, int64_t n, Room<V>& room) {
    const int64_t at = image * l.neurons + first;
    memcpy(room.v.data(), (const V*)l.v + at, n * sizeof(V));
    if (RULE == SIGNED) memcpy(room.emitted.data(), (const V*)l.emitted + at, n * sizeof(V));
    for (int64_t now = 0; now < l.steps + delay(l); now++) {
        if (now < l.steps) {
            p.at_step(l, now, first, n);
            arrive(l, p, at, now, n, room);
        }
        const int64_t t = now - delay(l);
        if (t < 0) continue;
        add_count(l, t, image, answer<V, RULE>(l, p.threshold.data(), at + t * l.images * l.neurons, n, room));
    }
    memcpy((V*)l.v_after + at, room.v.data(), n * sizeof(V));
    if (RULE == SIGNED && l.emitted_after) memcpy((V*)l.emitted_after + at, room.emitted.data(), n * sizeof(V));
}

template <typename V>
void update(const Layer& l) {
    // Channels last: blocks of whole pixels, whose parameters are all alike. Channels first: blocks within a channel.
    const int64_t run = l.inner == 1 ? l.neurons : l.inner;
    const int64_t unit = l.inner == 1 ? l.channels : 1;
    const int64_t most = BLOCK / unit > 1 ? BLOCK / unit * unit : unit;
    const int64_t block = most < run ? most : run;
    const int64_t in_run = (run + block - 1) / block, blocks = l.neurons / run * in_run;
    const bool fused = l.schedule == STREAMING && !l.bias_step;  // binary neurons in one loop for all terms
#pragma omp parallel num_threads(l.threads)
    {
        Room<V> room(block);
        Parameters<V> p;
        if (l.inner == 1) p.set(l, 0, block);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < blocks * l.images; i++) {
            const int64_t index = i % blocks, first = index / in_run * run + index % in_run * block;
            const int64_t left = run - index % in_run * block, n = left < block ? left : block;
            if (l.inner != 1) p.set(l, first, n);
            if (l.rule == SIGNED)
                advance<V, SIGNED>(l, p, i / blocks, first, n, room);
            else if (l.rule == LEVELS)
                advance<V, LEVELS>(l, p, i / blocks, first, n, room);
            else if (fused)
                advance<V>(l, p, i / blocks, first, n, room.v.data(), room.fired.data());
            else if (l.rule == ZERO)
                advance<V, ZERO>(l, p, i / blocks, first, n, room);
            else
                advance<V, SUBTRACT>(l, p, i / blocks, first, n, room);
        }
    }
}

}  // namespace

extern "C" {
void sresnet_update_float(const sresnet::Layer* l) { update<float>(*l); }
void sresnet_update_int(const sresnet::Layer* l) { update<int32_t>(*l); }
}
