// The currents of a line of output pixels from its spikes: the weight rows that they name, times their amounts, summed.
// The sum of a pixel is in one fixed order, so results do not depend on the batch, the chunk or the threads.
#pragma once
#if defined(__AVX512BW__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace sresnet {

typedef uint16_t Many __attribute__((vector_size(64), aligned(2)));
const int ROOM = 64;    // entries that whole-vector writes may touch beyond a list's end
const int COPIED = 32;  // entries of a list that are copied at a time

struct Shape {
    int32_t images, height, width, channels;
    int32_t out_height, out_width, out_channels;
    int32_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
    int32_t limit;  // rows that can be summed before a narrow sum overflows
    int32_t below;  // where the negative rows begin, which spikes of -1 name; 0: there are none
    int32_t threads;
};

// The spikes of a convolution, and its weight in rows.
struct Convolution {
    Shape s;
    const uint16_t* ids;
    const int8_t* amounts;  // what each spike is worth; null: 1
    const int32_t* start;
    const void* weight;
    const float* step;  // what one unit of a 16-bit weight is worth per output channel, or null
};

// Some neighboring pixels of a line of output pixels, of one image, and a tile of their channels.
struct Place {
    int64_t image;
    int y, x, pixels;
    int first, width;
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

// What a spike is worth: 1, its sign, or its amount.
enum Worth { ONE, SIGN, AMOUNT };

// A line of input pixels under a line of output pixels: its spikes, and the row of its first tap.
struct Line {
    const uint16_t* ids;
    const int8_t* amounts;
    const int32_t* start;
    int32_t row;
};

// The rows that the spikes under an output pixel name, and what each is worth.
template <class P>
struct Rows {
    std::vector<uint16_t> row;
    std::vector<typename P::Weight> amount;
    std::vector<Line> lines;

    Rows(const Convolution* c, const Convolution* other)
        : row(std::max(taps(c), other ? taps(other) : 0) + ROOM),
          amount(c->amounts || (other && other->amounts) ? row.size() : 0),
          lines(std::max(c->s.kernel_h, other ? other->s.kernel_h : 0)) {}

