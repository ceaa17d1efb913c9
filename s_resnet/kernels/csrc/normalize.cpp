// Batch normalization in training, on the CPU: sums over a channel, and the gradient that they make.
#include <cstdint>
#include <vector>

namespace {

// rows of channels x inner numbers; inner is 1 where channels are innermost. All numbers are float or double.
struct Norm {
    int64_t rows, channels, inner;
    int32_t threads;
    const void *p, *q;
    double* sums;              // [2, channels]: of p, and of p times q
    const void* coefficients;  // [4, channels]: scale, mean of p, mean of q, slope
    void* out;                 // scale * (p - mean of p - slope * (q - mean of q))
};

const int LANES = 16;  // sums side by side, so that they are vectors

template <typename V>
void add(const V* __restrict p, const V* __restrict q, int64_t n, double& of_p, double& of_both) {
    double a[LANES] = {}, b[LANES] = {};
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES)
        for (int i = 0; i < LANES; i++) {
            a[i] += (double)p[j + i];
            b[i] += (double)p[j + i] * (double)q[j + i];
        }
    for (; j < n; j++) a[0] += (double)p[j], b[0] += (double)p[j] * (double)q[j];
    for (int i = 0; i < LANES; i++) of_p += a[i], of_both += b[i];
}

template <typename V>
void sums(const Norm& l) {
    const V *p = (const V*)l.p, *q = (const V*)l.q;
    const int64_t channels = l.channels, inner = l.inner;
    if (inner > 1) {
#pragma omp parallel for num_threads(l.threads) schedule(static)
        for (int64_t c = 0; c < channels; c++) {
            double of_p = 0, of_both = 0;
            for (int64_t row = 0; row < l.rows; row++) {
                const int64_t at = (row * channels + c) * inner;
                add(p + at, q + at, inner, of_p, of_both);
            }
            l.sums[c] = of_p, l.sums[channels + c] = of_both;
        }
        return;
    }
    // Each part of the rows has sums of its own, which are added in their order, however many threads there are.
    const int64_t PARTS = 16, part = (l.rows + PARTS - 1) / PARTS;
    std::vector<double> all(PARTS * 2 * channels);
#pragma omp parallel for num_threads(l.threads) schedule(static)
    for (int64_t i = 0; i < PARTS; i++) {
        double *__restrict a = all.data() + i * 2 * channels, *__restrict b = a + channels;
        const int64_t end = (i + 1) * part < l.rows ? (i + 1) * part : l.rows;
        for (int64_t row = i * part; row < end; row++) {
            const V *__restrict x = p + row * channels, *__restrict y = q + row * channels;
            for (int64_t c = 0; c < channels; c++) {
                a[c] += (double)x[c];
                b[c] += (double)x[c] * (double)y[c];
            }
        }
    }
    for (int64_t c = 0; c < 2 * channels; c++) {
        l.sums[c] = 0;
        for (int64_t i = 0; i < PARTS; i++) l.sums[c] += all[i * 2 * channels + c];
    }
}

template <typename V>
void gradient(const Norm& l) {
    const int64_t channels = l.channels, inner = l.inner;
    const V* scale = (const V*)l.coefficients;
    const V *of_p = scale + channels, *of_q = of_p + channels, *slope = of_q + channels;
#pragma omp parallel for num_threads(l.threads) schedule(static)
    for (int64_t row = 0; row < l.rows; row++) {
        const int64_t at = row * channels * inner;
        const V *p = (const V*)l.p + at, *q = (const V*)l.q + at;
        V* out = (V*)l.out + at;  // may be p
        if (inner == 1) {
#pragma omp simd
            for (int64_t c = 0; c < channels; c++)
                out[c] = scale[c] * ((p[c] - of_p[c]) - slope[c] * (q[c] - of_q[c]));
            continue;
        }
        for (int64_t c = 0; c < channels; c++) {
            const V a = scale[c], x = of_p[c], y = of_q[c], k = slope[c];
#pragma omp simd
            for (int64_t j = c * inner; j < (c + 1) * inner; j++) out[j] = a * ((p[j] - x) - k * (q[j] - y));
        }
    }
}

}  // namespace

extern "C" {
void sresnet_sums_float(const void* l) { sums<float>(*(const Norm*)l); }
void sresnet_sums_double(const void* l) { sums<double>(*(const Norm*)l); }
void sresnet_gradient_float(const void* l) { gradient<float>(*(const Norm*)l); }
void sresnet_gradient_double(const void* l) { gradient<double>(*(const Norm*)l); }
}
