// What Python passes, addresses and numbers, as the structs that the kernels take.
#pragma once

#include "cuda.hpp"

namespace kernels::cuda {

using Address = std::uintptr_t;

template <typename T = void>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

// `photo` is the address of the first pixel's red; `pitch`, `pixel` and `channel` are bytes to the next row, column
// and channel.
inline cudaError_t call_preprocess(Address photo, std::int64_t height, std::int64_t width, std::int64_t pitch,
                                   int pixel, int channel, std::int64_t size, std::int64_t crop, std::int64_t stride,
                                   bool antialias, int storage, Address image, Address crops, Address stream) {
    const Photo source{at<const std::uint8_t>(photo), height, width, pitch, pixel, channel};
    return preprocess(source, {size, crop, stride}, {static_cast<Storage>(storage), antialias}, at(image), at(crops),
                      at<CUstream_st>(stream));
}

inline cudaError_t call_lga_merge(Address crops, Address full, std::int64_t crops_per_axis, std::int64_t crop_grid,
                                  std::int64_t stride, std::int64_t channels, int storage, bool normalize,
                                  bool channels_first, Address merged, Address stream) {
    return lga_merge({crops_per_axis, crop_grid, stride, channels},
                     {static_cast<Storage>(storage), normalize, channels_first}, at(crops), at(full), at(merged),
                     at<CUstream_st>(stream));
}

// Strides are in elements. `label_bytes` is 1 or 2.
inline cudaError_t call_upsample_argmax(Address logits, std::int64_t classes, std::int64_t height, std::int64_t width,
                                        std::int64_t class_stride, std::int64_t row_stride, int storage,
                                        std::int64_t out_height, std::int64_t out_width, int label_bytes,
                                        Address labels, Address scores, bool prune, Address stream) {
    const Logits source{{classes, height, width}, static_cast<Storage>(storage), at(logits), class_stride, row_stride};
    const LabelMap out{{out_height, out_width}, label_bytes, at(labels), at<float>(scores)};
    return upsample_argmax(source, out, prune, at<CUstream_st>(stream));
}

}  // namespace kernels::cuda