    static int taps(const Convolution* c) { return c->s.kernel_h * c->s.kernel_w * c->s.channels; }
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

// total[] = the sum of amount times row; a product is rounded before it is added.
template <class P, int VECTORS, int UNROLL>
inline void sum_products(const uint16_t* rows, const float* amounts, int n, const float* weight, int64_t stride,
                         float* total) {
    typedef Float::Sum Sum;
    Sum sum[UNROLL][VECTORS] = {};
    for (int i = 0; i < n; i += UNROLL)
#pragma GCC unroll 8
        for (int u = 0; u < UNROLL; u++) {
            const Sum* row = (const Sum*)(weight + rows[i + u] * stride);
            const float amount = amounts[i + u];
#pragma GCC unroll 8
            for (int k = 0; k < VECTORS; k++) sum[u][k] += row[k] * amount;
        }
#pragma GCC unroll 8
    for (int k = 0; k < VECTORS; k++) {
        Sum all = sum[0][k];
        for (int u = 1; u < UNROLL; u++) all += sum[u][k];
        memcpy(total + k * Float::LANES, &all, sizeof all);
    }
}

// The same in whole numbers, which are exact in 32 bits: two rows at a time, where the processor multiplies them so.
template <class P, int VECTORS, int UNROLL>
inline void sum_products(const uint16_t* rows, const int16_t* amounts, int n, const int16_t* weight, int64_t stride,
                         int32_t* total) {
#if defined(__AVX512BW__)
    __m512i low[VECTORS], high[VECTORS];
    for (int k = 0; k < VECTORS; k++) low[k] = high[k] = _mm512_setzero_si512();
    for (int i = 0; i < n; i += 2) {
        int32_t both;
        memcpy(&both, amounts + i, sizeof both);
        const __m512i amount = _mm512_set1_epi32(both);
        const int16_t *one = weight + rows[i] * stride, *other = weight + rows[i + 1] * stride;
#pragma GCC unroll 8
        for (int k = 0; k < VECTORS; k++) {
            const __m512i a = _mm512_loadu_si512(one + k * 32), b = _mm512_loadu_si512(other + k * 32);
            low[k] = _mm512_add_epi32(low[k], _mm512_madd_epi16(_mm512_unpacklo_epi16(a, b), amount));
            high[k] = _mm512_add_epi32(high[k], _mm512_madd_epi16(_mm512_unpackhi_epi16(a, b), amount));
        }
    }
    // Four sums of the low halves, then four of the high ones.
    const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    for (int k = 0; k < VECTORS; k++) {
        _mm512_storeu_si512(total + k * 32, _mm512_permutex2var_epi64(low[k], first, high[k]));
        _mm512_storeu_si512(total + k * 32 + 16, _mm512_permutex2var_epi64(low[k], second, high[k]));
    }
#else
    memset(total, 0, VECTORS * Fixed::LANES * sizeof *total);
    for (int i = 0; i < n; i++) {
        const int16_t* row = weight + rows[i] * stride;
        for (int j = 0; j < VECTORS * Fixed::LANES; j++) total[j] += (int32_t)amounts[i] * row[j];
    }
#endif
}

// The lines of spikes under a line of output pixels.
inline int lines_under(const Convolution& c, int64_t image, int top, Line* lines) {
    const Shape& s = c.s;
    const int64_t pitch = (int64_t)s.width * s.channels + ROOM;
    int n = 0;
    for (int dy = std::max(0, -top); dy < s.kernel_h && top + dy < s.height; dy++) {
        const int64_t line = image * s.height + top + dy;
        const int8_t* amounts = c.amounts ? c.amounts + line * pitch : nullptr;
        lines[n++] = {c.ids + line * pitch, amounts, c.start + line * (s.width + 1), dy * s.kernel_w * s.channels};
    }
    return n;
}

// The rows under one output pixel, from its lines' pixels xa to xb, in the order of the taps; `left`: the place in a line
// of the kernel's first tap.
template <Worth WORTH, class P>
inline int gather(const Line* lines, int count, int xa, int xb, int32_t left, int16_t below, Rows<P>& rows) {
    uint16_t* row = rows.row.data();
    typename P::Weight* amount = rows.amount.data();
    int n = 0;
    for (int k = 0; k < count; k++) {
        const Line& line = lines[k];
        const int32_t from = line.start[xa], found = line.start[xb] - from;
        // The spike x * channels + c meets tap (dy, x - left): along a line both differ by one constant.
        const uint16_t shift = (uint16_t)(line.row - left);
        for (int i = 0; i < found; i += COPIED) {  // seldom more than once, so the branch is foreseen
            Many at;
            memcpy(&at, line.ids + from + i, sizeof at);
            at += shift;
            if (WORTH == SIGN) {
                uint16_t lower[COPIED];
                for (int j = 0; j < COPIED; j++) lower[j] = (uint16_t)((int16_t)(line.amounts[from + i + j] >> 7) & below);
                Many all;
                memcpy(&all, lower, sizeof all);
                at += all;
            }
            memcpy(row + n + i, &at, sizeof at);
            if (WORTH == AMOUNT)
                for (int j = 0; j < COPIED; j++)
                    amount[n + i + j] = (typename P::Weight)line.amounts[from + i + j];
        }
        n += found;
    }
    return n;
}

// Currents of a line to float, in place: both types have four bytes.
inline void scale_line(int32_t* line, const float* step, int pixels, int width) {
    for (int x = 0; x < pixels; x++)
        for (int j = 0; j < width; j++) {
            const float value = (float)line[x * width + j] * step[j];
            memcpy(line + x * width + j, &value, sizeof value);
        }
}
inline void scale_line(float*, const float*, int, int) {}

// The currents of a place: to[(pixel - x) * width + channel].
template <class P, int VECTORS, int UNROLL, Worth WORTH>
inline void convolve_line(const Convolution& c, const Place& at, int64_t image, Rows<P>& rows, void* to) {
    const Shape& s = c.s;
    const int TILE = VECTORS * P::LANES, STEP = UNROLL > 2 ? UNROLL : 2;
    const int64_t stride = (int64_t)(s.out_channels + P::LANES - 1) / P::LANES * P::LANES;
    const typename P::Weight* weight = (const typename P::Weight*)c.weight + at.first;
    const int taps = s.kernel_h * s.kernel_w * s.channels;
    const uint16_t zero = (uint16_t)(s.below ? 2 * taps : taps);  // the row of zeros, which fills up the loop
    const int limit = s.limit / UNROLL * UNROLL;
    const int count = lines_under(c, image, at.y * s.stride_h - s.pad_h, rows.lines.data());
    typename P::Total total[TILE], *line = (typename P::Total*)to;
    for (int i = 0; i < at.pixels; i++) {
        const int left = (at.x + i) * s.stride_w - s.pad_w, xa = std::max(0, left);
        const int xb = std::max(xa, std::min(s.width, left + s.kernel_w));
        const int lines = xa < s.width ? count : 0;
        int n = gather<WORTH>(rows.lines.data(), lines, xa, xb, left * s.channels, (int16_t)s.below, rows);
        for (int u = 0; u < STEP; u++) {
            rows.row[n + u] = zero;
            if (WORTH == AMOUNT) rows.amount[n + u] = 0;
        }
        n = (n + STEP - 1) / STEP * STEP;
        typename P::Total* sum = at.width == TILE ? line + (int64_t)i * TILE : total;
        if (WORTH == AMOUNT)
            sum_products<P, VECTORS, UNROLL>(rows.row.data(), rows.amount.data(), n, weight, stride, sum);
        else
            sum_rows<P, VECTORS, UNROLL>(rows.row.data(), n, limit, weight, stride, sum);
        if (sum == total) memcpy(line + (int64_t)i * at.width, total, at.width * sizeof total[0]);
    }
    if (c.step) scale_line(line, c.step + at.first, at.pixels, at.width);
}

template <class P, int VECTORS, int UNROLL>
inline void convolve_line(const Convolution& c, const Place& at, int64_t image, Rows<P>& rows, void* to) {
    if (c.amounts && c.s.below)
        convolve_line<P, VECTORS, UNROLL, SIGN>(c, at, image, rows, to);
    else if (c.amounts)
        convolve_line<P, VECTORS, UNROLL, AMOUNT>(c, at, image, rows, to);
    else
        convolve_line<P, VECTORS, UNROLL, ONE>(c, at, image, rows, to);
}

}  // namespace sresnet
