// Event-driven convolution on the CPU: only spikes cost work.
// A spike of channel c adds one row of the weight, W[dy][dx][c][:], to each output pixel that sees it, so a layer costs
// (spikes) x (taps) x (output channels) additions. Output-stationary: a tile of sums stays in registers meanwhile.
// A spike of several levels, or one that takes back, is worth its amount: the row is multiplied by it first.
#if defined(__AVX512VBMI2__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <type_traits>

#include "layer.h"
#include "rows.h"

namespace {

using namespace sresnet;

typedef uint16_t Eight __attribute__((vector_size(16), aligned(2)));
const int RUN = 512;     // neurons that fire at a time
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

// Eight bytes as 1 where they are not 0.
inline uint64_t not_zero(uint64_t bytes) {
    const uint64_t low = 0x7f7f7f7f7f7f7f7full;
    return (((bytes & low) + low) | bytes) >> 7 & 0x0101010101010101ull;
}

// Writes base + i for every i with spikes[i] other than 0, in ascending order, and returns how many; where spikes have
// SIZES, which are 0 or 1 else, also the spikes themselves.
template <bool SIZES>
inline int32_t positions(const uint8_t* spikes, int n, int base, uint16_t* ids, uint8_t* amounts) {
    int32_t found = 0;
    int i = 0;
#if defined(__AVX512VBMI2__) && defined(__AVX512BW__) && defined(__AVX512VL__)
    for (; i + 16 <= n; i += 16) {
        const __m128i bytes = _mm_loadu_si128((const __m128i*)(spikes + i));
        const __mmask16 mask = _mm_test_epi8_mask(bytes, bytes);
        const __m256i at = _mm256_add_epi16(_mm256_set1_epi16((short)(base + i)), SIXTEEN);
        _mm256_storeu_si256((__m256i*)(ids + found), _mm256_maskz_compress_epi16(mask, at));
        if (SIZES) _mm_storeu_si128((__m128i*)(amounts + found), _mm_maskz_compress_epi8(mask, bytes));
        found += __builtin_popcount(mask);
    }
#endif
    for (; i + 8 <= n; i += 8) {
        uint64_t bytes;
        memcpy(&bytes, spikes + i, 8);
        const uint64_t ones = SIZES ? not_zero(bytes) : bytes;
        const unsigned mask = (unsigned)((ones * 0x0102040810204080ull) >> 56);
        Eight at;
        memcpy(&at, POSITIONS.of[mask], sizeof at);
        if (SIZES)
            for (int k = 0; k < 8; k++) amounts[found + k] = spikes[i + at[k]];
        at += (uint16_t)(base + i);
        memcpy(ids + found, &at, sizeof at);
        found += __builtin_popcount(mask);
    }
    for (; i < n; i++)
        if (spikes[i]) {
            if (SIZES) amounts[found] = spikes[i];
            ids[found++] = (uint16_t)(base + i);
        }
    return found;
}

template <bool SIZES>
void find(const Shape& s, const uint8_t* spikes, uint16_t* ids, int32_t* start, uint8_t* amounts) {
    const int64_t lines = (int64_t)s.images * s.height, length = (int64_t)s.width * s.channels;
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (int64_t line = 0; line < lines; line++) {
        uint16_t* to = ids + line * (length + ROOM);
        uint8_t* sized = SIZES ? amounts + line * (length + ROOM) : nullptr;
        int32_t found = 0;
        for (int x = 0; x < s.width; x++) {
            const int base = x * s.channels;
            start[line * (s.width + 1) + x] = found;
            found += positions<SIZES>(spikes + line * length + base, s.channels, base, to + found, sized + found);
        }
        start[line * (s.width + 1) + s.width] = found;
    }
}

// Everything that one call reads and writes.
struct Job {
    const Convolution* current;
    const Convolution* branch;  // a second one, whose currents come by the neurons' shortcut; or null
    void* out;                  // the currents; unused with a layer
    const Layer* layer;         // the neurons that take them, or null
};

// What a thread has for a place.
template <class P, typename V>
struct Room {
    Rows<P> rows;
    std::vector<V> line, branch, v, emitted, shortcut;
    std::vector<uint8_t> fired;
    std::vector<int16_t> k;
    Parameters<V> p;
    int64_t run;  // neurons that fire at a time: those that lie together, and share the parameters

