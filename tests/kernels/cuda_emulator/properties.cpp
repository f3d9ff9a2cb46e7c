// What exact pruning and the 32-bit index arithmetic claim, tried out. Each check returns the number of violations.
#include <random>

#include "cell_bounds.cuh"
#include "tap.cuh"

using namespace kernels::cuda;

// tap_at equals bilinear_tap, and first_output splits the output indices by cell.
extern "C" int check_axis(int in, int out) {
    const Axis axis = axis_of(in, out);
    int wrong = 0, cell = 0;
    for (int index = 0; index < out; ++index) {
        const kernels::Tap wide = kernels::bilinear_tap(index, in, out);
        const ShortTap tap = tap_at(axis, index);
        wrong += tap.first != wide.first || tap.second != wide.second || tap.first_weight != wide.first_weight ||
                 tap.second_weight != wide.second_weight;
        for (; cell <= tap.first; ++cell) wrong += first_output(axis, cell) != index;
    }
    for (; cell <= in + 3; ++cell) wrong += first_output(axis, cell) != out;
    return wrong;
}

// A class with corners of about `scale`, spread by `spread`, never leaves its bounds, at any weights.
extern "C" int check_bounds(int trials, float scale, float spread, unsigned seed) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> unit(0.0f, 1.0f);
    std::uniform_int_distribution<int> special(0, 5);
    int wrong = 0;
    for (int trial = 0; trial < trials; ++trial) {
        const float centre = scale * (2.0f * unit(random) - 1.0f);
        float corner[4];
        for (float& value : corner) value = centre + spread * scale * (2.0f * unit(random) - 1.0f);
        const auto weight = [&] {
            switch (special(random)) {
                case 0:
                    return 0.0f;
                case 1:
                    return 1e-9f;  // 1 - it rounds to 1: the weights then sum to more than 1
                case 2:
                    return 1.0f - unit(random) * 1e-6f;
                default:
                    return unit(random);
            }
        };
        const float y = weight(), x = weight();
        const float left = (1.0f - y) * corner[0] + y * corner[2], right = (1.0f - y) * corner[1] + y * corner[3];
        const float value = (1.0f - x) * left + x * right;
        const float least = fminf(fminf(corner[0], corner[1]), fminf(corner[2], corner[3]));
        const float most = fmaxf(fmaxf(corner[0], corner[1]), fmaxf(corner[2], corner[3]));
        const Bounds bounds = cell_bounds(least, most, (corner[0] + corner[2]) + (corner[1] + corner[3]));
        wrong += value < bounds.lower || value > bounds.upper;  // lower may be NaN: sure of nothing
    }
    return wrong;
}
