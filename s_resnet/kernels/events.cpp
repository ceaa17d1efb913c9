// Event-driven convolution on the CPU: only spikes cost work.
// A spike of channel c adds one row of the weight, W[dy][dx][c][:], to each output pixel that sees it, so a layer costs
// (spikes) x (taps) x (output channels) additions. Output-stationary: a tile of sums stays in registers meanwhile.
// The sum of a pixel is in one fixed order, so results do not depend on the batch, the chunk or the threads.
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

typedef uint16_t Eight __attribute__((vector_size(16), aligned(2)));
const int ROOM = 64;  // entries that whole-vector writes may touch beyond a list's end

// The positions of the set bits of every byte: compaction without a branch.
struct Positions {
    uint16_t of[256][8];
    Positions() : of() {
        for (int mask = 0; mask < 256; mask++)
            for (int bit = 0, k = 0; bit < 8; bit++)
                if (mask >> bit & 1) of[mask][k++] = (uint16_t)bit;
    }
};
const Positions POSITIONS;

// Writes base + i for every i with spikes[i] = 1, in ascending order, and returns how many.
inline int32_t positions(const uint8_t* spikes, int n, int base, uint16_t* ids) {
    int32_t found = 0;
    int i = 0;
    for (; i + 8 <= n; i += 8) {
        uint64_t bytes;
        memcpy(&bytes, spikes + i, 8);
        const unsigned mask = (unsigned)((bytes * 0x0102040810204080ull) >> 56);
        Eight at;
        memcpy(&at, POSITIONS.of[mask], sizeof at);
        at += (uint16_t)(base + i);
        memcpy(ids + found, &at, sizeof at);
        found += __builtin_popcount(mask);
    }
    for (; i < n; i++)
        if (spikes[i]) ids[found++] = (uint16_t)(base + i);
    return found;
}

struct Shape {
    int32_t images, height, width, channels;
    int32_t out_height, out_width, out_channels;
    int32_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
    int32_t limit;  // rows that can be summed before a narrow sum overflows
    int32_t threads;
};

// The arithmetic of one weight type; LANES weights fill one vector of sums.
struct Float {
    typedef float Weight;
    typedef float Total;
    typedef float Sum __attribute__((vector_size(64), aligned(4)));
    static const int LANES = 16;
};

struct Fixed {
    typedef int16_t Weight;
    typedef int32_t Total;
    typedef int16_t Sum __attribute__((vector_size(64), aligned(2)));
    static const int LANES = 32;
};

// total[] = the sum of the weight rows named; UNROLL independent sums hide the latency of an addition.
template <class P, int VECTORS, int UNROLL>
inline void sum_rows(const uint16_t* rows, int n, int limit, const typename P::Weight* weight, int64_t stride,
                     typename P::Total* total) {
    for (int from = 0; from == 0 || from < n; from += limit) {
        const int to = n - from > limit ? from + limit : n;
        typename P::Sum sum[UNROLL][VECTORS] = {};
        for (int i = from; i < to; i += UNROLL)
#pragma GCC unroll 8
            for (int u = 0; u < UNROLL; u++) {
                const typename P::Sum* row = (const typename P::Sum*)(weight + rows[i + u] * stride);
#pragma GCC unroll 8
                for (int k = 0; k < VECTORS; k++) sum[u][k] += row[k];
            }
#pragma GCC unroll 8
        for (int k = 0; k < VECTORS; k++) {
            typename P::Sum all = sum[0][k];
            for (int u = 1; u < UNROLL; u++) all += sum[u][k];
            typename P::Total* to_add = total + k * P::LANES;
            if (from == 0)
                for (int j = 0; j < P::LANES; j++) to_add[j] = all[j];
            else
                for (int j = 0; j < P::LANES; j++) to_add[j] += all[j];
        }
    }
}

// The weight rows that the spikes under one output pixel name, in the order of the taps.
inline int gather(const Shape& s, const uint16_t* ids, const int32_t* start, int64_t image, int top, int left,
                  uint16_t* rows) {
    const int taps = s.kernel_w * s.channels;
    const int xa = left < 0 ? 0 : left, xb = left + s.kernel_w > s.width ? s.width : left + s.kernel_w;
    int n = 0;
    for (int dy = 0; dy < s.kernel_h && xa < xb; dy++) {
        const int y = top + dy;
        if (y < 0 || y >= s.height) continue;
        const int64_t line = image * s.height + y;
        const int32_t* pixel = start + line * (s.width + 1);
        const uint16_t* from = ids + line * ((int64_t)s.width * s.channels + ROOM) + pixel[xa];
        const int found = pixel[xb] - pixel[xa];
        // The spike x * channels + c meets tap (dy, x - left): along a line both differ by one constant.
        const uint16_t shift = (uint16_t)(dy * taps - left * s.channels);
        for (int i = 0; i < found; i += 8) {
            Eight at;
            memcpy(&at, from + i, sizeof at);
            at += shift;
            memcpy(rows + n + i, &at, sizeof at);
        }
        n += found;
    }
    return n;
}

