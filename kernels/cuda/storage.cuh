// Elements in memory and floats in registers, 16 bytes at a time where the addresses allow it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "storage.hpp"

namespace kernels::cuda {

constexpr int kVectorBytes = 16;

template <typename T>
constexpr int kVector = kVectorBytes / static_cast<int>(sizeof(T));  // elements in one vector load

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ inline T from_float(float value) {
    if constexpr (sizeof(T) == sizeof(float))
        return value;
    else if constexpr (std::is_same_v<T, __half>)
        return __float2half_rn(value);
    else
        return __float2bfloat16_rn(value);
}

template <typename T, int COUNT>
struct alignas(COUNT * sizeof(T)) Pack {
    T value[COUNT];
};

// COUNT is either a whole vector, then `from` is aligned to it, or 1.
template <typename T, int COUNT>
__device__ inline Pack<T, COUNT> load(const T* from) {
    Pack<T, COUNT> pack;
    if constexpr (sizeof(pack) == kVectorBytes) {
        const uint4 bits = __ldg(reinterpret_cast<const uint4*>(from));
        std::memcpy(&pack, &bits, sizeof(bits));
    } else {
        pack.value[0] = from[0];
    }
    return pack;
}

template <typename T, int COUNT>
__device__ inline void store(T* to, const Pack<T, COUNT>& pack) {
    if constexpr (sizeof(pack) == kVectorBytes) {
        uint4 bits;
        std::memcpy(&bits, &pack, sizeof(bits));
        __stwb(reinterpret_cast<uint4*>(to), bits);  // an assignment may become four stores
    } else {
        to[0] = pack.value[0];
    }
}

// Null is aligned: it is never read.
inline bool aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % kVectorBytes == 0; }

// Calls `function` with a null pointer to the element type.
template <typename Function>
cudaError_t with_element(Storage storage, Function function) {
    switch (storage) {
        case Storage::float32:
            return function(static_cast<float*>(nullptr));
        case Storage::float16:
            return function(static_cast<__half*>(nullptr));
        case Storage::bfloat16:
            return function(static_cast<__nv_bfloat16*>(nullptr));
    }
    return cudaErrorInvalidValue;
}

}  // namespace kernels::cuda
