// Photo -> normalised network input and its crops, in one pass over the output.
#pragma once

#include <cstddef>
#include <cstdint>

#include "storage.hpp"

namespace kernels {

// uint8 pixels anywhere in memory. Strides are in bytes and may be negative: a BGR photo is an RGB photo
// whose `data` points at the last channel and whose `channel_stride` is -1.
struct Photo {
    const std::uint8_t* data;
    std::int64_t height, width;
    std::ptrdiff_t row_stride, column_stride, channel_stride;
};

// Pixels. `crop` 0: no crops. Otherwise (size - crop) is a multiple of `stride`.
struct CropGeometry {
    std::int64_t size, crop, stride;

    std::int64_t crops_per_axis() const { return crop == 0 ? 0 : (size - crop) / stride + 1; }
};

// The statistics shared by DINOv3 (LVD), AnyUp and SAM, folded for values 0..255: out = value * gain +
// offset.
constexpr float kGain[3] = {1.0f / (255.0f * 0.229f), 1.0f / (255.0f * 0.224f), 1.0f / (255.0f * 0.225f)};
constexpr float kOffset[3] = {-0.485f / 0.229f, -0.456f / 0.224f, -0.406f / 0.225f};

// `antialias`: where the photo is larger than the image, every pixel is the mean of all it covers, weighted by a
// triangle.
struct PreprocessOptions {
    Storage storage;
    bool antialias;
};

// image (3, size, size); crops (crops_per_axis^2, 3, crop, crop), row-major with y outer; both of `storage`.
// A thread's scratch: at most 18 bytes a photo column and 12 an image column.
void preprocess(const Photo& photo, const CropGeometry& geometry, const PreprocessOptions& options, void* image,
                void* crops);

}  // namespace kernels
