// One output pixel of upsample_argmax, class by class.
#pragma once

#include <cmath>

#include "storage.cuh"
#include "tap.cuh"
#include "upsample_argmax.hpp"

namespace kernels::cuda {

// kernels::Logits with its type.
template <typename T>
struct Planes {
    const T* data;
    std::int32_t classes;
    std::int64_t class_stride, row_stride;
};

// From the logits' size to the labels'.
struct Resize {
    Axis down, across;
};

struct Winner {
    float value = NAN;
    std::int32_t label = 0;
};

// Where a pixel lies in every class's plane. The reference's order of operations: vertical first.
struct Sample {
    std::int64_t top_left, top_right, bottom_left, bottom_right;
    float top_weight, bottom_weight, left_weight, right_weight;
};

__device__ inline Sample sample_at(const ShortTap& y, const ShortTap& x, std::int64_t row_stride) {
    return {y.first * row_stride + x.first,
            y.first * row_stride + x.second,
            y.second * row_stride + x.first,
            y.second * row_stride + x.second,
            y.first_weight,
            y.second_weight,
            x.first_weight,
            x.second_weight};
}

// Classes [begin, end), which must follow those already seen: of equal values the first one stays.
template <typename T>
__device__ inline void try_classes(const Planes<T>& in, const Sample& at, std::int32_t begin, std::int32_t end,
                                   Winner& winner) {
    const T* plane = in.data + begin * in.class_stride;
#pragma unroll 4
    for (std::int32_t k = begin; k < end; ++k, plane += in.class_stride) {
        const float left =
            at.top_weight * to_float(plane[at.top_left]) + at.bottom_weight * to_float(plane[at.bottom_left]);
        const float right =
            at.top_weight * to_float(plane[at.top_right]) + at.bottom_weight * to_float(plane[at.bottom_right]);
        const float value = at.left_weight * left + at.right_weight * right;
        if (wins(value, winner.value)) {
            winner.value = value;
            winner.label = k;
        }
    }
}

__device__ inline void write(const LabelMap& out, std::int64_t pixel, const Winner& winner) {
    if (out.label_bytes == 1)
        static_cast<std::uint8_t*>(out.labels)[pixel] = static_cast<std::uint8_t>(winner.label);
    else
        static_cast<std::uint16_t*>(out.labels)[pixel] = static_cast<std::uint16_t>(winner.label);
    if (out.scores) out.scores[pixel] = winner.value;
}

}  // namespace kernels::cuda
