#include "upsample_argmax.hpp"

#include <algorithm>
#include <limits>

#include "bilinear.hpp"

namespace kernels {
namespace {

// A tile is a few rows of at most kColumns pixels. Its scratch (56 KB) lives on the stack, so that no size
// of picture, and no number of classes, asks for memory.
constexpr std::int64_t kColumns = 1024, kRows = 8;
constexpr std::int64_t kSpan = 2 * kColumns + 2;  // input columns worth blending whole: shrinking at most 2x

struct Columns {
    std::int64_t count, start, span;  // input columns [start, start + span)
    std::int64_t left[kColumns], right[kColumns];
    float left_weight[kColumns], right_weight[kColumns];

    Columns(std::int64_t begin, std::int64_t end, std::int64_t in_width, std::int64_t out_width) : count(end - begin) {
        start = bilinear_tap(begin, in_width, out_width).first;
        span = bilinear_tap(end - 1, in_width, out_width).second + 1 - start;
        for (std::int64_t i = 0; i < count; ++i) {
            const Tap tap = bilinear_tap(begin + i, in_width, out_width);
            left[i] = tap.first - start;
            right[i] = tap.second - start;
            left_weight[i] = tap.first_weight;
            right_weight[i] = tap.second_weight;
        }
    }
};

// One class along one row of the tile. Vertical first, because that half is shared by neighbouring pixels.
void interpolate(const Columns& columns, const float* top, const float* bottom, const Tap& y, float* __restrict value) {
    const float a = y.first_weight, b = y.second_weight;
    if (columns.span <= kSpan) {
        float blended[kSpan];
        for (std::int64_t j = 0; j < columns.span; ++j) blended[j] = a * top[j] + b * bottom[j];
        for (std::int64_t i = 0; i < columns.count; ++i)
            value[i] =
                columns.left_weight[i] * blended[columns.left[i]] + columns.right_weight[i] * blended[columns.right[i]];
    } else {
        for (std::int64_t i = 0; i < columns.count; ++i) {
            const std::int64_t l = columns.left[i], r = columns.right[i];
            value[i] = columns.left_weight[i] * (a * top[l] + b * bottom[l]) +
                       columns.right_weight[i] * (a * top[r] + b * bottom[r]);
        }
    }
}

template <typename Label>
void label_row(const LogitsShape& in, const float* logits, const Columns& columns, const Tap& y, Label* labels,
               float* scores) {
    float value[kColumns], best[kColumns];
    std::int32_t label[kColumns];
    std::fill_n(best, columns.count, std::numeric_limits<float>::quiet_NaN());
    std::fill_n(label, columns.count, 0);

    for (std::int64_t k = 0; k < in.classes; ++k) {
        const float* top = logits + (k * in.height + y.first) * in.width + columns.start;
        const float* bottom = logits + (k * in.height + y.second) * in.width + columns.start;
        interpolate(columns, top, bottom, y, value);
        for (std::int64_t i = 0; i < columns.count; ++i) {
            const bool better = wins(value[i], best[i]);
            best[i] = better ? value[i] : best[i];
            label[i] = better ? static_cast<std::int32_t>(k) : label[i];
        }
    }
    for (std::int64_t i = 0; i < columns.count; ++i) labels[i] = static_cast<Label>(label[i]);
    if (scores) std::copy_n(best, columns.count, scores);
}

}  // namespace

template <typename Label>
void upsample_argmax(const LogitsShape& in, const float* logits, const LabelShape& out, Label* labels, float* scores) {
    const std::int64_t across = (out.width + kColumns - 1) / kColumns, down = (out.height + kRows - 1) / kRows;
    // Every pixel is computed on its own: the result cannot depend on how tiles fall to threads.
#pragma omp parallel for schedule(static) if (in.classes * out.height * out.width > 1 << 18)
    for (std::int64_t tile = 0; tile < across * down; ++tile) {
        const std::int64_t x = tile % across * kColumns, y_begin = tile / across * kRows;
        const Columns columns(x, std::min(x + kColumns, out.width), in.width, out.width);
        for (std::int64_t y = y_begin; y < std::min(y_begin + kRows, out.height); ++y) {
            const std::int64_t at = y * out.width + x;
            label_row(in, logits, columns, bilinear_tap(y, in.height, out.height), labels + at,
                      scores ? scores + at : nullptr);
        }
    }
}

template void upsample_argmax(const LogitsShape&, const float*, const LabelShape&, std::uint8_t*, float*);
template void upsample_argmax(const LogitsShape&, const float*, const LabelShape&, std::uint16_t*, float*);

}  // namespace kernels
