// The membrane update on a CUDA device: one launch per neuron layer and chunk of steps, the membrane in registers.
//
// The equation is that of integrate_and_fire in reference.py. A block works on neurons of one image, so that counts
// never mix images; a thread on WIDTH neurons that lie together in memory, over all steps. Plain CUDA C++ without any
// header of the toolkit. cuda.py chooses the instance and the arguments; tests/test_cuda.py runs this file on the CPU.
#include "membrane.h"
#include "vectors.cuh"

namespace sresnet {

constexpr int LANES = 32;
constexpr int WARPS = SRESNET_BLOCK / LANES;
constexpr unsigned ALL = 0xffffffffu;

// A bias, a threshold or a scale: absent, one for the layer, one per channel; BARE is a shortcut without a scale, ROWS a
// bias per channel and step.
enum Kind { NONE, ONE, EACH, BARE, ROWS };

// The membrane's own type in memory, and its bits.
template <typename V> struct Memory;
template <> struct Memory<float> : f32 {};
template <> struct Memory<int> : i32 {
    static SRESNET_INLINE unsigned write(int v) { return (unsigned)v; }
};

// v / threshold; of whole numbers rounded down. IEEE division, whatever the compiler's options say.
SRESNET_INLINE float quotient(float v, float threshold) { return __fdiv_rn(v, threshold); }
SRESNET_INLINE int quotient(int v, int threshold) {
    const int cut = v / threshold;
    return cut - (cut * threshold > v);
}

// ---- parameters ----

// The channels of WIDTH neurons from `first` on. LAST: channels are innermost, span is C; else span is H * W.
template <bool LAST>
struct Channels {
    unsigned channel, inside, span;
    SRESNET_INLINE Channels(unsigned first, unsigned span)
        : channel(LAST ? first % span : first / span), inside(LAST ? 0u : first % span), span(span) {}
    SRESNET_INLINE void next() {
        if (LAST) {
            channel = channel + 1 == span ? 0 : channel + 1;
        } else {
            const bool over = inside + 1 == span;
            inside = over ? 0 : inside + 1;
            channel += over;
        }
    }
};

template <typename V, Kind KIND, int WIDTH, bool LAST>
struct Values {
    static constexpr int N = KIND == EACH || KIND == ROWS ? WIDTH : 1;
    V value[N];
    SRESNET_INLINE V get(int k) const { return value[N == 1 ? 0 : k]; }
    // whole: no vector straddles two pixels, and the values are aligned, so that they can be read as a vector.
    SRESNET_INLINE void set(const void* from, unsigned first, unsigned span, bool whole) {
        const V* values = static_cast<const V*>(from);
        if constexpr (KIND == ONE) {
            value[0] = values[0];
        } else if constexpr (KIND == EACH || KIND == ROWS) {
            if (LAST && whole) {
                const Bits<4 * N> bits = load<4 * N>(reinterpret_cast<const char*>(values + first % span));
#pragma unroll
                for (int k = 0; k < N; k++) value[k] = Memory<V>::read(bits.template get<4>(k));
            } else {
                Channels<LAST> at(first, span);
#pragma unroll
                for (int k = 0; k < N; k++, at.next()) value[k] = values[at.channel];
            }
        }
    }
};

// ---- counts ----

SRESNET_INLINE int sum_of_warp(int n) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    return __reduce_add_sync(ALL, n);
#else
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2) n += __shfl_xor_sync(ALL, n, distance);
    return n;
#endif
}

// Lane i of every warp brings its warp's count of step i; one atomic addition per block and step leaves.
SRESNET_INLINE void add_counts(int* to, int mine, int steps, int images) {
    __shared__ int tally[WARPS][LANES];
    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    tally[warp][lane] = mine;
    __syncthreads();
    if (warp == 0 && lane < steps) {
        int sum = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += tally[w][lane];
        if (sum) atomicAdd(to + (long long)lane * images, sum);
    }
    __syncthreads();  // the next LANES steps write into the same tally
}

