#include "bilinear.hpp"
#include "cuda.hpp"

namespace kernels::cuda {
namespace {

struct Normalisation {
    float gain[3], offset[3];  // by value: the host's constexpr arrays have no device address
};

// One thread a pixel: neighbouring threads write neighbouring floats of each plane.
__global__ void preprocess_kernel(Photo photo, CropGeometry geometry, std::int64_t per_axis, Normalisation norm,
                                  float* __restrict__ image, float* __restrict__ crops) {
    const std::int64_t size = geometry.size, crop = geometry.crop, stride = geometry.stride;
    const std::int64_t pixel = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (pixel >= size * size) return;
    const std::int64_t y = pixel / size, x = pixel % size;
    const Tap v = bilinear_tap(y, photo.height, size), h = bilinear_tap(x, photo.width, size);

    for (int c = 0; c < 3; ++c) {
        const std::uint8_t* top = photo.data + v.first * photo.row_stride + c * photo.channel_stride;
        const std::uint8_t* bottom = photo.data + v.second * photo.row_stride + c * photo.channel_stride;
        const std::int64_t left = h.first * photo.column_stride, right = h.second * photo.column_stride;
        const float above = h.first_weight * top[left] + h.second_weight * top[right];
        const float below = h.first_weight * bottom[left] + h.second_weight * bottom[right];
        const float value = (v.first_weight * above + v.second_weight * below) * norm.gain[c] + norm.offset[c];

        image[c * size * size + pixel] = value;
        for (std::int64_t i = 0; i < per_axis; ++i) {
            const std::int64_t row = y - i * stride;
            if (row < 0 || row >= crop) continue;
            for (std::int64_t j = 0; j < per_axis; ++j) {
                const std::int64_t column = x - j * stride;
                if (column < 0 || column >= crop) continue;
                crops[(((i * per_axis + j) * 3 + c) * crop + row) * crop + column] = value;
            }
        }
    }
}

}  // namespace

cudaError_t preprocess(const Photo& photo, const CropGeometry& geometry, float* image, float* crops,
                       cudaStream_t stream) {
    Normalisation norm;
    for (int c = 0; c < 3; ++c) {
        norm.gain[c] = kGain[c];
        norm.offset[c] = kOffset[c];
    }
    preprocess_kernel<<<blocks_for(geometry.size * geometry.size), kThreads, 0, stream>>>(
        photo, geometry, geometry.crops_per_axis(), norm, image, crops);
    return cudaGetLastError();
}

}  // namespace kernels::cuda
