// Neurons that are trained, on a CUDA device: one launch forward and one back for a layer and all of its steps.
//
// The equations are those of fire_reference in surrogate.py. A thread works on WIDTH neurons that lie together in
// memory, over STEPS steps; backwards it computes their membranes again, which stay in its registers. *_time is 1, or 0
// where all steps of a tensor are one. Both kernels take the same arguments, and leave out those they do not name.
// surrogate_cuda.py chooses the instance and the arguments; tests/test_surrogate_cuda.py runs this file on the CPU.
#include "surrogate.h"
#include "vectors.cuh"

namespace sresnet {

// Where channels lie that the current is made for: nowhere, around the neurons of a channel, or innermost.
enum Channels { UNSCALED, AROUND, INNERMOST };

// The scales and shifts of WIDTH neurons from `first` on. whole: no vector has neurons of two channels, or of two pixels.
template <int WIDTH, Channels WHERE>
struct Affine {
    float scale[WHERE == UNSCALED ? 1 : WIDTH], shift[WHERE == UNSCALED ? 1 : WIDTH];
    SRESNET_INLINE Affine(const void* scales, const void* shifts, unsigned first, unsigned channels, unsigned inner,
                          int whole) {
        if constexpr (WHERE != UNSCALED) {
            unsigned channel = first / inner % channels;
#pragma unroll
            for (int j = 0; j < WIDTH; j++) {
                if (j && !whole) channel = (first + j) / inner % channels;
                const unsigned at = channel + (WHERE == INNERMOST && whole ? j : 0);
                scale[j] = static_cast<const float*>(scales)[at];
                shift[j] = static_cast<const float*>(shifts)[at];
            }
        }
    }
    SRESNET_INLINE float current(float given, int j) const {
        return WHERE == UNSCALED ? given : given * scale[j] + shift[j];
    }
};

// All that a kernel can be given; an instance reads the first LEVELS.
struct Thresholds {
    float value[8];
    SRESNET_INLINE Thresholds(double a, double b, double c, double d, double e, double f, double g, double h)
        : value{(float)a, (float)b, (float)c, (float)d, (float)e, (float)f, (float)g, (float)h} {}
};

// I: how currents, spikes and their gradients lie in memory.
template <typename I, int WIDTH, int STEPS, int LEVELS, bool HARD, Channels WHERE>
__global__ void __launch_bounds__(SRESNET_BLOCK)
    surrogate_forward(const void* __restrict__ current, const void* __restrict__, void* __restrict__ spikes,
                      const void* __restrict__ scale, const void* __restrict__ shift, double decay, double initial,
                      double, double, double a, double b, double c, double d, double e, double f, double g, double h,
                      int neurons, int current_time, int, int channels, int inner, int whole) {
    constexpr int UNROLLED = STEPS <= 16 ? STEPS : 4;  // steps that are written out one after another
    const Thresholds theta(a, b, c, d, e, f, g, h);
    const long long first = ((long long)blockIdx.x * SRESNET_BLOCK + threadIdx.x) * WIDTH, n = neurons;
    if (first >= n) return;
    const Affine<WIDTH, WHERE> affine(scale, shift, (unsigned)first, channels, inner, whole);
    const char* in = static_cast<const char*>(current) + first * I::SIZE;
    char* out = static_cast<char*>(spikes) + first * I::SIZE;

    float w[LEVELS][WIDTH];
#pragma unroll
    for (int k = 0; k < LEVELS; k++)
#pragma unroll
        for (int j = 0; j < WIDTH; j++) w[k][j] = (float)initial;
#pragma unroll UNROLLED
    for (int t = 0; t < STEPS; t++) {
        const Bits<WIDTH * I::SIZE> now = load<WIDTH * I::SIZE>(in + t * current_time * n * I::SIZE);
        Bits<WIDTH * I::SIZE> spike = {};
#pragma unroll
        for (int j = 0; j < WIDTH; j++) {
            const float charge = affine.current(I::read(now.template get<I::SIZE>(j)), j);
            float sum = 0.0f;
#pragma unroll
            for (int k = 0; k < LEVELS; k++)
                sum += reset<HARD>(integrate<float, true>(w[k][j], charge, (float)decay), theta.value[k], w[k][j]);
            spike.template put<I::SIZE>(j, I::write(sum));
        }
        store(out + t * n * I::SIZE, spike);
    }
}

template <typename I, int WIDTH, int STEPS, int LEVELS, bool HARD, Channels WHERE, bool DETACHED,
          Surrogate SURROGATE>
__global__ void __launch_bounds__(SRESNET_BLOCK)
    surrogate_backward(const void* __restrict__ current, const void* __restrict__ spikes, void* __restrict__ gradient,
                       const void* __restrict__ scale, const void* __restrict__ shift, double decay, double initial,
                       double inside, double height, double a, double b, double c, double d, double e, double f,
                       double g, double h, int neurons, int current_time, int spikes_time, int channels, int inner,
                       int whole) {
    constexpr int UNROLLED = STEPS <= 16 ? STEPS : 4;  // steps that are written out one after another
    const Thresholds theta(a, b, c, d, e, f, g, h);
    const long long first = ((long long)blockIdx.x * SRESNET_BLOCK + threadIdx.x) * WIDTH, n = neurons;
    if (first >= n) return;
    const Affine<WIDTH, WHERE> affine(scale, shift, (unsigned)first, channels, inner, whole);
    const char* in = static_cast<const char*>(current) + first * I::SIZE;
    const char* in_spikes = static_cast<const char*>(spikes) + first * I::SIZE;
    char* out = static_cast<char*>(gradient) + first * I::SIZE;

    float u[STEPS][LEVELS][WIDTH], w[LEVELS][WIDTH];
#pragma unroll
    for (int k = 0; k < LEVELS; k++)
#pragma unroll
        for (int j = 0; j < WIDTH; j++) w[k][j] = (float)initial;
#pragma unroll UNROLLED
    for (int t = 0; t < STEPS; t++) {
        const Bits<WIDTH * I::SIZE> now = load<WIDTH * I::SIZE>(in + t * current_time * n * I::SIZE);
#pragma unroll
        for (int j = 0; j < WIDTH; j++) {
            const float charge = affine.current(I::read(now.template get<I::SIZE>(j)), j);
#pragma unroll
            for (int k = 0; k < LEVELS; k++) {
                u[t][k][j] = integrate<float, true>(w[k][j], charge, (float)decay);
                reset<HARD>(u[t][k][j], theta.value[k], w[k][j]);
            }
        }
    }
#pragma unroll
    for (int k = 0; k < LEVELS; k++)
#pragma unroll
        for (int j = 0; j < WIDTH; j++) w[k][j] = 0.0f;  // from here on the gradient of the membrane
#pragma unroll UNROLLED
    for (int t = STEPS - 1; t >= 0; t--) {
        const Bits<WIDTH * I::SIZE> now = load<WIDTH * I::SIZE>(in_spikes + t * spikes_time * n * I::SIZE);
        Bits<WIDTH * I::SIZE> written = {};
#pragma unroll
        for (int j = 0; j < WIDTH; j++) {
            const float arrived = I::read(now.template get<I::SIZE>(j));
            float sum = 0.0f;
#pragma unroll
            for (int k = 0; k < LEVELS; k++) {
                const float here = back<HARD, DETACHED, SURROGATE>(u[t][k][j], theta.value[k], arrived, w[k][j],
                                                                   (float)inside, (float)height);
                w[k][j] = (float)decay * here;
                sum += here;
            }
            written.template put<I::SIZE>(j, I::write(sum));
        }
        store(out + t * n * I::SIZE, written);
    }
}

}  // namespace sresnet