    Room(const Job& job, int first, int width, int pixels)
        : rows(job.current, job.branch),
          line((int64_t)pixels * width),
          branch(job.branch ? line.size() : 0),
          v(job.layer ? line.size() : 0),
          fired(v.size()) {
        const Layer* l = job.layer;
        const bool whole = width == job.current->s.out_channels && l && !l->bias_step;
        run = whole && width < RUN ? RUN / width * width : width;
        if (l) p.set(*l, first, run);
        if (l && !is_binary(*l)) k.resize(v.size()), emitted.resize(l->rule == SIGNED ? v.size() : 0), shortcut.resize(run);
    }
};

// Membranes of a place from or to their layer, whose pixels are `channels` apart.
template <typename V>
inline void copy(V* to, int64_t to_pixel, const V* from, int64_t from_pixel, const Place& at) {
    for (int x = 0; x < at.pixels; x++) memcpy(to + x * to_pixel, from + x * from_pixel, at.width * sizeof(V));
}

// Spikes of a place to their layer.
template <typename K>
inline void store_place(const Layer& l, const K* spikes, int64_t to, int64_t channels, const Place& at) {
    if (at.width == channels)
        store(l.spike_type, spikes, l.spikes, to, (int64_t)at.pixels * at.width);
    else
        for (int x = 0; x < at.pixels; x++)
            store(l.spike_type, spikes + x * at.width, l.spikes, to + x * channels, at.width);
}

// A step of the binary neurons of a place, or a part of it; `from` is where their shortcut begins.
template <Part PART, class P, typename V>
inline int32_t step_line(const Job& job, const Place& at, int64_t from, Room<P, V>& room) {
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

template <class P, typename V>
inline int32_t answer_line(const Layer& l, const Place& at, Room<P, V>& room) {
    const int64_t length = (int64_t)at.pixels * at.width;
    int32_t count = 0;
    for (int64_t j = 0; j < length; j += room.run) {
        const int64_t n = length - j < room.run ? length - j : room.run;
        count += answer(l, room.p.threshold.data(), room.v.data() + j, room.fired.data() + j, n);
    }
    return count;
}

// What arrives at a step at the neurons of a place that have another alphabet.
template <class P, typename V>
void arrive_line(const Job& job, const Place& at, int64_t from, Room<P, V>& room) {
    const Layer& l = *job.layer;
    const int64_t channels = job.current->s.out_channels, length = (int64_t)at.pixels * at.width;
    for (int64_t j = 0; j < length; j += room.run) {
        const int64_t n = length - j < room.run ? length - j : room.run, place = from + j / at.width * channels;
        const V* shortcut = nullptr;
        if (job.branch)
            shortcut = room.branch.data() + j;
        else if (l.shortcut_type)
            shortcut = as(l.shortcut_type, l.shortcut, place, room.shortcut.data(), n);
        arrive(l, room.p, room.line.data() + j, shortcut, room.v.data() + j, n);
    }
}

// What they emit then.
template <class P, typename V>
int32_t emit_line(const Layer& l, const Place& at, Room<P, V>& room) {
    const int64_t length = (int64_t)at.pixels * at.width;
    for (int64_t j = 0; j < length; j += room.run) {
        const int64_t n = length - j < room.run ? length - j : room.run;
        V* emitted = l.rule == SIGNED ? room.emitted.data() + j : nullptr;
        emit(l, room.p, room.v.data() + j, emitted, room.k.data() + j, n);
    }
    return l.counts ? amplitudes(room.k.data(), length) : 0;
}

// The neurons of a place take their currents, all steps one after another.
template <class P, int VECTORS, int UNROLL, typename V>
void fire_place(const Job& job, const Place& at, Room<P, V>& room) {
    const Layer& l = *job.layer;
    const Shape& s = job.current->s;
    const bool binary = is_binary(l), remembers = l.rule == SIGNED;
    const int64_t images = l.images, channels = s.out_channels;
    const int64_t begin = ((at.image * s.out_height + at.y) * s.out_width + at.x) * channels + at.first;
    copy(room.v.data(), at.width, (const V*)l.v + begin, channels, at);
    if (remembers) copy(room.emitted.data(), at.width, (const V*)l.emitted + begin, channels, at);
    for (int64_t now = 0; now < l.wait + l.answers; now++) {
        const int64_t t = now - l.wait, from = begin + now * l.shortcut_step;
        int32_t count = 0;
        if (now < l.steps) {
            const int64_t image = now * images + at.image;
            convolve_line<P, VECTORS, UNROLL>(*job.current, at, image, room.rows, room.line.data());
            if (job.branch) convolve_line<P, VECTORS, UNROLL>(*job.branch, at, image, room.rows, room.branch.data());
            room.p.at_step(l, now, at.first, room.run);
            if (!binary)
                arrive_line(job, at, from, room);
            else if (l.schedule == STREAMING)
                count = step_line<STREAM>(job, at, from, room);
            else
                count = t < 0 ? step_line<GATHER>(job, at, from, room) : step_line<WAIT>(job, at, from, room);
        } else if (binary) {
            count = answer_line(l, at, room);
        }
        if (t < 0) continue;
        const int64_t to = begin + t * images * l.neurons;
        if (!binary) {
            count = emit_line(l, at, room);
            store_place(l, room.k.data(), to, channels, at);
        } else {
            store_place(l, room.fired.data(), to, channels, at);
        }
        add_count(l, t, at.image, count);
    }
    copy((V*)l.v_after + begin, channels, room.v.data(), at.width, at);
    if (remembers && l.emitted_after) copy((V*)l.emitted_after + begin, channels, room.emitted.data(), at.width, at);
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
        Room<P, V> room(job, first, width, pixels);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < images * s.out_height; i++)
            for (int x = 0; x < s.out_width; x += pixels) {
                const int n = std::min(pixels, s.out_width - x);
                const Place at = {i / s.out_height, (int)(i % s.out_height), x, n, first, width};
                if (l) {
                    fire_place<P, VECTORS, UNROLL>(job, at, room);
                    continue;
                }
                convolve_line<P, VECTORS, UNROLL>(*job.current, at, at.image, room.rows, room.line.data());
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

// spikes [images, height, width, channels] of bytes -> for each line of pixels the ids x * channels + c of its spikes,
// ascending, in a row of width * channels + 64; start[line][x] is where pixel x begins, start[line][width] the end. The
// bytes are 0 and 1, or where there are amounts [as ids] any signed number, which is written beside its id.
void sresnet_find_events(const Shape* shape, const uint8_t* spikes, uint16_t* ids, int32_t* start, uint8_t* amounts) {
    if (amounts)
        find<true>(*shape, spikes, ids, start, amounts);
    else
        find<false>(*shape, spikes, ids, start, nullptr);
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
