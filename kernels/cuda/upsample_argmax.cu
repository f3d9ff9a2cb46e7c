#include "cell_bounds.cuh"
#include "cuda.hpp"
#include "launch.cuh"
#include "pixel.cuh"

namespace kernels::cuda {
namespace {

constexpr int kWarp = 32, kThreads = 256, kWarps = kThreads / kWarp;

// ---- every class at every pixel: a warp's lanes are pixels, its warps share the classes
template <typename T>
__global__ void __launch_bounds__(kThreads, 2) direct_kernel(Planes<T> in, Resize resize, LabelMap out) {
    __shared__ float values[kWarps][kWarp];
    __shared__ std::int32_t labels[kWarps][kWarp];
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const std::int64_t pixels = out.shape.height * out.shape.width;
    const std::int64_t wanted = static_cast<std::int64_t>(blockIdx.x) * kWarp + lane;
    const std::int64_t pixel = wanted < pixels ? wanted : pixels - 1;

    const ShortTap y = tap_at(resize.down, static_cast<std::int32_t>(pixel / resize.across.out));
    const ShortTap x = tap_at(resize.across, static_cast<std::int32_t>(pixel % resize.across.out));
    Winner mine;
    try_classes(in, sample_at(y, x, in.row_stride), in.classes * warp / kWarps, in.classes * (warp + 1) / kWarps, mine);
    values[warp][lane] = mine.value;
    labels[warp][lane] = mine.label;
    __syncthreads();
    if (warp > 0 || wanted >= pixels) return;
    for (int other = 1; other < kWarps; ++other) {  // later warps have later classes: of equal values the first stays
        if (!wins(values[other][lane], mine.value)) continue;
        mine.value = values[other][lane];
        mine.label = labels[other][lane];
    }
    write(out, pixel, mine);
}

// ---- exact pruning. The classes fall into up to 64 groups of consecutive ones. A block looks once at the logits of
// its cells and keeps, by cell, the most that each group can reach and the most that some class is sure to reach;
// only groups that reach as far are computed at the cell's pixels. If all do, this is the direct kernel again.
constexpr int kGroups = 64;                        // a bit mask's worth
constexpr int kChunksAcross = 4, kChunksDown = 4;  // a chunk: the cells of one vector load
constexpr int kChunks = kChunksAcross * kChunksDown;
constexpr int kSegments = kThreads / kChunks;  // threads that share the groups of one chunk

template <typename T>
struct Tile {
    static constexpr int kAcross = kChunksAcross * kVector<T>, kCells = kAcross * kChunksDown;
    float upper[kGroups][kCells];  // 32 KB of 16-bit logits' cells, 16 KB of float32's
    float lower[kSegments][kCells];
    unsigned long long groups[kCells];
};

// A row's COUNT logits from `column` on and the next one; beyond the row its last one again.
template <typename T, bool ALIGNED, int COUNT>
__device__ void load_row(const T* row, int column, int width, float (&values)[COUNT + 1]) {
    const auto inside = [&](int i) { return i < width ? i : width - 1; };
    if constexpr (ALIGNED) {  // rows are whole vectors long
        const Pack<T, COUNT> pack = load<T, COUNT>(row + column);
#pragma unroll
        for (int i = 0; i < COUNT; ++i) values[i] = to_float(pack.value[i]);
        values[COUNT] = to_float(row[inside(column + COUNT)]);
    } else {
#pragma unroll
        for (int i = 0; i <= COUNT; ++i) values[i] = to_float(row[inside(column + i)]);
    }
}

// One class at the COUNT cells between two rows.
template <int COUNT>
__device__ void bound_cells(const float (&top)[COUNT + 1], const float (&bottom)[COUNT + 1], float (&lower)[COUNT],
                            float (&upper)[COUNT]) {
    float least = fminf(top[0], bottom[0]), most = fmaxf(top[0], bottom[0]), sum = top[0] + bottom[0];
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        const float next_least = fminf(top[i + 1], bottom[i + 1]), next_most = fmaxf(top[i + 1], bottom[i + 1]);
        const float next_sum = top[i + 1] + bottom[i + 1];
        const Bounds bounds = cell_bounds(fminf(least, next_least), fmaxf(most, next_most), sum + next_sum);
        lower[i] = fmaxf(lower[i], bounds.lower);  // both start as -inf, and fmaxf passes over NaN
        upper[i] = fmaxf(upper[i], bounds.upper);
        least = next_least, most = next_most, sum = next_sum;
    }
}

// The one pass over the logits.
template <typename T, bool ALIGNED>
__device__ void bound_groups(const Planes<T>& in, int height, int width, int first_row, int first_column,
                             int group_size, Tile<T>& tile) {
    constexpr int kCount = kVector<T>;
    const int chunk = threadIdx.x % kChunks, segment = threadIdx.x / kChunks;
    const auto within = [](int at, int last) { return at < last ? at : last; };
    // Past the last row or chunk the last one is looked at again; nobody reads what comes of it.
    const int row = within(first_row + chunk / kChunksAcross, height - 1), below = within(row + 1, height - 1);
    const int column = within(first_column + chunk % kChunksAcross * kCount, (width - 1) / kCount * kCount);
    const int cell = chunk / kChunksAcross * Tile<T>::kAcross + chunk % kChunksAcross * kCount;

    float lower[kCount];
    for (int i = 0; i < kCount; ++i) lower[i] = -INFINITY;
    for (int group = segment; group * group_size < in.classes; group += kSegments) {
        float upper[kCount];
        for (int i = 0; i < kCount; ++i) upper[i] = -INFINITY;
        const int begin = group * group_size, end = within(begin + group_size, in.classes);
        const T* plane = in.data + begin * in.class_stride;
#pragma unroll(ALIGNED ? 2 : 1)
        for (int k = begin; k < end; ++k, plane += in.class_stride) {
            float top[kCount + 1], bottom[kCount + 1];
            load_row<T, ALIGNED, kCount>(plane + row * in.row_stride, column, width, top);
            load_row<T, ALIGNED, kCount>(plane + below * in.row_stride, column, width, bottom);
            bound_cells<kCount>(top, bottom, lower, upper);
        }
        for (int i = 0; i < kCount; ++i) tile.upper[group][cell + i] = upper[i];
    }
    for (int i = 0; i < kCount; ++i) tile.lower[segment][cell + i] = lower[i];
}

// By cell, one bit for every group that may hold the winner of some pixel.
template <typename T>
__device__ void choose_groups(int classes, int group_size, Tile<T>& tile) {
    for (int cell = threadIdx.x; cell < Tile<T>::kCells; cell += kThreads) {
        float sure = -INFINITY;
        for (int segment = 0; segment < kSegments; ++segment) sure = fmaxf(sure, tile.lower[segment][cell]);
        unsigned long long groups = 0;
        for (int group = 0; group * group_size < classes; ++group)
            groups |= static_cast<unsigned long long>(!(tile.upper[group][cell] < sure)) << group;
        tile.groups[cell] = groups;
    }
}

template <typename T, bool ALIGNED>
__global__ void __launch_bounds__(kThreads, 2)
    pruned_kernel(Planes<T> in, Resize resize, LabelMap out, int group_size) {
    __shared__ Tile<T> tile;
    constexpr int kAcross = Tile<T>::kAcross;
    const Axis &down = resize.down, &across = resize.across;
    const unsigned tiles_across = ceil_div(across.in, kAcross);
    const int row = blockIdx.x / tiles_across * kChunksDown, column = blockIdx.x % tiles_across * kAcross;
    const int top = first_output(down, row), bottom = first_output(down, row + kChunksDown);
    const int left = first_output(across, column), right = first_output(across, column + kAcross);
    if (top == bottom || left == right) return;  // no pixel samples these cells

    bound_groups<T, ALIGNED>(in, down.in, across.in, row, column, group_size, tile);
    __syncthreads();
    choose_groups(in.classes, group_size, tile);
    __syncthreads();
    for (int v = top + threadIdx.x / kWarp; v < bottom; v += kWarps) {
        const ShortTap y = tap_at(down, v);
        for (int h = left + threadIdx.x % kWarp; h < right; h += kWarp) {
            const ShortTap x = tap_at(across, h);
            const Sample sample = sample_at(y, x, in.row_stride);
            unsigned long long groups = tile.groups[(y.first - row) * kAcross + (x.first - column)];
            Winner winner;
            for (; groups; groups &= groups - 1) {
                const int begin = (__ffsll(static_cast<long long>(groups)) - 1) * group_size;
                const int end = begin + group_size < in.classes ? begin + group_size : in.classes;
                try_classes(in, sample, begin, end, winner);
            }
            write(out, v * static_cast<std::int64_t>(across.out) + h, winner);
        }
    }
}

// A cell costs about as much to bound as a pixel to compute. Much larger cells would leave too few blocks.
bool worth_pruning(const LogitsShape& in, const LabelShape& out) {
    const std::int64_t cells = in.height * in.width, pixels = out.height * out.width;
    return pixels >= 2 * cells && pixels <= 256 * cells;
}

template <typename T>
cudaError_t start(const Logits& logits, const LabelMap& out, bool prune, cudaStream_t stream) {
    const LogitsShape& shape = logits.shape;
    const Planes<T> in{static_cast<const T*>(logits.data), static_cast<std::int32_t>(shape.classes),
                       logits.class_stride, logits.row_stride};
    const Resize resize{axis_of(shape.height, out.shape.height), axis_of(shape.width, out.shape.width)};
    if (!prune || !worth_pruning(shape, out.shape))
        return launch(direct_kernel<T>, ceil_div<std::int64_t>(out.shape.height * out.shape.width, kWarp), kThreads,
                      stream, in, resize, out);
    const bool rows_aligned = aligned(in.data) && shape.width % kVector<T> == 0 && in.class_stride % kVector<T> == 0 &&
                              in.row_stride % kVector<T> == 0;
    const std::int64_t tiles =
        ceil_div<std::int64_t>(shape.width, Tile<T>::kAcross) * ceil_div<std::int64_t>(shape.height, kChunksDown);
    return launch(rows_aligned ? pruned_kernel<T, true> : pruned_kernel<T, false>, tiles, kThreads, stream, in, resize,
                  out, ceil_div(in.classes, kGroups));
}

}  // namespace

cudaError_t upsample_argmax(const Logits& logits, const LabelMap& out, bool prune, cudaStream_t stream) {
    return with_element(logits.storage, [&](auto* element) {
        return start<std::remove_pointer_t<decltype(element)>>(logits, out, prune, stream);
    });
}

}  // namespace kernels::cuda
