// Class logits -> label map at the photo's size, without ever holding the upsampled logits.
#pragma once

#include <cstdint>

#include "bilinear.hpp"

namespace kernels {

struct LogitsShape {
    std::int64_t classes, height, width;
};

struct LabelShape {
    std::int64_t height, width;
};

// A class takes the pixel over if it beats the best so far; NaN never does, and anything beats NaN.
// Written so that `best` may start as NaN and equal values leave the lower class in place.
KERNELS_HOST_DEVICE inline bool wins(float value, float best) { return !(value <= best) & (value == value); }

// logits (classes, height, width); labels (height, width); scores the same, or null if not wanted.
// Label is uint8 (at most 255 classes: 255 means "no class") or uint16 (at most 65535).
template <typename Label>
void upsample_argmax(const LogitsShape& in, const float* logits, const LabelShape& out, Label* labels, float* scores);

}  // namespace kernels
