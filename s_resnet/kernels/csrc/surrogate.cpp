// Neurons that are trained, on the CPU, forward and back: a block of neurons stays in the first cache over all steps.
// Backwards its membranes are computed again, so that memory holds nothing but currents and gradients.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "surrogate.h"

namespace {

using namespace sresnet;

const int LEVELS_MOST = 8;
const int64_t ROOM = 24 * 1024, LEAST = 128, MOST = 2048;  // bytes of a block; its neurons

// Steps of `neurons` numbers that lie in one order; *_step: elements from one step to the next. scale, shift: null, or
// [channels] that make the current from what is given; inner: neighbors of one channel, 1 where channels are innermost.
struct Firing {
    int64_t steps, neurons, current_step, grad_step, channels, inner;
    int32_t levels, hard, detached, surrogate, threads;
    double thresholds[LEVELS_MOST];
    double decay, initial, inside, height;
    const void *current, *grad;  // grad, of the spikes: backwards only
    const void *scale, *shift;
    void* out;  // spikes, or the gradient of the current
};

// What a thread has for its block of neurons.
template <typename V>
struct Room {
    std::vector<V> membranes, scale, shift;

    Room(const Firing& l, int64_t block, int64_t each) : membranes(block * each) {
        if (l.scale)
            for (auto* one : {&scale, &shift}) one->resize(block);
    }

