// The membrane update on the CPU for currents that are in memory: a block of neurons stays in the first cache over the
// whole chunk of steps, so that memory sees each current once, each spike once, and the membrane twice.
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
        add_count(l, t, image, step<V, C>(l, current, at + t * l.shortcut_step, p, 0, v, fired, n));
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
    }
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
        std::vector<V> v(block);
        std::vector<uint8_t> fired(block);
        Parameters<V> p;
        if (l.inner == 1) p.set(l, 0, block);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < blocks * l.images; i++) {
            const int64_t index = i % blocks, first = index / in_run * run + index % in_run * block;
            const int64_t left = run - index % in_run * block, n = left < block ? left : block;
            if (l.inner != 1) p.set(l, first, n);
            advance<V>(l, p, i / blocks, first, n, v.data(), fired.data());
        }
    }
}

}  // namespace

extern "C" {
void sresnet_update_float(const sresnet::Layer* l) { update<float>(*l); }
void sresnet_update_int(const sresnet::Layer* l) { update<int32_t>(*l); }
}
