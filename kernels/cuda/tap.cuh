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

// What an output index averages (antialias=True): inputs first to first + count, weighted by a triangle with its peak
// `peak` inputs after the first one. An axis that does not shrink has its two taps, which are such a triangle too.
struct Span {
    std::int32_t first, count;
    float peak, slope;
};

KERNELS_HOST_DEVICE inline Span span_at(const Axis& axis, std::int32_t index) {
    if (axis.in <= axis.out) {
        const ShortTap tap = tap_at(axis, index);
        const bool is_edge = tap.second == tap.first;
        return {tap.first, is_edge ? 1 : 2, is_edge ? 0.0f : tap.second_weight, 1.0f};
    }
    // In float64: float32 would move the triangle by 1e-3 of a pixel near column 16,000.
    const double scale = static_cast<double>(axis.in) / static_cast<double>(axis.out);
    const double centre = scale * (static_cast<double>(index) + 0.5);
    const std::int32_t first = static_cast<std::int32_t>(fmax(centre - scale + 0.5, 0.0));
    const std::int32_t last = static_cast<std::int32_t>(fmin(centre + scale + 0.5, static_cast<double>(axis.in)));
    return {first, last - first, static_cast<float>(centre - 0.5 - static_cast<double>(first)),
            1.0f / static_cast<float>(scale)};
}

// Not normalised: a pixel divides by the sum of its weights.
KERNELS_HOST_DEVICE inline float weight_of(const Span& span, std::int32_t at) {
    return 1.0f - fabsf(static_cast<float>(at) - span.peak) * span.slope;
}

// The sum of a span's weights, which rise evenly up to the peak and fall after it: so many times their mean. Added up
// one by one, a thousand of them round the same way and are wrong by 1e-5.
KERNELS_HOST_DEVICE inline float total_weight(const Span& span) {
    const float count = static_cast<float>(span.count), rising = floorf(span.peak) + 1.0f, falling = count - rising;
    const float up = 1.0f - (span.peak - 0.5f * (rising - 1.0f)) * span.slope;
    const float down = 1.0f - (0.5f * (rising + count - 1.0f) - span.peak) * span.slope;
    return rising * up + falling * down;
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