    // The scales and shifts of a block; by whole channels, since a division for each neuron would be seen.
    void begin(const Firing& l, int64_t first, int64_t n) {
        if (!l.scale) return;
        for (int64_t j = 0; j < n;) {
            const int64_t at = first + j, channel = at / l.inner % l.channels;
            const int64_t whole = l.inner == 1 ? l.channels - channel : l.inner - at % l.inner;
            const int64_t end = j + whole < n ? j + whole : n;
            const V *a = (const V*)l.scale + channel, *b = (const V*)l.shift + channel;
            if (l.inner == 1) {
                std::copy(a, a + (end - j), scale.data() + j);
                std::copy(b, b + (end - j), shift.data() + j);
            } else {
                std::fill(scale.data() + j, scale.data() + end, *a);
                std::fill(shift.data() + j, shift.data() + end, *b);
            }
            j = end;
        }
    }
};

// Each neuron's current is what is given, or made from it. Levels make it anew: a pass of its own would wait for memory.
template <typename V, bool AFFINE>
inline V charge(const V* given, const V* scale, const V* shift, int64_t j) {
    return AFFINE ? given[j] * scale[j] + shift[j] : given[j];
}

template <typename V, bool HARD, bool AFFINE, bool FIRST>
void advance(const V* __restrict given, const V* __restrict scale, const V* __restrict shift, V* __restrict w,
             V* __restrict spikes, V decay, V threshold, int64_t n) {
    for (int64_t j = 0; j < n; j++) {
        const V current = charge<V, AFFINE>(given, scale, shift, j);
        const V s = reset<HARD>(integrate<V, true>(w[j], current, decay), threshold, w[j]);
        spikes[j] = FIRST ? s : spikes[j] + s;
    }
}

template <typename V, bool HARD, bool AFFINE>
void forward(const Firing& l, int64_t first, int64_t n, Room<V>& room) {
    V* w = room.membranes.data();
    for (int64_t j = 0; j < n * l.levels; j++) w[j] = (V)l.initial;
    for (int64_t t = 0; t < l.steps; t++) {
        const V *given = (const V*)l.current + t * l.current_step + first, *a = room.scale.data(), *b = room.shift.data();
        V* spikes = (V*)l.out + t * l.neurons + first;
        advance<V, HARD, AFFINE, true>(given, a, b, w, spikes, (V)l.decay, (V)l.thresholds[0], n);
        for (int32_t k = 1; k < l.levels; k++)
            advance<V, HARD, AFFINE, false>(given, a, b, w + k * n, spikes, (V)l.decay, (V)l.thresholds[k], n);
    }
}

template <typename V, bool HARD, bool AFFINE>
void again(const V* __restrict given, const V* __restrict scale, const V* __restrict shift, V* __restrict w,
           V* __restrict u, V decay, V threshold, int64_t n) {
    for (int64_t j = 0; j < n; j++) {
        u[j] = integrate<V, true>(w[j], charge<V, AFFINE>(given, scale, shift, j), decay);
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

// u: membranes before resets [steps, levels, n], then [levels, n]: after resets, and then gradients.
template <typename V, bool HARD, bool DETACHED, Surrogate SURROGATE>
void backward(const Firing& l, int64_t first, int64_t n, Room<V>& room) {
    const int64_t all = n * l.levels;
    V *u = room.membranes.data(), *last = u + l.steps * all;
    for (int64_t j = 0; j < all; j++) last[j] = (V)l.initial;
    for (int64_t t = 0; t < l.steps; t++) {
        const V *given = (const V*)l.current + t * l.current_step + first, *a = room.scale.data(), *b = room.shift.data();
        const auto step = l.scale ? again<V, HARD, true> : again<V, HARD, false>;
        for (int32_t k = 0; k < l.levels; k++)
            step(given, a, b, last + k * n, u + t * all + k * n, (V)l.decay, (V)l.thresholds[k], n);
    }
    for (int64_t j = 0; j < all; j++) last[j] = V(0);
    for (int64_t t = l.steps - 1; t >= 0; t--) {
        const V* grad = (const V*)l.grad + t * l.grad_step + first;
        V* out = (V*)l.out + t * l.neurons + first;
        retreat<V, HARD, DETACHED, SURROGATE, true>(l, u + t * all, grad, last, out, (V)l.thresholds[0], n);
        for (int32_t k = 1; k < l.levels; k++)
            retreat<V, HARD, DETACHED, SURROGATE, false>(l, u + t * all + k * n, grad, last + k * n, out,
                                                         (V)l.thresholds[k], n);
    }
}

template <typename V>
using Work = void (*)(const Firing&, int64_t, int64_t, Room<V>&);

template <typename V, bool HARD, bool DETACHED>
Work<V> back_of(const Firing& l) {
    switch (l.surrogate) {
        case RECTANGLE: return backward<V, HARD, DETACHED, RECTANGLE>;
        case TRIANGLE: return backward<V, HARD, DETACHED, TRIANGLE>;
        case ARCTAN: return backward<V, HARD, DETACHED, ARCTAN>;
    }
    return backward<V, HARD, DETACHED, SIGMOID>;
}

template <typename V>
void run(const Firing& l) {
    Work<V> work = l.hard ? forward<V, true, false> : forward<V, false, false>;
    if (l.scale) work = l.hard ? forward<V, true, true> : forward<V, false, true>;
    if (l.grad && l.hard) work = l.detached ? back_of<V, true, true>(l) : back_of<V, true, false>(l);
    if (l.grad && !l.hard) work = l.detached ? back_of<V, false, true>(l) : back_of<V, false, false>(l);
    const int64_t each = l.levels * (l.grad ? l.steps + 1 : 1);  // membranes of a neuron
    const int64_t fits = ROOM / (int64_t)sizeof(V) / (each + (l.scale ? 2 : 0)) / 32 * 32;
    const int64_t block = fits < LEAST ? LEAST : fits > MOST ? MOST : fits;
    const int64_t blocks = (l.neurons + block - 1) / block;
#pragma omp parallel num_threads(l.threads)
    {
        Room<V> room(l, block, each);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < blocks; i++) {
            const int64_t left = l.neurons - i * block, n = left < block ? left : block;
            room.begin(l, i * block, n);
            work(l, i * block, n, room);
        }
    }
}

}  // namespace

extern "C" {
void sresnet_fire_float(const void* l) { run<float>(*(const Firing*)l); }
void sresnet_fire_double(const void* l) { run<double>(*(const Firing*)l); }
}
