#include "preprocess.hpp"

#include <cmath>
#include <vector>

#include "bilinear.hpp"
#include "dispatch.hpp"
#include "parallel.hpp"

namespace kernels {
namespace {

constexpr std::int64_t kRowsAPart = 16;

struct Axis {
    std::int64_t width;
    std::vector<std::int64_t> first, count;
    std::vector<float> weights;

    ResizeAxis view() const { return {width, first.data(), count.data(), weights.data()}; }

    void pad_to(std::int64_t size) {  // with pixels that read the first column and weigh nothing
        first.resize(size);
        count.resize(size);
        weights.resize(size * width);
    }
};

Axis two_taps(std::int64_t in_size, std::int64_t out_size) {
    Axis axis{2, {}, {}, {}};
    for (std::int64_t i = 0; i < out_size; ++i) {
        const Tap tap = bilinear_tap(i, in_size, out_size);
        const bool is_edge = tap.second == tap.first;
        axis.first.push_back(tap.first);
        axis.count.push_back(is_edge ? 1 : 2);
        axis.weights.push_back(is_edge ? 1.0f : tap.first_weight);
        axis.weights.push_back(is_edge ? 0.0f : tap.second_weight);
    }
    return axis;
}

// torch's antialias=True where the input is larger: a triangle that reaches one output pixel to either side. All
// `width` inputs lie within the photo: near its end they begin with some that weigh nothing.
Axis triangles(std::int64_t in_size, std::int64_t out_size) {
    const double scale = static_cast<double>(in_size) / static_cast<double>(out_size);
    Axis axis{std::min(2 * static_cast<std::int64_t>(std::ceil(scale)) + 1, in_size), {}, {}, {}};
    axis.weights.resize(out_size * axis.width);
    for (std::int64_t i = 0; i < out_size; ++i) {
        const double centre = scale * (static_cast<double>(i) + 0.5);
        const std::int64_t first = std::max<std::int64_t>(static_cast<std::int64_t>(centre - scale + 0.5), 0);
        const std::int64_t last = std::min(static_cast<std::int64_t>(centre + scale + 0.5), in_size);
        const auto weight = [&](std::int64_t j) {
            return std::max(0.0, 1.0 - std::abs(static_cast<double>(j) + 0.5 - centre) / scale);
        };
        double total = 0.0;
        for (std::int64_t j = first; j < last; ++j) total += weight(j);
        const std::int64_t begin = std::min(first, in_size - axis.width);
        for (std::int64_t j = first; j < last; ++j)
            axis.weights[i * axis.width + j - begin] = static_cast<float>(weight(j) / total);
        axis.first.push_back(begin);
        axis.count.push_back(last - begin);
    }
    return axis;
}

Axis axis_of(std::int64_t in_size, std::int64_t out_size, bool antialias) {
    return antialias && in_size > out_size ? triangles(in_size, out_size) : two_taps(in_size, out_size);
}

// RGB and BGR, also as part of RGBA, are read where they lie.
void describe_pixels(ResizePlan& plan) {
    Photo& photo = plan.photo;
    const bool reversed = photo.channel_stride == -1;
    plan.in_place = (photo.channel_stride == 1 || reversed) && (photo.column_stride == 3 || photo.column_stride == 4);
    plan.pitch = plan.in_place ? photo.column_stride : 3;
    for (int c = 0; c < 3; ++c) plan.plane[c] = plan.in_place && reversed ? 2 - c : c;
    if (plan.in_place && reversed) photo.data -= 2;
}

}  // namespace

void preprocess(const Photo& photo, const CropGeometry& geometry, const PreprocessOptions& options, void* image,
                void* crops) {
    const std::int64_t size = geometry.size, padded = (size + 3) / 4 * 4;
    const Axis rows = axis_of(photo.height, size, options.antialias);
    Axis columns = axis_of(photo.width, size, options.antialias);
    columns.pad_to(padded);

    ResizePlan plan{};
    plan.photo = photo;
    plan.geometry = geometry;
    plan.rows = rows.view();
    plan.columns = columns.view();
    plan.padded_size = padded;
    plan.storage = options.storage;
    plan.element = options.storage == Storage::float32 ? 4 : 2;
    plan.image = static_cast<unsigned char*>(image);
    plan.crops = static_cast<unsigned char*>(crops);
    describe_pixels(plan);
    for (std::int64_t& first : columns.first) first *= plan.pitch;
    const std::int64_t pixels =
        size * size + geometry.crops_per_axis() * geometry.crops_per_axis() * geometry.crop * geometry.crop;
    plan.stream = pixels * 3 * plan.element >= kWorthStreaming;
    plan.blended_floats = plan.pitch * (photo.width + 1) + 4;  // the last pixel may read one column beyond
    plan.line_floats = (size + kMostLanes - 1) / kMostLanes * kMostLanes;
    plan.row_bytes = plan.in_place ? 0 : 3 * photo.width;

    const Instructions& chosen = instructions();
    const std::int64_t scratch = 4 * (plan.blended_floats + 3 * plan.line_floats) + 2 * plan.row_bytes;
    const double nanoseconds = static_cast<double>(size) * (static_cast<double>(photo.width) + 2.0 * size);
    for_parts<unsigned char>(size, kRowsAPart, nanoseconds, scratch,
                             [&](std::int64_t first, std::int64_t last, unsigned char* memory) {
                                 chosen.resize_rows(plan, first, last, memory);
                             });
}

}  // namespace kernels
