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
    const V* current = as(l.current_type, l.current, at + t * l.current_step, room.current.data(), n);
    const V* shortcut = nullptr;
    if (l.shortcut_type) shortcut = as(l.shortcut_type, l.shortcut, at + t * l.shortcut_step, room.shortcut.data(), n);
    arrive(l, p, current, shortcut, room.v.data(), n);
}

// What the neurons emit at a step, into `to` of all spikes; returns their number.
template <typename V>
int32_t answer(const Layer& l, const Parameters<V>& p, int64_t to, int64_t n, Room<V>& room) {
    if (is_binary(l)) {
        const int32_t count = answer(l, p.threshold.data(), room.v.data(), room.fired.data(), n);
        store(l.spike_type, room.fired.data(), l.spikes, to, n);
        return count;
    }
    emit(l, p, room.v.data(), room.emitted.data(), room.k.data(), n);
    store(l.spike_type, room.k.data(), l.spikes, to, n);
    return l.counts ? amplitudes(room.k.data(), n) : 0;
}

template <typename V>
void advance(const Layer& l, Parameters<V>& p, int64_t image, int64_t first, int64_t n, Room<V>& room) {
    const int64_t at = image * l.neurons + first;
    const bool remembers = l.rule == SIGNED;
    memcpy(room.v.data(), (const V*)l.v + at, n * sizeof(V));
    if (remembers) memcpy(room.emitted.data(), (const V*)l.emitted + at, n * sizeof(V));
    for (int64_t now = 0; now < l.wait + l.answers; now++) {
        if (now < l.steps) {
            p.at_step(l, now, first, n);
            arrive(l, p, at, now, n, room);
        }
        const int64_t t = now - l.wait;
        if (t >= 0) add_count(l, t, image, answer(l, p, at + t * l.images * l.neurons, n, room));
    }
    memcpy((V*)l.v_after + at, room.v.data(), n * sizeof(V));
    if (remembers && l.emitted_after) memcpy((V*)l.emitted_after + at, room.emitted.data(), n * sizeof(V));
}

template <typename V>
void update(const Layer& l) {
    // Channels last: blocks of whole pixels, whose parameters are all alike. Channels first: blocks within a channel.
    const int64_t run = l.inner == 1 ? l.neurons : l.inner;
    const int64_t unit = l.inner == 1 ? l.channels : 1;
    const int64_t most = BLOCK / unit > 1 ? BLOCK / unit * unit : unit;
    const int64_t block = most < run ? most : run;
    const int64_t in_run = (run + block - 1) / block, blocks = l.neurons / run * in_run;
    const bool fused = is_binary(l) && l.schedule == STREAMING && !l.bias_step;  // in one loop for all terms
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
            if (fused)
                advance<V>(l, p, i / blocks, first, n, room.v.data(), room.fired.data());
            else
                advance<V>(l, p, i / blocks, first, n, room);
        }
    }
}

}  // namespace

extern "C" {
void sresnet_update_float(const sresnet::Layer* l) { update<float>(*l); }
void sresnet_update_int(const sresnet::Layer* l) { update<int32_t>(*l); }
}
