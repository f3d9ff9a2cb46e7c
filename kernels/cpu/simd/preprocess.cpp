// Two steps a row. Down the columns first, over whole rows of interleaved bytes, which is one stream of loads; then
// across, a pixel's three channels in one register. Four pixels transposed are four values of each plane.
#include "instructions.hpp"
#include "storage.hpp"

namespace kernels {
namespace {

using Pixel = float __attribute__((vector_size(16)));  // three channels and one lane of no meaning

KERNELS_INLINE Floats load_bytes(const std::uint8_t* from) {
#if defined(__AVX512F__)
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif defined(__AVX2__)
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
    return __builtin_convertvector(__builtin_convertvector(load_raw<Bytes>(from), Ints), Floats);
#endif
}

KERNELS_INLINE Pixel interleave_low(Pixel a, Pixel b) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, 0, 4, 1, 5);
#else
    return __builtin_shuffle(a, b, (std::int32_t __attribute__((vector_size(16)))){0, 4, 1, 5});
#endif
}

KERNELS_INLINE Pixel interleave_high(Pixel a, Pixel b) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, 2, 6, 3, 7);
#else
    return __builtin_shuffle(a, b, (std::int32_t __attribute__((vector_size(16)))){2, 6, 3, 7});
#endif
}

// A thread's scratch. `packed` holds two repacked rows of the photo, an even and an odd one.
struct Scratch {
    float *blended, *lines;
    std::uint8_t* packed;
    std::int64_t packed_row[2];

    Scratch(const ResizePlan& plan, unsigned char* memory)
        : blended(reinterpret_cast<float*>(memory)),
          lines(blended + plan.blended_floats),
          packed(reinterpret_cast<std::uint8_t*>(lines + 3 * plan.line_floats)),
          packed_row{-1, -1} {
        for (std::int64_t i = 0; i < plan.blended_floats; ++i) blended[i] = 0.0f;  // beyond the row it stays 0
    }
};

const std::uint8_t* row_of(const ResizePlan& plan, std::int64_t y, Scratch& scratch) {
    const Photo& photo = plan.photo;
    const std::uint8_t* const row = photo.data + y * photo.row_stride;
    if (plan.in_place) return row;
    std::uint8_t* const packed = scratch.packed + (y % 2) * plan.row_bytes;
    if (scratch.packed_row[y % 2] == y) return packed;
    scratch.packed_row[y % 2] = y;
    for (std::int64_t x = 0; x < photo.width; ++x)
        for (int c = 0; c < 3; ++c) packed[3 * x + c] = row[x * photo.column_stride + c * photo.channel_stride];
    return packed;
}

// sum = weight * bytes, or sum + that.
template <bool Add>
void blend_row(const std::uint8_t* bytes, float weight, std::int64_t count, float* sum) {
    std::int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        const Floats value = broadcast(weight) * load_bytes(bytes + i);
        store(sum + i, Add ? load(sum + i) + value : value);
    }
    for (; i < count; ++i) sum[i] = (Add ? sum[i] : 0.0f) + weight * static_cast<float>(bytes[i]);
}

// The photo's next row, `ahead` bytes on, is fetched meanwhile: processors foresee no further than a page.
void blend_two(const std::uint8_t* top, const std::uint8_t* bottom, const float* weights, std::int64_t count,
               std::ptrdiff_t ahead, float* sum) {
    const Floats a = broadcast(weights[0]), b = broadcast(weights[1]);
    std::int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        __builtin_prefetch(bottom + i + ahead);
        store(sum + i, a * load_bytes(top + i) + b * load_bytes(bottom + i));
    }
    for (; i < count; ++i)
        sum[i] = weights[0] * static_cast<float>(top[i]) + weights[1] * static_cast<float>(bottom[i]);
}

void blend(const ResizePlan& plan, std::int64_t y, Scratch& scratch) {
    const std::int64_t first = plan.rows.first[y], count = plan.rows.count[y];
    const std::int64_t bytes = plan.pitch * (plan.photo.width - 1) + 3;
    const float* const weights = plan.rows.weights + y * plan.rows.width;
    if (count == 2) {
        const std::uint8_t* const top = row_of(plan, first, scratch);
        const std::ptrdiff_t ahead = plan.in_place && first + 2 < plan.photo.height ? plan.photo.row_stride : 0;
        return blend_two(top, row_of(plan, first + 1, scratch), weights, bytes, ahead, scratch.blended);
    }
    blend_row<false>(row_of(plan, first, scratch), weights[0], bytes, scratch.blended);
    for (std::int64_t i = 1; i < count; ++i)
        blend_row<true>(row_of(plan, first + i, scratch), weights[i], bytes, scratch.blended);
}

