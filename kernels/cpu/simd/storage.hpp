// float32, float16 and bfloat16 in memory; Floats in registers. Rounded to nearest, ties to even.
#pragma once

#include "lanes.hpp"

namespace kernels {
namespace {

struct Half {
    std::uint16_t bits;
};
struct Bfloat {
    std::uint16_t bits;
};

KERNELS_INLINE Words widen(Shorts bits) { return __builtin_convertvector(bits, Words); }
KERNELS_INLINE Shorts narrow(Words bits) { return __builtin_convertvector(bits, Shorts); }

KERNELS_INLINE Floats from_half(Shorts bits) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(reinterpret_cast<__m256i>(bits));
#elif defined(__AVX2__)
    return _mm256_cvtph_ps(reinterpret_cast<__m128i>(bits));
#elif defined(KERNELS_NEON)
    return vcvt_f32_f16(reinterpret_cast<float16x4_t>(bits));
#else
    const Words wide = widen(bits), magnitude = (wide & 0x7fffu) << 13;
    // The multiplication moves the exponent and makes subnormal halves normal; infinity and NaN keep theirs.
    const Words scaled = reinterpret_cast<Words>(reinterpret_cast<Floats>(magnitude) * 0x1p112f);
    const Words number = magnitude >= 0x7c00u << 13 ? magnitude | 0x7f800000u : scaled;
    return reinterpret_cast<Floats>(number | (wide & 0x8000u) << 16);
#endif
}

KERNELS_INLINE Shorts to_half(Floats values) {
#if defined(__AVX512F__)
    return reinterpret_cast<Shorts>(_mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
    return reinterpret_cast<Shorts>(_mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
#elif defined(KERNELS_NEON)
    return reinterpret_cast<Shorts>(vcvt_f16_f32(values));
#else
    const Words bits = reinterpret_cast<Words>(values), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    const Words normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // Adding 1/2 leaves the rounded subnormal in the lowest bits: its unit is 2^-24.
    const Words tiny = reinterpret_cast<Words>(reinterpret_cast<Floats>(magnitude) + 0.5f) - 0x3f000000u;
    Words half = magnitude < 113u << 23 ? tiny : normal;
    half = magnitude >= 143u << 23 ? 0x7c00u - Words{} : half;
    half = magnitude > 0x7f800000u ? 0x7e00u - Words{} : half;
    return narrow(half | sign);
#endif
}

KERNELS_INLINE Shorts to_bfloat(Floats values) {
    const Words bits = reinterpret_cast<Words>(values);
    const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return narrow((bits & 0x7fffffffu) > 0x7f800000u ? bits >> 16 | 0x40u : rounded);
}

KERNELS_INLINE Floats load(const float* from) { return load_raw<Floats>(from); }
KERNELS_INLINE Floats load(const Half* from) { return from_half(load_raw<Shorts>(from)); }
KERNELS_INLINE Floats load(const Bfloat* from) { return reinterpret_cast<Floats>(widen(load_raw<Shorts>(from)) << 16); }

KERNELS_INLINE void store(float* to, Floats values) { store_raw(to, values); }
KERNELS_INLINE void store(Half* to, Floats values) { store_raw(to, to_half(values)); }
KERNELS_INLINE void store(Bfloat* to, Floats values) { store_raw(to, to_bfloat(values)); }

KERNELS_INLINE void stream(float* to, Floats values) { stream_raw(to, values); }
KERNELS_INLINE void stream(Half* to, Floats values) { stream_raw(to, to_half(values)); }
KERNELS_INLINE void stream(Bfloat* to, Floats values) { stream_raw(to, to_bfloat(values)); }

// The first `count` lanes; the others are 0, or left alone in memory.
template <typename T>
KERNELS_INLINE Floats load_some(const T* from, std::int64_t count) {
    T lanes[kLanes] = {};
    __builtin_memcpy(lanes, from, static_cast<std::size_t>(count) * sizeof(T));
    return load(lanes);
}

template <typename T>
KERNELS_INLINE void store_some(T* to, Floats values, std::int64_t count) {
    T lanes[kLanes];
    store(lanes, values);
    __builtin_memcpy(to, lanes, static_cast<std::size_t>(count) * sizeof(T));
}

// The whole cache lines of [to, to + count): [first, last). Only these are streamed: a line streamed in part costs more
// than an ordinary store.
struct Lines {
    std::int64_t first, last;
};

template <typename T>
KERNELS_INLINE Lines whole_lines(const T* to, std::int64_t count) {
    constexpr std::int64_t line = 64 / sizeof(T);
    const std::int64_t past = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(to) % 64 / sizeof(T));
    const std::int64_t first = past == 0 ? 0 : line - past;
    return first > count ? Lines{count, count} : Lines{first, first + (count - first) / line * line};
}

}  // namespace
}  // namespace kernels
