// How numbers lie in a GPU's memory, and vectors of them: what the CUDA kernels share.
//
// 16-bit floats are taken apart by hand, since cuda_fp16.h is not there on every machine.
#pragma once

#include "membrane.h"

namespace sresnet {

// ---- how numbers lie in memory: SIZE bytes, SPIKE the bits of 1, spike() those of k: up to 8 bits, and a sign ----

struct f32 {
    static constexpr int SIZE = 4;
    static constexpr unsigned SPIKE = 0x3f800000u;
    static SRESNET_INLINE float read(unsigned bits) { return __uint_as_float(bits); }
    static SRESNET_INLINE unsigned write(float value) { return __float_as_uint(value); }
    static SRESNET_INLINE unsigned spike(int k) { return __float_as_uint((float)k); }
};
struct f16 {
    static constexpr int SIZE = 2;
    static constexpr unsigned SPIKE = 0x3c00u;
    static SRESNET_INLINE float read(unsigned bits) {
#if defined(__CUDACC__)
        float value;
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((unsigned short)bits));
        return value;
#else
        // The exponent's bias goes from 15 to 127 by a product, which is exact and makes subnormals normal.
        const unsigned magnitude = bits & 0x7fffu;
        const unsigned wide = magnitude << 13 | (magnitude >= 0x7c00u ? 0x7f800000u : 0u);
        const float value = magnitude >= 0x7c00u ? __uint_as_float(wide) : __uint_as_float(wide) * 0x1p112f;
        return bits & 0x8000u ? -value : value;
#endif
    }
    // Rounded to the nearest, of two to the even one.
    static SRESNET_INLINE unsigned write(float value) {
#if defined(__CUDACC__)
        unsigned short bits;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
        return bits;
#else
        const unsigned wide = __float_as_uint(value), sign = wide >> 16 & 0x8000u, magnitude = wide & 0x7fffffffu;
        if (magnitude > 0x7f800000u) return 0x7fffu;
        if (magnitude >= 0x477ff000u) return sign | 0x7c00u;
        // A sum with 1/2, whose last bit is that of subnormal halves, rounds them.
        if (magnitude < 0x38800000u) return sign | (__float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u);
        return sign | (magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13;
#endif
    }
    static SRESNET_INLINE unsigned spike(int k) {
        const unsigned wide = __float_as_uint((float)k);
        // Fewer bits of the exponent, whose bias goes from 127 to 15, and of the mantissa, where only zeros are lost.
        return k == 0 ? 0u : (wide >> 16 & 0x8000u) | ((wide & 0x7fffffffu) - 0x38000000u) >> 13;
    }
};
struct bf16 {
    static constexpr int SIZE = 2;
    static constexpr unsigned SPIKE = 0x3f80u;
    static SRESNET_INLINE float read(unsigned bits) { return __uint_as_float(bits << 16); }
    static SRESNET_INLINE unsigned write(float value) {
        const unsigned wide = __float_as_uint(value);
        return value != value ? 0x7fffu : (wide + 0x7fffu + (wide >> 16 & 1u)) >> 16;
    }
    static SRESNET_INLINE unsigned spike(int k) { return __float_as_uint((float)k) >> 16; }
};
struct i32 {
    static constexpr int SIZE = 4;
    static constexpr unsigned SPIKE = 1u;
    static SRESNET_INLINE int read(unsigned bits) { return (int)bits; }
    static SRESNET_INLINE unsigned spike(int k) { return (unsigned)k; }
};
struct i8 {
    static constexpr int SIZE = 1;
    static constexpr unsigned SPIKE = 1u;
    static SRESNET_INLINE int read(unsigned bits) { return (signed char)bits; }
    static SRESNET_INLINE unsigned spike(int k) { return (unsigned)k & 0xffu; }
};
struct u8 {
    static constexpr int SIZE = 1;
    static constexpr unsigned SPIKE = 1u;
    static SRESNET_INLINE int read(unsigned bits) { return (int)bits; }
    static SRESNET_INLINE unsigned spike(int k) { return (unsigned)k & 0xffu; }
};

// ---- vectors: BYTES that are moved in accesses of up to 16, and taken apart in registers ----

template <int BYTES>
struct Bits {
    unsigned word[(BYTES + 3) / 4];
    // The k-th number of SIZE bytes.
    template <int SIZE>
    SRESNET_INLINE unsigned get(int k) const {
        const unsigned whole = word[k * SIZE / 4] >> (k * SIZE % 4 * 8);
        return SIZE == 4 ? whole : whole & ((1u << SIZE % 4 * 8) - 1u);
    }
    template <int SIZE>
    SRESNET_INLINE void put(int k, unsigned bits) {
        word[k * SIZE / 4] |= bits << (k * SIZE % 4 * 8);
    }
};

template <int BYTES>
SRESNET_INLINE Bits<BYTES> load(const char* from) {
    Bits<BYTES> bits;
    if constexpr (BYTES >= 16) {
#pragma unroll
        for (int i = 0; i < BYTES / 16; i++) {
            const uint4 four = reinterpret_cast<const uint4*>(from)[i];
            bits.word[4 * i] = four.x, bits.word[4 * i + 1] = four.y;
            bits.word[4 * i + 2] = four.z, bits.word[4 * i + 3] = four.w;
        }
    } else if constexpr (BYTES == 8) {
        const uint2 two = *reinterpret_cast<const uint2*>(from);
        bits.word[0] = two.x, bits.word[1] = two.y;
    } else if constexpr (BYTES == 4) {
        bits.word[0] = *reinterpret_cast<const unsigned*>(from);
    } else if constexpr (BYTES == 2) {
        bits.word[0] = *reinterpret_cast<const unsigned short*>(from);
    } else {
        bits.word[0] = *reinterpret_cast<const unsigned char*>(from);
    }
    return bits;
}

template <int BYTES>
SRESNET_INLINE void store(char* to, const Bits<BYTES>& bits) {
    if constexpr (BYTES >= 16) {
#pragma unroll
        for (int i = 0; i < BYTES / 16; i++)
            reinterpret_cast<uint4*>(to)[i] =
                make_uint4(bits.word[4 * i], bits.word[4 * i + 1], bits.word[4 * i + 2], bits.word[4 * i + 3]);
    } else if constexpr (BYTES == 8) {
        *reinterpret_cast<uint2*>(to) = make_uint2(bits.word[0], bits.word[1]);
    } else if constexpr (BYTES == 4) {
        *reinterpret_cast<unsigned*>(to) = bits.word[0];
    } else if constexpr (BYTES == 2) {
        *reinterpret_cast<unsigned short*>(to) = (unsigned short)bits.word[0];
    } else {
        *reinterpret_cast<unsigned char*>(to) = (unsigned char)bits.word[0];
    }
}

}  // namespace sresnet
