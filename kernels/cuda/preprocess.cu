#include "cuda.hpp"
#include "launch.cuh"
#include "storage.cuh"
#include "tap.cuh"

namespace kernels::cuda {
namespace {

// A warp makes part of one output row: first the bytes of the two photo rows it needs come into shared memory in
// 16-byte loads, then every lane picks its pixels out of them.
constexpr int kLanes = 32, kWarps = 4;
constexpr int kStage = 2560;  // bytes of a photo row a warp can stage: 256 pixels out of 832

// Everything a launch needs. By value: the host's constexpr arrays have no device address.
template <typename T>
struct Job {
    Photo photo;
    CropGeometry geometry;
    Axis down, across;
    std::int32_t crops_per_axis, pixel, channel;  // bytes to the next pixel and the next channel
    float gain[3], offset[3];
    T *image, *crops;
};

// Two rows of the photo, from byte `begin` on.
struct Rows {
    const std::uint8_t *top, *bottom;
    std::int32_t begin;
};

// Bytes [from, to) appear in `stage` at the same distance from a 16-byte boundary; nothing else is read.
__device__ const std::uint8_t* stage_bytes(const std::uint8_t* from, const std::uint8_t* to, std::uint8_t* stage,
                                           int lane) {
    const int shift = static_cast<int>(reinterpret_cast<std::uintptr_t>(from) % kVectorBytes);
    const int length = static_cast<int>(to - from) + shift;
    for (int at = lane * kVectorBytes; at < length; at += kLanes * kVectorBytes) {
        const std::uint8_t* source = from + (at - shift);
        if (at >= shift && at + kVectorBytes <= length)
            *reinterpret_cast<uint4*>(stage + at) = __ldg(reinterpret_cast<const uint4*>(source));
        else
            for (int i = 0; i < kVectorBytes; ++i)
                if (at + i >= shift && at + i < length) stage[at + i] = source[i];
    }
    return stage + shift;
}

// COUNT pixels side by side, as they will be stored.
template <typename T, int COUNT>
__device__ void interpolate(const Job<T>& job, const Rows& rows, const ShortTap& y, int x,
                            Pack<T, COUNT> (&planes)[3]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        const ShortTap tap = tap_at(job.across, x + i);
        const int left = tap.first * job.pixel - rows.begin, right = tap.second * job.pixel - rows.begin;
#pragma unroll
        for (int c = 0; c < 3; ++c) {
            const int l = left + c * job.channel, r = right + c * job.channel;
            const float above = tap.first_weight * rows.top[l] + tap.second_weight * rows.top[r];
            const float below = tap.first_weight * rows.bottom[l] + tap.second_weight * rows.bottom[r];
            const float value = y.first_weight * above + y.second_weight * below;
            planes[c].value[i] = from_float<T>(value * job.gain[c] + job.offset[c]);
        }
    }
}

// One pixel as the weighted mean of all it covers, row by row.
template <typename T>
__device__ void average(const Job<T>& job, const Span& down, const Span& across, Pack<T, 1> (&planes)[3]) {
    float sum[3] = {};
    const std::uint8_t* row = job.photo.data + down.first * job.photo.row_stride + across.first * job.pixel;
    for (int i = 0; i < down.count; ++i, row += job.photo.row_stride) {
        float row_sum[3] = {};
        for (int j = 0; j < across.count; ++j) {
            const float weight = weight_of(across, j);
#pragma unroll
            for (int c = 0; c < 3; ++c) row_sum[c] += weight * row[j * job.pixel + c * job.channel];
        }
        const float weight = weight_of(down, i);
#pragma unroll
        for (int c = 0; c < 3; ++c) sum[c] += weight * row_sum[c];
    }
    const float total = total_weight(down) * total_weight(across);
#pragma unroll
    for (int c = 0; c < 3; ++c) planes[c].value[0] = from_float<T>(sum[c] / total * job.gain[c] + job.offset[c]);
}

// Into the image and every crop that covers these pixels. Crops begin and end at multiples of COUNT.
template <typename T, int COUNT>
__device__ void deliver(const Job<T>& job, std::int64_t y, std::int64_t x, const Pack<T, COUNT> (&planes)[3]) {
    const std::int64_t size = job.geometry.size, crop = job.geometry.crop, stride = job.geometry.stride;
#pragma unroll
    for (int c = 0; c < 3; ++c) store(job.image + (c * size + y) * size + x, planes[c]);
    for (int i = 0; i < job.crops_per_axis; ++i) {
        const std::int64_t row = y - i * stride;
        if (row < 0 || row >= crop) continue;
        for (int j = 0; j < job.crops_per_axis; ++j) {
            const std::int64_t column = x - j * stride;
            if (column < 0 || column >= crop) continue;
            T* corner = job.crops + (i * job.crops_per_axis + j) * 3 * crop * crop + row * crop + column;
#pragma unroll
            for (int c = 0; c < 3; ++c) store(corner + c * crop * crop, planes[c]);
        }
    }
}

template <typename T, int COUNT>
__global__ void __launch_bounds__(kLanes* kWarps) preprocess_kernel(Job<T> job) {
    alignas(kVectorBytes) __shared__ std::uint8_t stage[kWarps][2][kStage];
    constexpr int kPixels = kLanes * COUNT;  // of one warp
    const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes, size = job.across.out;
    const unsigned across = ceil_div(size, kPixels);
    const int y = blockIdx.x / across * kWarps + warp;
    const int begin = blockIdx.x % across * kPixels, x = begin + lane * COUNT;
    if (y >= size) return;  // the whole warp

    const ShortTap rows = tap_at(job.down, y);
    const std::uint8_t* top = job.photo.data + rows.first * job.photo.row_stride;
    const std::uint8_t* bottom = job.photo.data + rows.second * job.photo.row_stride;
    const int last_x = (begin + kPixels < size ? begin + kPixels : size) - 1;
    const int channels = 2 * job.channel;  // from red to blue, which may lie before it
    const int first = tap_at(job.across, begin).first * job.pixel + (channels < 0 ? channels : 0);
    const int end = tap_at(job.across, last_x).second * job.pixel + (channels > 0 ? channels : 0) + 1;

    Pack<T, COUNT> planes[3];
    if (end - first + kVectorBytes <= kStage) {
        const Rows staged = {stage_bytes(top + first, top + end, stage[warp][0], lane),
                             stage_bytes(bottom + first, bottom + end, stage[warp][1], lane), first};
        __syncwarp();
        if (x < size) interpolate(job, staged, rows, x, planes);
    } else if (x < size) {  // a photo this much larger than the image is read where it is
        interpolate(job, Rows{top, bottom, 0}, rows, x, planes);
    }
    if (x < size) deliver(job, y, x, planes);
}

// A thread a pixel. What it reads overlaps with its neighbours' and lies side by side with it: a cache serves most.
template <typename T>
__global__ void __launch_bounds__(kLanes* kWarps) antialias_kernel(Job<T> job) {
    const int size = job.across.out;
    const unsigned across = ceil_div(size, kLanes);
    const int y = blockIdx.x / across * kWarps + threadIdx.x / kLanes;
    const int x = blockIdx.x % across * kLanes + threadIdx.x % kLanes;
    if (y >= size || x >= size) return;
    Pack<T, 1> planes[3];
    average(job, span_at(job.down, y), span_at(job.across, x), planes);
    deliver(job, y, x, planes);
}

}  // namespace

