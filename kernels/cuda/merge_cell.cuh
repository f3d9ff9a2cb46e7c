// One token of the merged grid, a few channels at a time.
#pragma once

#include "lga_merge.hpp"
#include "storage.cuh"

namespace kernels::cuda {

// The crop tokens that lie on one cell: `down` by `across` of them, a constant number of elements apart.
struct Cover {
    std::int64_t first, down_step, across_step;
    int down, across;
};

__device__ inline Cover cover_of(const TokenGrid& tokens, int y, int x) {
    const int g = static_cast<int>(tokens.crop_grid), k = static_cast<int>(tokens.crops_per_axis);
    const int stride = static_cast<int>(tokens.stride);
    const auto begin = [&](int at) { return at < g ? 0 : (at - g) / stride + 1; };  // the first that is not over yet
    const auto end = [&](int at) { return at / stride + 1 < k ? at / stride + 1 : k; };
    const int i = begin(y), j = begin(x);
    const std::int64_t crop = i * k + j, row = y - i * stride, column = x - j * stride;
    Cover cover;
    cover.first = ((crop * g + row) * g + column) * tokens.channels;
    cover.down_step = (static_cast<std::int64_t>(k) * g - stride) * g * tokens.channels;  // next crop, earlier row
    cover.across_step = (static_cast<std::int64_t>(g) * g - stride) * tokens.channels;
    cover.down = end(y) - i;
    cover.across = end(x) - j;
    return cover;
}

// Crops side by side, a known number of them: all loads are under way before the first sum waits.
template <int ACROSS, typename T, int COUNT>
__device__ inline void add_row(const T* source, std::int64_t step, float (&sum)[COUNT]) {
    Pack<T, COUNT> packs[ACROSS];
#pragma unroll
    for (int j = 0; j < ACROSS; ++j) packs[j] = load<T, COUNT>(source + j * step);
#pragma unroll
    for (int j = 0; j < ACROSS; ++j)
#pragma unroll
        for (int i = 0; i < COUNT; ++i) sum[i] += to_float(packs[j].value[i]);
}

template <typename T, int COUNT>
__device__ inline void add_crops(const Cover& cover, const T* source, float (&sum)[COUNT]) {
#pragma unroll 1
    for (int down = 0; down < cover.down; ++down, source += cover.down_step) {
        switch (cover.across) {  // the same for all threads that share a cell
            case 1:
                add_row<1>(source, cover.across_step, sum);
                break;
            case 2:
                add_row<2>(source, cover.across_step, sum);
                break;
            case 3:
                add_row<3>(source, cover.across_step, sum);
                break;
            default:
                for (int j = 0; j < cover.across; ++j) add_row<1>(source + j * cover.across_step, 0, sum);
        }
    }
}

// `source` and `whole` (null: crops only) point at the first of COUNT channels.
template <typename T, int COUNT>
__device__ inline void merge(const Cover& cover, const T* source, const T* whole, float (&merged)[COUNT]) {
    Pack<T, COUNT> full;
    if (whole) full = load<T, COUNT>(whole);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) merged[i] = 0.0f;
    add_crops(cover, source, merged);
    const float count = static_cast<float>(cover.down * cover.across);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        merged[i] /= count;
        if (whole) merged[i] = (merged[i] + to_float(full.value[i])) * 0.5f;
    }
}

// 1 / length, as torch.nn.functional.normalize: vectors shorter than 1e-12 are divided by that.
__device__ inline float inverse_length(float squares) { return 1.0f / fmaxf(sqrtf(squares), 1e-12f); }

}  // namespace kernels::cuda