template <class P, int VECTORS, int UNROLL>
void convolve_tile(const Shape& s, const uint16_t* ids, const int32_t* start, const typename P::Weight* weight,
                   const float* step, int64_t stride, int first, void* out) {
    const int zero = s.kernel_h * s.kernel_w * s.channels;  // the row of zeros, which fills up the unrolled loop
    const int width = s.out_channels - first < VECTORS * P::LANES ? s.out_channels - first : VECTORS * P::LANES;
    const int limit = s.limit / UNROLL * UNROLL;
    const int64_t lines = (int64_t)s.images * s.out_height;
#pragma omp parallel num_threads(s.threads)
    {
        std::vector<uint16_t> rows(zero + ROOM);
        typename P::Total total[VECTORS * P::LANES];
#pragma omp for schedule(static)
        for (int64_t line = 0; line < lines; line++)
            for (int xo = 0; xo < s.out_width; xo++) {
                const int top = (int)(line % s.out_height) * s.stride_h - s.pad_h;
                int n = gather(s, ids, start, line / s.out_height, top, xo * s.stride_w - s.pad_w, rows.data());
                for (int u = 0; u < UNROLL; u++) rows[n + u] = (uint16_t)zero;
                n = (n + UNROLL - 1) / UNROLL * UNROLL;
                sum_rows<P, VECTORS, UNROLL>(rows.data(), n, limit, weight + first, stride, total);
                const int64_t at = (line * s.out_width + xo) * s.out_channels + first;
                if (step) {
                    for (int j = 0; j < width; j++) ((float*)out)[at + j] = (float)total[j] * step[first + j];
                } else if (width == VECTORS * P::LANES) {
                    memcpy((typename P::Total*)out + at, total, sizeof total);
                } else {
                    memcpy((typename P::Total*)out + at, total, width * sizeof total[0]);
                }
            }
    }
}

template <class P>
void convolve(const Shape& s, const uint16_t* ids, const int32_t* start, const void* weight, const float* step,
              void* out) {
    const typename P::Weight* w = (const typename P::Weight*)weight;
    const int64_t stride = (int64_t)(s.out_channels + P::LANES - 1) / P::LANES * P::LANES;
    for (int first = 0; first < stride;) {
        const int left = (int)(stride - first) / P::LANES;
#if defined(__AVX512F__)  // elsewhere a vector of 64 bytes takes several registers, and eight of them would spill
        if (left >= 8) {
            convolve_tile<P, 8, 1>(s, ids, start, w, step, stride, first, out);
            first += 8 * P::LANES;
            continue;
        }
#endif
        if (left >= 4) {
            convolve_tile<P, 4, 2>(s, ids, start, w, step, stride, first, out);
            first += 4 * P::LANES;
        } else if (left >= 2) {
            convolve_tile<P, 2, 4>(s, ids, start, w, step, stride, first, out);
            first += 2 * P::LANES;
        } else {
            convolve_tile<P, 1, 4>(s, ids, start, w, step, stride, first, out);
            first += P::LANES;
        }
    }
}

}  // namespace

extern "C" {

// spikes [images, height, width, channels] of bytes 0 and 1 -> for each line of pixels the ids x * channels + c of its
// spikes, ascending, in a row of width * channels + 64; start[line][x] is where pixel x begins, start[line][width] the end.
void sresnet_find_events(const Shape* shape, const uint8_t* spikes, uint16_t* ids, int32_t* start) {
    const Shape& s = *shape;
    const int64_t lines = (int64_t)s.images * s.height, length = (int64_t)s.width * s.channels;
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (int64_t line = 0; line < lines; line++) {
        uint16_t* to = ids + line * (length + ROOM);
        int32_t found = 0;
        for (int x = 0; x < s.width; x++) {
            const int base = x * s.channels;
            start[line * (s.width + 1) + x] = found;
            found += positions(spikes + line * length + base, s.channels, base, to + found);
        }
        start[line * (s.width + 1) + s.width] = found;
    }
}

// weight [kernel_h * kernel_w * channels + 1][out_channels rounded up to a vector], the last row zeros
// -> out [images, out_height, out_width, out_channels].
void sresnet_convolve_float(const Shape* s, const uint16_t* ids, const int32_t* start, const void* weight,
                            const float*, void* out) {
    convolve<Float>(*s, ids, start, weight, nullptr, out);
}

// int16 weights: out is float32, sum * step[out_channel], or int32 where step is null.
void sresnet_convolve_fixed(const Shape* s, const uint16_t* ids, const int32_t* start, const void* weight,
                            const float* step, void* out) {
    convolve<Fixed>(*s, ids, start, weight, step, out);
}
}
