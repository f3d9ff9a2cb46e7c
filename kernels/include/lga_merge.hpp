// Local-global aggregation: overlapping crop features and the whole-image features become one grid.
#pragma once

#include <cstdint>

namespace kernels {

// Tokens. Crop (y, x) covers cells [y*stride, y*stride + crop_grid) by [x*stride, x*stride + crop_grid).
struct TokenGrid {
    std::int64_t crops_per_axis, crop_grid, stride, channels;

    std::int64_t grid() const { return crop_grid + (crops_per_axis - 1) * stride; }
};

// merged = (sum of covering crops / count + full) / 2, or without the last step where `full` is null.
// crops (crops_per_axis^2, crop_grid^2, channels); full and merged (grid^2, channels).
void lga_merge(const TokenGrid& tokens, const float* crops, const float* full, float* merged);

}  // namespace kernels
