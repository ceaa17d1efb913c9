// Event-driven convolution on the CPU: only spikes cost work.
// A spike of channel c adds one row of the weight, W[dy][dx][c][:], to each output pixel that sees it, so a layer costs
// (spikes) x (taps) x (output channels) additions. Output-stationary: a tile of sums stays in registers meanwhile.
// The sum of a pixel is in one fixed order, so results do not depend on the batch, the chunk or the threads.
#if defined(__AVX512VBMI2__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <type_traits>

#include "layer.h"

namespace {

using namespace sresnet;

typedef uint16_t Eight __attribute__((vector_size(16), aligned(2)));
typedef uint16_t Many __attribute__((vector_size(64), aligned(2)));
const int ROOM = 64;  // entries that whole-vector writes may touch beyond a list's end
const int RUN = 512;    // neurons that fire at a time
const int BLOCK = 2048;  // numbers of a line that go through all steps together, so that they stay in the first cache

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
#if defined(__AVX512VBMI2__) && defined(__AVX512BW__) && defined(__AVX512VL__)
const __m256i SIXTEEN = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#endif

// Writes base + i for every i with spikes[i] = 1, in ascending order, and returns how many.
inline int32_t positions(const uint8_t* spikes, int n, int base, uint16_t* ids) {
    int32_t found = 0;
    int i = 0;
#if defined(__AVX512VBMI2__) && defined(__AVX512BW__) && defined(__AVX512VL__)
    for (; i + 16 <= n; i += 16) {
        const __m128i bytes = _mm_loadu_si128((const __m128i*)(spikes + i));
        const __mmask16 mask = _mm_test_epi8_mask(bytes, bytes);
        const __m256i at = _mm256_add_epi16(_mm256_set1_epi16((short)(base + i)), SIXTEEN);
        _mm256_storeu_si256((__m256i*)(ids + found), _mm256_maskz_compress_epi16(mask, at));
        found += __builtin_popcount(mask);
    }
#endif
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
        for (int i = 0; i < found; i += 32) {  // seldom more than once, so the branch is foreseen
            Many at;
            memcpy(&at, from + i, sizeof at);
            at += shift;
            memcpy(rows + n + i, &at, sizeof at);
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

// The spikes of a convolution, and its weight in rows.
struct Convolution {
    Shape s;
    const uint16_t* ids;
    const int32_t* start;
    const void* weight;
    const float* step;  // what one unit of a 16-bit weight is worth per output channel, or null
};

// Everything that one call reads and writes.
struct Job {
    const Convolution* current;
    const Convolution* branch;  // a second one, whose currents come by the neurons' shortcut; or null
    void* out;                  // the currents; unused with a layer
    const Layer* layer;         // the neurons that take them, or null
};

// Some neighboring pixels of a line of output pixels, of one image, and a tile of their channels.
struct Place {
    int64_t image;
    int y, x, pixels;
    int first, width;
};

// The currents of a place: line[(pixel - x) * width + channel].
template <class P, int VECTORS, int UNROLL>
inline void convolve_line(const Convolution& c, const Place& at, int64_t image, uint16_t* rows, void* to) {
    const Shape& s = c.s;
    const int64_t stride = (int64_t)(s.out_channels + P::LANES - 1) / P::LANES * P::LANES;
    const typename P::Weight* weight = (const typename P::Weight*)c.weight + at.first;
    const int zero = s.kernel_h * s.kernel_w * s.channels;  // the row of zeros, which fills up the unrolled loop
    const int limit = s.limit / UNROLL * UNROLL, top = at.y * s.stride_h - s.pad_h;
    typename P::Total total[VECTORS * P::LANES], *line = (typename P::Total*)to;
    for (int i = 0; i < at.pixels; i++) {
        int n = gather(s, c.ids, c.start, image, top, (at.x + i) * s.stride_w - s.pad_w, rows);
        for (int u = 0; u < UNROLL; u++) rows[n + u] = (uint16_t)zero;
        n = (n + UNROLL - 1) / UNROLL * UNROLL;
        if (at.width == VECTORS * P::LANES) {
            sum_rows<P, VECTORS, UNROLL>(rows, n, limit, weight, stride, line + (int64_t)i * at.width);
        } else {
            sum_rows<P, VECTORS, UNROLL>(rows, n, limit, weight, stride, total);
            memcpy(line + (int64_t)i * at.width, total, at.width * sizeof total[0]);
        }
    }
    if (c.step) scale_line(line, c.step + at.first, at.pixels, at.width);
}

// What a thread has for a place.
template <typename V>
struct Room {
    std::vector<uint16_t> rows;
    std::vector<V> line, branch, v;
    std::vector<uint8_t> fired;
    Parameters<V> p;
    int64_t run;  // neurons that fire at a time: those that lie together, and share the parameters

    Room(const Job& job, int first, int width, int pixels)
        : rows(std::max(taps(job.current), job.branch ? taps(job.branch) : 0) + ROOM),
          line((int64_t)pixels * width),
          branch(job.branch ? line.size() : 0),
          v(job.layer ? line.size() : 0),
          fired(v.size()) {
        const Layer* l = job.layer;
        const bool whole = width == job.current->s.out_channels && l && !l->bias_step;
        run = whole && width < RUN ? RUN / width * width : width;
        if (l) p.set(*l, first, run);
    }

    static int taps(const Convolution* c) { return c->s.kernel_h * c->s.kernel_w * c->s.channels; }
};

// Membranes of a place from or to their layer, whose pixels are `channels` apart.
template <typename V>
inline void copy(V* to, int64_t to_pixel, const V* from, int64_t from_pixel, const Place& at) {
    for (int x = 0; x < at.pixels; x++) memcpy(to + x * to_pixel, from + x * from_pixel, at.width * sizeof(V));
}

// A step of the neurons of a place, or a part of it; `from` is where their shortcut begins.
template <Part PART, typename V>
inline int32_t step_line(const Job& job, const Place& at, int64_t from, Room<V>& room) {
    const Layer& l = *job.layer;
    const int32_t own = std::is_same<V, float>::value ? FLOAT32 : INT32;
    const int64_t channels = job.current->s.out_channels, length = (int64_t)at.pixels * at.width;
    int32_t count = 0;
    for (int64_t j = 0; j < length; j += room.run) {
        const int64_t n = length - j < room.run ? length - j : room.run;
        const Branch branch = job.branch ? Branch{own, room.branch.data(), j}
                                         : Branch{l.shortcut_type, l.shortcut, from + j / at.width * channels};
        count += step<PART>(l, room.line.data() + j, branch, room.p, room.v.data() + j, room.fired.data() + j, n);
    }
    return count;
}

template <typename V>
inline int32_t answer_line(const Layer& l, const Place& at, Room<V>& room) {
    const int64_t length = (int64_t)at.pixels * at.width;
    int32_t count = 0;
    for (int64_t j = 0; j < length; j += room.run) {
        const int64_t n = length - j < room.run ? length - j : room.run;
        count += answer(l, room.p.threshold.data(), room.v.data() + j, room.fired.data() + j, n);
    }
    return count;
}

// The neurons of a place take their currents, all steps one after another.
template <class P, int VECTORS, int UNROLL, typename V>
void fire_place(const Job& job, const Place& at, Room<V>& room) {
    const Layer& l = *job.layer;
    const Shape& s = job.current->s;
    const int64_t images = l.images, channels = s.out_channels, wait = delay(l);
    const int64_t begin = ((at.image * s.out_height + at.y) * s.out_width + at.x) * channels + at.first;
    copy(room.v.data(), at.width, (const V*)l.v + begin, channels, at);
    for (int64_t now = 0; now < l.steps + wait; now++) {
        const int64_t t = now - wait, from = begin + now * l.shortcut_step;
        int32_t count = 0;
        if (now < l.steps) {
            const int64_t image = now * images + at.image;
            convolve_line<P, VECTORS, UNROLL>(*job.current, at, image, room.rows.data(), room.line.data());
            if (job.branch)
                convolve_line<P, VECTORS, UNROLL>(*job.branch, at, image, room.rows.data(), room.branch.data());
            room.p.at_step(l, now, at.first, room.run);
            count = !wait ? step_line<STREAM>(job, at, from, room) : t < 0 ? step_line<GATHER>(job, at, from, room)
                                                                         : step_line<WAIT>(job, at, from, room);
        } else {
            count = answer_line(l, at, room);
        }
        if (t < 0) continue;
        add_count(l, t, at.image, count);
        const int64_t to = begin + t * images * l.neurons;
        if (at.width == channels)
            store(l.spike_type, room.fired.data(), l.spikes, to, (int64_t)at.pixels * at.width);
        else
            for (int x = 0; x < at.pixels; x++)
                store(l.spike_type, room.fired.data() + x * at.width, l.spikes, to + x * channels, at.width);
    }
    copy((V*)l.v_after + begin, channels, room.v.data(), at.width, at);
}

template <class P, int VECTORS, int UNROLL, typename V>
void convolve_tile(const Job& job, int first) {
    const Shape& s = job.current->s;
    const Layer* l = job.layer;
    const int width = s.out_channels - first < VECTORS * P::LANES ? s.out_channels - first : VECTORS * P::LANES;
    const int64_t images = l ? l->images : s.images;
    const int pixels = BLOCK / width < s.out_width ? BLOCK / width : s.out_width;
#pragma omp parallel num_threads(s.threads)
    {
        Room<V> room(job, first, width, pixels);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < images * s.out_height; i++)
            for (int x = 0; x < s.out_width; x += pixels) {
                const int n = std::min(pixels, s.out_width - x);
                const Place at = {i / s.out_height, (int)(i % s.out_height), x, n, first, width};
                if (l) {
                    fire_place<P, VECTORS, UNROLL>(job, at, room);
                    continue;
                }
                convolve_line<P, VECTORS, UNROLL>(*job.current, at, at.image, room.rows.data(), room.line.data());
                V* out = (V*)job.out + (i * s.out_width + x) * s.out_channels + first;
                copy(out, s.out_channels, room.line.data(), width, at);
            }
    }
}

template <class P, typename V>
void convolve(const Job& job) {
    const int channels = job.current->s.out_channels;
    for (int first = 0; first < channels;) {
        const int left = (channels - first + P::LANES - 1) / P::LANES;
#if defined(__AVX512F__)  // elsewhere a vector of 64 bytes takes several registers, and eight of them would spill
        if (left >= 8) {
            convolve_tile<P, 8, 1, V>(job, first);
            first += 8 * P::LANES;
            continue;
        }
#endif
        if (left >= 4) {
            convolve_tile<P, 4, 2, V>(job, first);
            first += 4 * P::LANES;
        } else if (left >= 2) {
            convolve_tile<P, 2, 4, V>(job, first);
            first += 2 * P::LANES;
        } else {
            convolve_tile<P, 1, 4, V>(job, first);
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

// Weights [kernel_h * kernel_w * channels + 1][out_channels rounded up to a vector], the last row zeros. Without a layer
// the currents go to out [images, out_height, out_width, out_channels]; with one its neurons take them at once, place by
// place, and images counts steps times images. A branch has the same output; its currents are the neurons' shortcut.
void sresnet_convolve_float(const Convolution* current, const Convolution* branch, void* out, const Layer* layer) {
    convolve<Float, float>({current, branch, out, layer});
}

// int16 weights: the currents are float32, sum * step[out_channel], or int32 where step is null.
void sresnet_convolve_fixed(const Convolution* current, const Convolution* branch, void* out, const Layer* layer) {
    if (current->step)
        convolve<Fixed, float>({current, branch, out, layer});
    else
        convolve<Fixed, int32_t>({current, branch, out, layer});
}
}
