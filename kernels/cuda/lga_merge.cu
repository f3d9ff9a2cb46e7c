#include "cuda.hpp"
#include "launch.cuh"
#include "merge_cell.cuh"

namespace kernels::cuda {
namespace {

constexpr int kWarp = 32, kMostThreads = 256;
constexpr int kCells = 16, kLanes = kMostThreads / kCells;  // of the transposing kernel: 16 lanes a cell

template <typename T>
struct Merge {
    TokenGrid tokens;
    int grid;
    const T *crops, *full;
    T* merged;
    bool normalize;
};

__device__ float block_sum(float value) {
    __shared__ float partial[kMostThreads / kWarp];
    for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = value;
    __syncthreads();
    float total = 0.0f;
    for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) total += partial[warp];
    return total;
}

// (cells, channels): a block makes one cell, a thread COUNT channels of it at a time.
template <typename T, int COUNT>
__global__ void __launch_bounds__(kMostThreads, 4) tokens_kernel(Merge<T> job) {
    const std::int64_t channels = job.tokens.channels, at = blockIdx.x * channels;
    const int cell = blockIdx.x;
    const Cover cover = cover_of(job.tokens, cell / job.grid, cell % job.grid);
    const std::int64_t first = threadIdx.x * COUNT, step = blockDim.x * COUNT;
    const auto value_at = [&](std::int64_t channel, float (&merged)[COUNT]) {
        merge(cover, job.crops + cover.first + channel, job.full ? job.full + at + channel : nullptr, merged);
    };

    const bool one_turn = channels <= step;  // a thread then keeps its values from the first pass to the second;
    float merged[COUNT], scale = 1.0f;       // otherwise they are read again, from a cache: a token is a few KB
    for (int pass = job.normalize ? 0 : 1; pass < 2; ++pass) {
        float squares = 0.0f;
        for (std::int64_t channel = first; channel < channels; channel += step) {
            if (pass == 0 || !job.normalize || !one_turn) value_at(channel, merged);
            if (pass == 0) {
                for (int i = 0; i < COUNT; ++i) squares += merged[i] * merged[i];
            } else {
                Pack<T, COUNT> pack;
                for (int i = 0; i < COUNT; ++i) pack.value[i] = from_float<T>(merged[i] * scale);
                store(job.merged + at + channel, pack);
            }
        }
        if (pass == 0) scale = inverse_length(block_sum(squares));
    }
}

// (channels, cells): a block makes 16 cells, `splits` blocks share the channels of the same cells. Tokens are read
// along channels and written along cells, by way of a tile in shared memory.
template <typename T, int COUNT>
__global__ void __launch_bounds__(kMostThreads, 2) channels_first_kernel(Merge<T> job, int splits) {
    constexpr int kWidth = kLanes * COUNT;              // channels in a tile
    __shared__ float tile[kLanes * COUNT][kCells + 1];  // + 1: the two directions then meet different banks
    const int lane = threadIdx.x % kLanes, mine = threadIdx.x / kLanes;
    const std::int64_t channels = job.tokens.channels;
    const int cells = job.grid * job.grid;
    const int first_cell = blockIdx.x / splits * kCells, split = blockIdx.x % splits;
    const int cell = first_cell + mine < cells ? first_cell + mine : cells - 1;
    const Cover cover = cover_of(job.tokens, cell / job.grid, cell % job.grid);
    const auto value_at = [&](std::int64_t channel, float (&merged)[COUNT]) {
        merge(cover, job.crops + cover.first + channel, job.full ? job.full + (cell * channels + channel) : nullptr,
              merged);
    };

    float merged[COUNT], scale = 1.0f;
    if (job.normalize) {
        float squares = 0.0f;
        for (std::int64_t channel = lane * COUNT; channel < channels; channel += kWidth) {
            value_at(channel, merged);
            for (int i = 0; i < COUNT; ++i) squares += merged[i] * merged[i];
        }
        for (int step = kLanes / 2; step > 0; step /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, step);
        scale = inverse_length(squares);
    }
    for (std::int64_t first = split * kWidth; first < channels; first += std::int64_t{splits} * kWidth) {
        const std::int64_t channel = first + lane * COUNT;
        if (channel < channels) {
            value_at(channel, merged);
            for (int i = 0; i < COUNT; ++i) tile[lane * COUNT + i][mine] = merged[i] * scale;
        }
        __syncthreads();
        for (int at = threadIdx.x; at < kWidth * kCells; at += kMostThreads) {
            const std::int64_t row = first + at / kCells;
            const int column = first_cell + at % kCells;
            if (row < channels && column < cells)
                job.merged[row * cells + column] = from_float<T>(tile[at / kCells][at % kCells]);
        }
        __syncthreads();
    }
}

template <typename T, int COUNT>
cudaError_t start(const Merge<T>& job, bool channels_first, cudaStream_t stream) {
    const std::int64_t cells = job.tokens.grid() * job.tokens.grid(), channels = job.tokens.channels;
    if (channels_first) {
        // The length of a token is a sum over all its channels: one block then makes them all.
        const std::int64_t splits = job.normalize ? 1 : ceil_div<std::int64_t>(channels, kLanes * COUNT);
        return launch(channels_first_kernel<T, COUNT>, ceil_div<std::int64_t>(cells, kCells) * splits, kMostThreads,
                      stream, job, splits);
    }
    const std::int64_t threads = ceil_div<std::int64_t>(channels, COUNT * kWarp) * kWarp;
    return launch(tokens_kernel<T, COUNT>, cells, static_cast<int>(threads < kMostThreads ? threads : kMostThreads),
                  stream, job);
}

}  // namespace

cudaError_t lga_merge(const TokenGrid& tokens, const MergeOptions& options, const void* crops, const void* full,
                      void* merged, cudaStream_t stream) {
    return with_element(options.storage, [&](auto* element) {
        using T = std::remove_pointer_t<decltype(element)>;
        Merge<T> job;
        job.tokens = tokens;
        job.grid = static_cast<int>(tokens.grid());
        job.crops = static_cast<const T*>(crops);
        job.full = static_cast<const T*>(full);
        job.merged = static_cast<T*>(merged);
        job.normalize = options.normalize;
        const bool wide = aligned(crops) && aligned(full) && aligned(merged) && tokens.channels % kVector<T> == 0;
        return wide ? start<T, kVector<T>>(job, options.channels_first, stream)
                    : start<T, 1>(job, options.channels_first, stream);
    });
}

}  // namespace kernels::cuda
