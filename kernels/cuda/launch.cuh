// How a kernel is started. No <<<>>>: the tests compile these files with a plain C++ compiler too.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "bilinear.hpp"

namespace kernels::cuda {

template <typename T>
KERNELS_HOST_DEVICE constexpr T ceil_div(T a, T b) {
    return (a + b - 1) / b;
}

// All grids have one axis: the others end at 65,535 blocks.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), std::int64_t blocks, int threads, cudaStream_t stream,
                   const Arguments&... arguments) {
    if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.stream = stream;
    const cudaError_t error = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
    if (error != cudaSuccess) cudaGetLastError();  // ours: the next launch of this process must not report it again
    return error;
}

}  // namespace kernels::cuda
