#include "preprocess.hpp"

#include <cstring>
#include <vector>

#include "bilinear.hpp"

namespace kernels {
namespace {

// The horizontal half of the interpolation is the same in every row: computed once.
struct Column {
    std::ptrdiff_t left, right;  // bytes from the start of a row
    float left_weight, right_weight;
};

std::vector<Column> columns_of(const Photo& photo, std::int64_t size) {
    std::vector<Column> columns(static_cast<std::size_t>(size));
    for (std::int64_t x = 0; x < size; ++x) {
        const Tap tap = bilinear_tap(x, photo.width, size);
        columns[x] = {tap.first * photo.column_stride, tap.second * photo.column_stride, tap.first_weight,
                      tap.second_weight};
    }
    return columns;
}

void normalised_row(const Photo& photo, const std::vector<Column>& columns, const Tap& y, float* const rows[3]) {
    const std::uint8_t* top = photo.data + y.first * photo.row_stride;
    const std::uint8_t* bottom = photo.data + y.second * photo.row_stride;
    const std::int64_t size = static_cast<std::int64_t>(columns.size());
    for (std::int64_t x = 0; x < size; ++x) {
        const Column& column = columns[x];
        for (int c = 0; c < 3; ++c) {
            const std::uint8_t* t = top + c * photo.channel_stride;
            const std::uint8_t* b = bottom + c * photo.channel_stride;
            const float above = column.left_weight * t[column.left] + column.right_weight * t[column.right];
            const float below = column.left_weight * b[column.left] + column.right_weight * b[column.right];
            rows[c][x] = (y.first_weight * above + y.second_weight * below) * kGain[c] + kOffset[c];
        }
    }
}

// Copies one finished image row into every crop that covers it, while the row is still in cache.
void copy_to_crops(const CropGeometry& geometry, std::int64_t y, const float* const rows[3], float* crops) {
    const std::int64_t per_axis = geometry.crops_per_axis(), crop = geometry.crop;
    for (std::int64_t i = 0; i < per_axis; ++i) {
        const std::int64_t row = y - i * geometry.stride;
        if (row < 0 || row >= crop) continue;
        for (std::int64_t j = 0; j < per_axis; ++j)
            for (int c = 0; c < 3; ++c)
                std::memcpy(crops + (((i * per_axis + j) * 3 + c) * crop + row) * crop, rows[c] + j * geometry.stride,
                            static_cast<std::size_t>(crop) * sizeof(float));
    }
}

}  // namespace

void preprocess(const Photo& photo, const CropGeometry& geometry, float* image, float* crops) {
    const std::int64_t size = geometry.size;
    const std::vector<Column> columns = columns_of(photo, size);
#pragma omp parallel for schedule(static) if (size * size > 128 * 128)
    for (std::int64_t y = 0; y < size; ++y) {
        float* const rows[3] = {image + y * size, image + (size + y) * size, image + (2 * size + y) * size};
        normalised_row(photo, columns, bilinear_tap(y, photo.height, size), rows);
        copy_to_crops(geometry, y, rows, crops);
    }
}

}  // namespace kernels