// ---- the kernel ----

// I, X, S: how currents, shortcut and spikes lie in memory. V: the membrane, float or int. AHEAD: steps that are read
// before they are needed. Every [T, B, N] is in one order of neurons; *_time and *_image are strides in images (0: the
// same at every step, or in every image). blocks: of one image. counts, where given: [T, B]. emitted, most: see emit().
// row: the biases of a step, of ROWS. v_after may be v_before, and emitted_after may be emitted, or null: a thread reads
// its neurons before it writes them.
// At most 96 registers, so that 5 blocks, which is 640 threads, share a multiprocessor.
template <typename I, typename X, typename S, typename V, int WIDTH, bool LAST, bool LEAKY, Rule RULE, Kind THRESHOLD,
          Kind BIAS, Kind SHORTCUT, int AHEAD, Schedule SCHEDULE = STREAMING>
__global__ void __launch_bounds__(SRESNET_BLOCK, 5)
    membrane(const void* __restrict__ current, const void* __restrict__ shortcut, const void* v_before,
             const void* emitted, const void* __restrict__ threshold, const void* __restrict__ bias,
             const void* __restrict__ scale, void* v_after, void* emitted_after, void* __restrict__ spikes,
             int* __restrict__ counts, double decay, int most, int steps, int images, int neurons, int span, int whole,
             int blocks, int row, int current_time, int current_image, int shortcut_time, int shortcut_image) {
    constexpr bool BRANCH = SHORTCUT != NONE;
    const int delay = SCHEDULE == PHASED ? steps : SCHEDULE == LAGGED;  // steps that come in before the first answer
    const int image = blockIdx.x / blocks;
    const unsigned first = (blockIdx.x % blocks * SRESNET_BLOCK + threadIdx.x) * WIDTH;
    const bool active = first < (unsigned)neurons;  // all WIDTH neurons are there, or none
    const int lane = threadIdx.x % LANES;

    // Offsets are 64-bit: T * B * N passes 2^31.
    const long long n = neurons, at = image * n + first;
    const char* in = static_cast<const char*>(current) + (current_image * n * image + first) * I::SIZE;
    const char* in_branch = static_cast<const char*>(shortcut) + (shortcut_image * n * image + first) * X::SIZE;
    char* out = static_cast<char*>(spikes) + at * S::SIZE;
    const long long in_step = current_time * n * I::SIZE, branch_step = shortcut_time * n * X::SIZE;
    const long long out_step = images * n * S::SIZE;

    Bits<WIDTH * I::SIZE> charge[AHEAD];
    Bits<WIDTH * X::SIZE> branch[AHEAD];
#pragma unroll
    for (int d = 0; d < AHEAD; d++)
        if (active && d < steps) {
            charge[d] = load<WIDTH * I::SIZE>(in + d * in_step);
            if (BRANCH) branch[d] = load<WIDTH * X::SIZE>(in_branch + d * branch_step);
        }
    in += AHEAD * in_step;
    in_branch += AHEAD * branch_step;

    V v[WIDTH], memory[RULE == SIGNED ? WIDTH : 1] = {};
    Values<V, THRESHOLD, WIDTH, LAST> theta;
    Values<V, BIAS, WIDTH, LAST> constant;
    Values<V, SHORTCUT, WIDTH, LAST> weight;
    if (active) {
        const Bits<WIDTH * 4> bits = load<WIDTH * 4>(static_cast<const char*>(v_before) + at * 4);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) v[k] = Memory<V>::read(bits.template get<4>(k));
        if constexpr (RULE == SIGNED) {
            const Bits<WIDTH * 4> before = load<WIDTH * 4>(static_cast<const char*>(emitted) + at * 4);
#pragma unroll
            for (int k = 0; k < WIDTH; k++) memory[k] = Memory<V>::read(before.template get<4>(k));
        }
        theta.set(threshold, first, span, whole);
        if (BIAS != ROWS) constant.set(bias, first, span, whole);
        weight.set(scale, first, span, whole);
    }

    int mine = 0;  // of the step that this lane will add up
    for (int start = 0; start < steps + delay; start += AHEAD) {
#pragma unroll
        for (int d = 0; d < AHEAD; d++) {
            const int now = start + d, t = now - delay;  // the step that comes in, and the one that is answered
            if (t >= steps) break;
            if (active && (SCHEDULE == STREAMING || now < steps)) {
                const Bits<WIDTH * I::SIZE> in_now = charge[d];
                const Bits<WIDTH * X::SIZE> branch_now = branch[d];
                if (now + AHEAD < steps) {
                    charge[d] = load<WIDTH * I::SIZE>(in);
                    if (BRANCH) branch[d] = load<WIDTH * X::SIZE>(in_branch);
                }
                in += in_step;
                in_branch += branch_step;
                if (BIAS == ROWS) constant.set(static_cast<const V*>(bias) + (long long)now * row, first, span, whole);
#pragma unroll
                for (int k = 0; k < WIDTH; k++) {
                    V charge_now = (V)I::read(in_now.template get<I::SIZE>(k)), x = V(0);
                    if (BRANCH) x = (V)X::read(branch_now.template get<X::SIZE>(k));
                    if (BRANCH && SHORTCUT != BARE) x = x * weight.get(k);
                    if (SCHEDULE == STREAMING) {
                        v[k] = integrate<V, LEAKY>(v[k], charge_now, (V)decay);
                        if (BIAS != NONE) v[k] = v[k] + constant.get(k);
                        if (BRANCH) v[k] = v[k] + x;
                    } else {
                        if (BRANCH) charge_now = charge_now + x;
                        if (BIAS != NONE) charge_now = charge_now + constant.get(k);
                        v[k] = v[k] + charge_now;
                    }
                }
            }
            if (SCHEDULE != STREAMING && t < 0) continue;
            int fired = 0;
            if (active) {
                Bits<WIDTH * S::SIZE> spike = {};
#pragma unroll
                for (int k = 0; k < WIDTH; k++) {
                    if constexpr (RULE == SUBTRACT || RULE == ZERO) {
                        const bool fires = fire<V, RULE == ZERO>(v[k], theta.get(k));
                        spike.template put<S::SIZE>(k, fires ? S::SPIKE : 0u);
                        fired += fires;
                    } else {
                        const V q = quotient(v[k], theta.get(k));
                        const int n = emit<RULE>(v[k], memory[RULE == SIGNED ? k : 0], q, theta.get(k), (V)most);
                        spike.template put<S::SIZE>(k, S::spike(n));
                        fired += __popc(n < 0 ? -n : n);
                    }
                }
                store(out, spike);
                out += out_step;
            }
            if (counts) {  // the same for the whole grid, and so is t: every thread comes here
                const int sum = sum_of_warp(fired);
                mine = lane == t % LANES ? sum : mine;
                if (t % LANES == LANES - 1 || t == steps - 1) {
                    const int begin = t / LANES * LANES;
                    add_counts(counts + (long long)begin * images + image, mine, t + 1 - begin, images);
                }
            }
        }
    }

    if (active) {
        Bits<WIDTH * 4> bits;
#pragma unroll
        for (int k = 0; k < WIDTH; k++) bits.word[k] = Memory<V>::write(v[k]);
        store(static_cast<char*>(v_after) + at * 4, bits);
        if constexpr (RULE == SIGNED) {
#pragma unroll
            for (int k = 0; k < WIDTH; k++) bits.word[k] = Memory<V>::write(memory[k]);
            if (emitted_after) store(static_cast<char*>(emitted_after) + at * 4, bits);
        }
    }
}

}  // namespace sresnet
