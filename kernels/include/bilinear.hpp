// One axis of torch.nn.functional.interpolate(mode="bilinear", align_corners=False, antialias=False).
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define KERNELS_HOST_DEVICE __host__ __device__
#else
#define KERNELS_HOST_DEVICE
#endif

namespace kernels {

// The two neighbours that an output index reads, and how much of each. `second` == `first` at the far edge.
struct Tap {
    std::int64_t first, second;
    float first_weight, second_weight;
};

KERNELS_HOST_DEVICE inline Tap bilinear_tap(std::int64_t index, std::int64_t in_size, std::int64_t out_size) {
    const float scale = static_cast<float>(in_size) / static_cast<float>(out_size);
    // One rounding, as in torch's own build (it fuses this). Two would move a sample near column 8000 by
    // 5e-4 of a pixel, which a photograph with hard edges shows as 2e-3 after normalisation.
    const float position = fmaxf(fmaf(scale, static_cast<float>(index) + 0.5f, -0.5f), 0.0f);

    Tap tap;
    tap.first = static_cast<std::int64_t>(position);
    if (tap.first > in_size - 1) tap.first = in_size - 1;
    tap.second = tap.first + 1 < in_size ? tap.first + 1 : tap.first;
    tap.second_weight = fminf(position - static_cast<float>(tap.first), 1.0f);
    tap.first_weight = 1.0f - tap.second_weight;
    return tap;
}

}  // namespace kernels
