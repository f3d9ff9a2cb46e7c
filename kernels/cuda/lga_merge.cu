#include "cuda.hpp"

namespace kernels::cuda {
namespace {

// One thread a channel of a cell: neighbouring threads read and write neighbouring channels.
__global__ void lga_merge_kernel(TokenGrid tokens, std::int64_t grid, const float* __restrict__ crops,
                                 const float* __restrict__ full, float* __restrict__ merged) {
    const std::int64_t element = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (element >= grid * grid * tokens.channels) return;
    const std::int64_t cell = element / tokens.channels, channel = element % tokens.channels;
    const std::int64_t y = cell / grid, x = cell % grid;

    float sum = 0.0f;
    int count = 0;
    for (std::int64_t i = 0; i < tokens.crops_per_axis; ++i) {
        const std::int64_t row = y - i * tokens.stride;
        if (row < 0 || row >= tokens.crop_grid) continue;
        for (std::int64_t j = 0; j < tokens.crops_per_axis; ++j) {
            const std::int64_t column = x - j * tokens.stride;
            if (column < 0 || column >= tokens.crop_grid) continue;
            const std::int64_t crop = i * tokens.crops_per_axis + j;
            const std::int64_t token = (crop * tokens.crop_grid + row) * tokens.crop_grid + column;
            sum += crops[token * tokens.channels + channel];
            ++count;
        }
    }
    const float local = sum / static_cast<float>(count);
    merged[element] = full ? (local + full[element]) * 0.5f : local;
}

}  // namespace

cudaError_t lga_merge(const TokenGrid& tokens, const float* crops, const float* full, float* merged,
                      cudaStream_t stream) {
    const std::int64_t grid = tokens.grid();
    lga_merge_kernel<<<blocks_for(grid * grid * tokens.channels), kThreads, 0, stream>>>(tokens, grid, crops, full,
                                                                                         merged);
    return cudaGetLastError();
}

}  // namespace kernels::cuda
