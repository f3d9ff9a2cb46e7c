// One vector register of floats, for the instruction set that the including file is compiled for.
//
// The compilers' vector extensions do the arithmetic; what they cannot say is written here once per instruction set.
// Everything is local to the including file: an inline function that the linker could share between files compiled
// for different processors would crash the older of them.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#define KERNELS_NEON
#endif

#define KERNELS_INLINE [[gnu::always_inline]] static inline

// Before a short loop over vectors: GCC otherwise unrolls it too late to keep them in registers.
#if defined(__clang__)
#define KERNELS_UNROLL _Pragma("unroll")
#else
#define KERNELS_UNROLL _Pragma("GCC unroll 4")
#endif

namespace kernels {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

using Floats = float __attribute__((vector_size(4 * kLanes)));
using Ints = std::int32_t __attribute__((vector_size(4 * kLanes)));
using Words = std::uint32_t __attribute__((vector_size(4 * kLanes)));
using Shorts = std::uint16_t __attribute__((vector_size(2 * kLanes)));
using Bytes = std::uint8_t __attribute__((vector_size(kLanes)));

constexpr float kInfinity = __builtin_inff();

KERNELS_INLINE Floats broadcast(float value) { return value - Floats{}; }
KERNELS_INLINE Ints broadcast(std::int32_t value) { return value - Ints{}; }

// Unaligned, and whatever the memory is declared as.
template <typename Vector>
struct Anywhere {
    Vector value;
} __attribute__((packed, may_alias));

template <typename Vector, typename T>
KERNELS_INLINE Vector load_raw(const T* from) {
    return reinterpret_cast<const Anywhere<Vector>*>(from)->value;
}

template <typename Vector, typename T>
KERNELS_INLINE void store_raw(T* to, Vector vector) {
    reinterpret_cast<Anywhere<Vector>*>(to)->value = vector;
}

// Where either is NaN: the second, as in the comparison they are written with.
KERNELS_INLINE Floats least_of(Floats a, Floats b) { return a < b ? a : b; }
KERNELS_INLINE Floats most_of(Floats a, Floats b) { return a > b ? a : b; }

KERNELS_INLINE bool any(Ints mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(mask), reinterpret_cast<__m512i>(mask)) != 0;
#elif defined(__AVX2__)
    return _mm256_movemask_ps(reinterpret_cast<__m256>(mask)) != 0;
#elif defined(__SSE2__)
    return _mm_movemask_ps(reinterpret_cast<__m128>(mask)) != 0;
#elif defined(KERNELS_NEON)
    return vmaxvq_u32(reinterpret_cast<uint32x4_t>(mask)) != 0;
#else
    std::int32_t found = 0;
    for (int i = 0; i < kLanes; ++i) found |= mask[i];
    return found != 0;
#endif
}

// result[i] = values[from[i]]
KERNELS_INLINE Floats permute(Floats values, Ints from) {
#if defined(__AVX512F__)
    return _mm512_permutexvar_ps(reinterpret_cast<__m512i>(from), values);
#elif defined(__AVX2__)
    return _mm256_permutevar8x32_ps(values, reinterpret_cast<__m256i>(from));
#elif defined(KERNELS_NEON)
    const Words bytes = reinterpret_cast<Words>(from) * 0x04040404u + 0x03020100u;
    return reinterpret_cast<Floats>(
        vqtbl1q_u8(reinterpret_cast<uint8x16_t>(values), reinterpret_cast<uint8x16_t>(bytes)));
#else
    Floats result;
    for (int i = 0; i < kLanes; ++i) result[i] = values[from[i]];
    return result;
#endif
}

// Four floats from memory, and result[i] = four[from[i]] of them. On AVX2 this is a quarter of `permute`'s work.
#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr bool kHasFours = true;
KERNELS_INLINE Floats load_fours(const float* from) {
    return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(from));
}
KERNELS_INLINE Floats permute_fours(Floats fours, Ints from) {
    return _mm256_permutevar_ps(fours, reinterpret_cast<__m256i>(from));
}
#else
constexpr bool kHasFours = false;
KERNELS_INLINE Floats load_fours(const float* from) { return load_raw<Floats>(from); }
KERNELS_INLINE Floats permute_fours(Floats fours, Ints from) { return permute(fours, from); }
#endif

// Past the caches: for results that are larger than they are. `to` is aligned to the vector.
template <typename Vector>
KERNELS_INLINE void stream_raw(void* to, Vector vector) {
#if defined(__SSE2__)
    if constexpr (sizeof(Vector) == 16) _mm_stream_si128(static_cast<__m128i*>(to), reinterpret_cast<__m128i>(vector));
    if constexpr (sizeof(Vector) == 8)
        _mm_stream_si64(static_cast<long long*>(to), reinterpret_cast<long long>(vector));
#endif
#if defined(__AVX2__)
    if constexpr (sizeof(Vector) == 32)
        _mm256_stream_si256(static_cast<__m256i*>(to), reinterpret_cast<__m256i>(vector));
#endif
#if defined(__AVX512F__)
    if constexpr (sizeof(Vector) == 64)
        _mm512_stream_si512(static_cast<__m512i*>(to), reinterpret_cast<__m512i>(vector));
#endif
#if !defined(__SSE2__)
    store_raw(to, vector);
#endif
}

// Before another thread may read what was streamed.
KERNELS_INLINE void streams_done() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

}  // namespace
}  // namespace kernels
