// Class logits -> label map at the photo's size, without ever holding the upsampled logits.
#pragma once

#include <cstdint>

#include "bilinear.hpp"
#include "storage.hpp"

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

// Logits somewhere in memory: columns side by side, rows and classes `row_stride` and `class_stride` elements
// apart, which covers (classes, height, width) and the strip-major (height, classes, width).
struct Logits {
    LogitsShape shape;
    Storage storage;
    const void* data;
    std::int64_t class_stride, row_stride;
};

// Where the result goes: labels (height, width) of `label_bytes` each, 1 (at most 255 classes: 255 means "no
// class") or 2 (at most 65535), and scores (height, width), or null if not wanted.
struct LabelMap {
    LabelShape shape;
    int label_bytes;
    void* labels;
    float* scores;
};

// `prune` false computes every class at every pixel. The result is the same.
void upsample_argmax(const Logits& logits, const LabelMap& out, bool prune = true);

}  // namespace kernels
