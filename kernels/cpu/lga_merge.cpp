#include "lga_merge.hpp"

#include <algorithm>

namespace kernels {
namespace {

// The crops along one axis that cover a cell: first <= crop < last.
struct Range {
    std::int64_t first, last;
};

Range covering(std::int64_t cell, const TokenGrid& tokens) {
    const std::int64_t past_start = cell - tokens.crop_grid;  // crops that start here or earlier have ended
    const std::int64_t first = past_start < 0 ? 0 : past_start / tokens.stride + 1;
    return {first, std::min(cell / tokens.stride + 1, tokens.crops_per_axis)};
}

// `merged` itself is the accumulator: one token (some KB) stays in the first-level cache meanwhile.
void merge_cell(const TokenGrid& tokens, std::int64_t y, std::int64_t x, const float* crops, const float* full,
                float* __restrict merged) {
    const Range down = covering(y, tokens), across = covering(x, tokens);
    bool is_first = true;
    for (std::int64_t i = down.first; i < down.last; ++i) {
        for (std::int64_t j = across.first; j < across.last; ++j) {
            const std::int64_t crop = i * tokens.crops_per_axis + j;
            const std::int64_t row = y - i * tokens.stride, column = x - j * tokens.stride;
            const float* source =
                crops + ((crop * tokens.crop_grid + row) * tokens.crop_grid + column) * tokens.channels;
            if (is_first)
                std::copy(source, source + tokens.channels, merged);
            else
                for (std::int64_t c = 0; c < tokens.channels; ++c) merged[c] += source[c];
            is_first = false;
        }
    }
    const float count = static_cast<float>((down.last - down.first) * (across.last - across.first));
    if (full)
        for (std::int64_t c = 0; c < tokens.channels; ++c) merged[c] = (merged[c] / count + full[c]) * 0.5f;
    else if (count > 1)
        for (std::int64_t c = 0; c < tokens.channels; ++c) merged[c] /= count;
}

}  // namespace

void lga_merge(const TokenGrid& tokens, const float* crops, const float* full, float* merged) {
    const std::int64_t grid = tokens.grid(), cells = grid * grid;
#pragma omp parallel for schedule(static) if (cells * tokens.channels > 1 << 16)
    for (std::int64_t cell = 0; cell < cells; ++cell) {
        const std::int64_t at = cell * tokens.channels;
        merge_cell(tokens, cell / grid, cell % grid, crops, full ? full + at : nullptr, merged + at);
    }
}

}  // namespace kernels
