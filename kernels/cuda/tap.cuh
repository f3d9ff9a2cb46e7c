// kernels::bilinear_tap in 32-bit integers and without its division: GPUs are slow at 64-bit ones and at converting
// them, and every pixel needs two.
#pragma once

#include <cmath>
#include <cstdint>

#include "bilinear.hpp"

namespace kernels::cuda {

// One axis of a resize.
struct Axis {
    std::int32_t in, out;
    float scale;
};

inline Axis axis_of(std::int64_t in, std::int64_t out) {
    return {static_cast<std::int32_t>(in), static_cast<std::int32_t>(out),
            static_cast<float>(in) / static_cast<float>(out)};
}

struct ShortTap {
    std::int32_t first, second;
    float first_weight, second_weight;
};

KERNELS_HOST_DEVICE inline ShortTap tap_at(const Axis& axis, std::int32_t index) {
    const float position = fmaxf(fmaf(axis.scale, static_cast<float>(index) + 0.5f, -0.5f), 0.0f);
    const float last = static_cast<float>(axis.in - 1);  // compared as floats: it may round up to 2^31
    ShortTap tap;
    tap.first = position < last ? static_cast<std::int32_t>(position) : axis.in - 1;
    tap.second = tap.first + 1 < axis.in ? tap.first + 1 : tap.first;
    tap.second_weight = fminf(position - static_cast<float>(tap.first), 1.0f);
    tap.first_weight = 1.0f - tap.second_weight;
    return tap;
}

// The first output index whose left (or upper) neighbour is `cell` or a later one; `axis.out` if there is none.
KERNELS_HOST_DEVICE inline std::int32_t first_output(const Axis& axis, std::int32_t cell) {
    if (cell <= 0) return 0;
    if (cell >= axis.in) return axis.out;
    const float near = (static_cast<float>(cell) + 0.5f) / axis.scale - 0.5f;  // right up to rounding
    std::int32_t index = near < static_cast<float>(axis.out) ? static_cast<std::int32_t>(near) : axis.out;
    while (index > 0 && tap_at(axis, index - 1).first >= cell) --index;
    while (index < axis.out && tap_at(axis, index).first < cell) ++index;
    return index;
}

}  // namespace kernels::cuda
