// Local-global aggregation: overlapping crop features and the whole-image features become one grid.
#pragma once

#include <cstdint>

#include "storage.hpp"

namespace kernels {

// Tokens. Crop (y, x) covers cells [y*stride, y*stride + crop_grid) by [x*stride, x*stride + crop_grid).
struct TokenGrid {
    std::int64_t crops_per_axis, crop_grid, stride, channels;

    std::int64_t grid() const { return crop_grid + (crops_per_axis - 1) * stride; }
};

// `normalize`: every token of the result is divided by its length, as torch.nn.functional.normalize does.
// `channels_first`: the result is (channels, grid^2) instead of (grid^2, channels).
struct MergeOptions {
    Storage storage;
    bool normalize, channels_first;
};

// A thread's scratch is at most 128 KB, however many channels there are.
// merged = (sum of covering crops / count + full) / 2, or without the last step where `full` is null.
// crops (crops_per_axis^2, crop_grid^2, channels); full (grid^2, channels); all three of the same storage.
void lga_merge(const TokenGrid& tokens, const MergeOptions& options, const void* crops, const void* full, void* merged);

}  // namespace kernels