cudaError_t preprocess(const Photo& photo, const CropGeometry& geometry, const PreprocessOptions& options, void* image,
                       void* crops, cudaStream_t stream) {
    return with_element(options.storage, [&](auto* element) {
        using T = std::remove_pointer_t<decltype(element)>;
        const std::int64_t size = geometry.size;
        Job<T> job;
        job.photo = photo;
        job.geometry = geometry;
        job.down = axis_of(photo.height, size);
        job.across = axis_of(photo.width, size);
        job.crops_per_axis = static_cast<std::int32_t>(geometry.crops_per_axis());
        job.pixel = static_cast<std::int32_t>(photo.column_stride);
        job.channel = static_cast<std::int32_t>(photo.channel_stride);
        for (int c = 0; c < 3; ++c) {
            job.gain[c] = kGain[c];
            job.offset[c] = kOffset[c];
        }
        job.image = static_cast<T*>(image);
        job.crops = static_cast<T*>(crops);

        constexpr int kWide = kVector<T>;
        const bool crops_fit = geometry.crop % kWide == 0 && geometry.stride % kWide == 0 && aligned(crops);
        const bool shrinks = photo.height > size || photo.width > size, averages = options.antialias && shrinks;
        const bool fits = aligned(image) && size % kWide == 0 && (geometry.crop == 0 || crops_fit);
        const bool wide = fits && !averages;
        const auto sampling = wide ? preprocess_kernel<T, kWide> : preprocess_kernel<T, 1>;
        const std::int64_t across = ceil_div<std::int64_t>(size, kLanes * (wide ? kWide : 1));
        return launch(averages ? antialias_kernel<T> : sampling, across * ceil_div<std::int64_t>(size, kWarps),
                      kLanes * kWarps, stream, job);
    });
}

}  // namespace kernels::cuda
