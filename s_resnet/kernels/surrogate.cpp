// Neurons that are trained, on the CPU, forward and back: a block of neurons stays in the first cache over all steps.
// Backwards its membranes are computed again, so that memory holds nothing but currents and gradients.
#include <cstdint>
#include <vector>

#include "surrogate.h"

namespace {

using namespace sresnet;

const int LEVELS_MOST = 8;
const int64_t ROOM = 24 * 1024, LEAST = 128, MOST = 2048;  // bytes of membranes; neurons of a block

// Steps of `neurons` numbers that lie in one order; *_step: elements from one step to the next.
struct Firing {
    int64_t steps, neurons, current_step, grad_step;
    int32_t levels, hard, detached, surrogate, threads;
    double thresholds[LEVELS_MOST];
    double decay, initial, inside, height;
    const void *current, *grad;  // grad, of the spikes: backwards only
    void* out;                   // spikes, or the gradient of the current
};

template <typename V, bool HARD, bool FIRST>
void advance(const V* __restrict current, V* __restrict w, V* __restrict spikes, V decay, V threshold, int64_t n) {
    for (int64_t j = 0; j < n; j++) {
        const V s = reset<HARD>(integrate<V, true>(w[j], current[j], decay), threshold, w[j]);
        spikes[j] = FIRST ? s : spikes[j] + s;
    }
}

template <typename V, bool HARD>
void forward(const Firing& l, int64_t first, int64_t n, V* room) {
    for (int64_t j = 0; j < n * l.levels; j++) room[j] = (V)l.initial;
    for (int64_t t = 0; t < l.steps; t++) {
        const V* current = (const V*)l.current + t * l.current_step + first;
        V* spikes = (V*)l.out + t * l.neurons + first;
        advance<V, HARD, true>(current, room, spikes, (V)l.decay, (V)l.thresholds[0], n);
        for (int32_t k = 1; k < l.levels; k++)
            advance<V, HARD, false>(current, room + k * n, spikes, (V)l.decay, (V)l.thresholds[k], n);
    }
}

template <typename V, bool HARD>
void again(const V* __restrict current, V* __restrict w, V* __restrict u, V decay, V threshold, int64_t n) {
    for (int64_t j = 0; j < n; j++) {
        u[j] = integrate<V, true>(w[j], current[j], decay);
        reset<HARD>(u[j], threshold, w[j]);
    }
}

template <typename V, bool HARD, bool DETACHED, Surrogate SURROGATE, bool FIRST>
void retreat(const Firing& l, const V* __restrict u, const V* __restrict grad, V* __restrict later, V* __restrict out,
             V threshold, int64_t n) {
    const V decay = (V)l.decay, inside = (V)l.inside, height = (V)l.height;
    for (int64_t j = 0; j < n; j++) {
        const V d = back<HARD, DETACHED, SURROGATE>(u[j], threshold, grad[j], later[j], inside, height);
        later[j] = decay * d;
        out[j] = FIRST ? d : out[j] + d;
    }
}

// room: membranes before resets [steps, levels, n], then [levels, n]: after resets, and then gradients.
template <typename V, bool HARD, bool DETACHED, Surrogate SURROGATE>
void backward(const Firing& l, int64_t first, int64_t n, V* room) {
    const int64_t all = n * l.levels;
    V* last = room + l.steps * all;
    for (int64_t j = 0; j < all; j++) last[j] = (V)l.initial;
    for (int64_t t = 0; t < l.steps; t++)
        for (int32_t k = 0; k < l.levels; k++)
            again<V, HARD>((const V*)l.current + t * l.current_step + first, last + k * n, room + t * all + k * n,
                           (V)l.decay, (V)l.thresholds[k], n);
    for (int64_t j = 0; j < all; j++) last[j] = V(0);
    for (int64_t t = l.steps - 1; t >= 0; t--) {
        const V* grad = (const V*)l.grad + t * l.grad_step + first;
        V* out = (V*)l.out + t * l.neurons + first;
        retreat<V, HARD, DETACHED, SURROGATE, true>(l, room + t * all, grad, last, out, (V)l.thresholds[0], n);
        for (int32_t k = 1; k < l.levels; k++)
            retreat<V, HARD, DETACHED, SURROGATE, false>(l, room + t * all + k * n, grad, last + k * n, out,
                                                         (V)l.thresholds[k], n);
    }
}

template <typename V>
using Work = void (*)(const Firing&, int64_t, int64_t, V*);

template <typename V, bool HARD, bool DETACHED>
Work<V> backward_of(int32_t surrogate) {
    switch (surrogate) {
        case RECTANGLE: return backward<V, HARD, DETACHED, RECTANGLE>;
        case TRIANGLE: return backward<V, HARD, DETACHED, TRIANGLE>;
        case ARCTAN: return backward<V, HARD, DETACHED, ARCTAN>;
    }
    return backward<V, HARD, DETACHED, SIGMOID>;
}

template <typename V>
void run(const Firing& l) {
    Work<V> work = l.hard ? forward<V, true> : forward<V, false>;
    if (l.grad && l.hard) work = l.detached ? backward_of<V, true, true>(l.surrogate) : backward_of<V, true, false>(l.surrogate);
    if (l.grad && !l.hard) work = l.detached ? backward_of<V, false, true>(l.surrogate) : backward_of<V, false, false>(l.surrogate);
    const int64_t each = l.levels * (l.grad ? l.steps + 1 : 1);  // numbers of a neuron in the room
    const int64_t fits = ROOM / (int64_t)sizeof(V) / each / 32 * 32;
    const int64_t block = fits < LEAST ? LEAST : fits > MOST ? MOST : fits;
    const int64_t blocks = (l.neurons + block - 1) / block;
#pragma omp parallel num_threads(l.threads)
    {
        std::vector<V> room(block * each);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < blocks; i++) {
            const int64_t left = l.neurons - i * block;
            work(l, i * block, left < block ? left : block, room.data());
        }
    }
}

}  // namespace

extern "C" {
void sresnet_fire_float(const void* l) { run<float>(*(const Firing*)l); }
void sresnet_fire_double(const void* l) { run<double>(*(const Firing*)l); }
}