// Width 0: as many columns as the plan says.
template <int Width>
KERNELS_INLINE Pixel pixel_at(const ResizePlan& plan, const float* blended, std::int64_t x) {
    const std::int64_t width = Width ? Width : plan.columns.width;
    const float* const from = blended + plan.columns.first[x];
    const float* const weights = plan.columns.weights + x * width;
    Pixel sum = weights[0] * load_raw<Pixel>(from);
    for (std::int64_t i = 1; i < width; ++i) sum += weights[i] * load_raw<Pixel>(from + i * plan.pitch);
    return sum;
}

template <int Width>
void across(const ResizePlan& plan, Scratch& scratch) {
    float gain[3], offset[3], *line[3];
    for (int c = 0; c < 3; ++c) {
        gain[c] = kGain[plan.plane[c]];
        offset[c] = kOffset[plan.plane[c]];
        line[c] = scratch.lines + plan.plane[c] * plan.line_floats;
    }
    for (std::int64_t x = 0; x < plan.padded_size; x += 4) {
        const Pixel a = pixel_at<Width>(plan, scratch.blended, x), b = pixel_at<Width>(plan, scratch.blended, x + 1);
        const Pixel c = pixel_at<Width>(plan, scratch.blended, x + 2),
                    d = pixel_at<Width>(plan, scratch.blended, x + 3);
        const Pixel ac = interleave_low(a, c), bd = interleave_low(b, d);
        const Pixel last = interleave_low(interleave_high(a, c), interleave_high(b, d));
        store_raw(line[0] + x, interleave_low(ac, bd) * gain[0] + offset[0]);
        store_raw(line[1] + x, interleave_high(ac, bd) * gain[1] + offset[1]);
        store_raw(line[2] + x, last * gain[2] + offset[2]);
    }
}

// The three lines as they will be stored, each where it was: what is written has been read.
template <typename T>
void narrow_lines(const ResizePlan& plan, Scratch& scratch) {
    for (int c = 0; c < 3; ++c) {
        float* const line = scratch.lines + c * plan.line_floats;
        T* const narrowed = reinterpret_cast<T*>(line);
        for (std::int64_t x = 0; x < plan.line_floats; x += kLanes) store(narrowed + x, load(line + x));
    }
}

void round_to_storage(const ResizePlan& plan, Scratch& scratch) {
    if (plan.storage == Storage::float16) narrow_lines<Half>(plan, scratch);
    if (plan.storage == Storage::bfloat16) narrow_lines<Bfloat>(plan, scratch);
}

void copy(const unsigned char* from, std::int64_t bytes, unsigned char* to) {
    if (bytes == 0) return;  // nearly always, at the ends of a streamed row
    __builtin_memcpy(to, from, static_cast<std::size_t>(bytes));
}

void put(const unsigned char* from, std::int64_t bytes, bool streamed, unsigned char* to) {
    if (!streamed) return copy(from, bytes, to);
    constexpr std::int64_t step = sizeof(Floats);
    const Lines lines = whole_lines(to, bytes);
    copy(from, lines.first, to);
    for (std::int64_t i = lines.first; i < lines.last; i += step) stream_raw(to + i, load_raw<Floats>(from + i));
    copy(from + lines.last, bytes - lines.last, to + lines.last);
}

// A finished row goes to the image and to every crop that covers it, while it is still in cache.
void deliver(const ResizePlan& plan, std::int64_t y, const Scratch& scratch) {
    const std::int64_t size = plan.geometry.size, crop = plan.geometry.crop, stride = plan.geometry.stride;
    const std::int64_t per_axis = crop == 0 ? 0 : (size - crop) / stride + 1, element = plan.element;
    const auto line = [&](int c) { return reinterpret_cast<unsigned char*>(scratch.lines + c * plan.line_floats); };
    for (int c = 0; c < 3; ++c) put(line(c), size * element, plan.stream, plan.image + (c * size + y) * size * element);
    for (std::int64_t i = 0; i < per_axis; ++i) {
        const std::int64_t row = y - i * stride;
        if (row < 0 || row >= crop) continue;
        for (std::int64_t j = 0; j < per_axis; ++j)
            for (int c = 0; c < 3; ++c)
                put(line(c) + j * stride * element, crop * element, plan.stream,
                    plan.crops + (((i * per_axis + j) * 3 + c) * crop + row) * crop * element);
    }
}

}  // namespace

void KERNELS_ISA::resize_rows(const ResizePlan& plan, std::int64_t first, std::int64_t last, unsigned char* memory) {
    Scratch scratch(plan, memory);
    for (std::int64_t y = first; y < last; ++y) {
        blend(plan, y, scratch);
        if (plan.columns.width == 2)
            across<2>(plan, scratch);
        else
            across<0>(plan, scratch);
        round_to_storage(plan, scratch);
        deliver(plan, y, scratch);
    }
    streams_done();
}

}  // namespace kernels
