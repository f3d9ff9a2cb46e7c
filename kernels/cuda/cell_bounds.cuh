// The arithmetic that exact pruning rests on, in plain C++ so that the CPU can test it.
#pragma once

#include <cmath>

#include "bilinear.hpp"

namespace kernels::cuda {

// What one class can reach between the four corners of a cell, rounding included.
struct Bounds {
    float lower, upper;
};

// `least`, `most` and `sum` of the four corners. A blend of four values with rounded weights leaves [least, most] by
// at most 7 roundings (2^-24 of the largest magnitude each, or the smallest denormal); 16 are allowed for.
//   lower: NaN where a corner is not finite, because such a class is sure of nothing.
//   upper: never below any value the class takes. NaN where all corners are NaN or -inf; -inf does for those.
KERNELS_HOST_DEVICE inline Bounds cell_bounds(float least, float most, float sum) {
    constexpr float kRounding = 1.0f / (1 << 20), kDenormals = 1e-37f;
    const float magnitude = fabsf(least) + fabsf(most) + kDenormals;
    Bounds bounds;
    bounds.lower = fmaf(0.0f, sum, fmaf(-kRounding, magnitude, least));
    bounds.upper = fmaf(kRounding, magnitude, most);
    return bounds;
}

}  // namespace kernels::cuda
