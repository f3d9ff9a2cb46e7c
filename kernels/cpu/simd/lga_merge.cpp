// One pass over the output: every token is the mean of the crops that cover it, then of that and the whole image.
#include "instructions.hpp"
#include "storage.hpp"

namespace kernels {
namespace {

// Where a token lies in the crops that cover it. From one crop to the next the distance is always the same.
template <typename T>
struct Sources {
    const T* first;
    const T* full;  // or null
    std::int64_t down, across;
    std::ptrdiff_t down_step, across_step;
};

// The crops along one axis that cover a cell: first <= crop < last.
struct Range {
    std::int64_t first, last;
};

Range covering(std::int64_t cell, const TokenGrid& tokens) {
    const std::int64_t past_start = cell - tokens.crop_grid;  // crops that start here or earlier have ended
    const std::int64_t last = cell / tokens.stride + 1;
    return {past_start < 0 ? 0 : past_start / tokens.stride + 1,
            last < tokens.crops_per_axis ? last : tokens.crops_per_axis};
}

template <typename T>
Sources<T> sources_of(const MergePlan& plan, std::int64_t cell) {
    const TokenGrid& grid = plan.tokens;
    const std::int64_t y = cell / plan.grid, x = cell % plan.grid;
    const Range down = covering(y, grid), across = covering(x, grid);
    const std::int64_t row = y - down.first * grid.stride, column = x - across.first * grid.stride;
    const std::int64_t crop = down.first * grid.crops_per_axis + across.first, side = grid.crop_grid;
    const T* const full = static_cast<const T*>(plan.full);
    return {static_cast<const T*>(plan.crops) + ((crop * side + row) * side + column) * grid.channels,
            full ? full + cell * grid.channels : nullptr,
            down.last - down.first,
            across.last - across.first,
            (grid.crops_per_axis * side - grid.stride) * side * grid.channels,
            (side * side - grid.stride) * grid.channels};
}

// Lanes of a token from channel c on. Down and Across 0: as many crops as the sources say.
template <int Down, int Across, typename T, typename Load>
KERNELS_INLINE Floats mean_at(const Sources<T>& sources, std::int64_t c, Load load_lanes) {
    const std::int64_t down = Down ? Down : sources.down, across = Across ? Across : sources.across;
    Floats sum = load_lanes(sources.first + c);
    for (std::int64_t i = 0; i < down; ++i)
        for (std::int64_t j = i == 0 ? 1 : 0; j < across; ++j)
            sum += load_lanes(sources.first + i * sources.down_step + j * sources.across_step + c);
    if (down * across > 1) sum /= broadcast(static_cast<float>(down * across));
    return sources.full ? (sum + load_lanes(sources.full + c)) * 0.5f : sum;
}

template <int Down, int Across, typename T, typename Out>
void merge_token(const Sources<T>& sources, std::int64_t channels, bool streamed, Out* merged) {
    const auto whole = [](const T* from) { return load(from); };
    const auto ordinary = [&](std::int64_t c, std::int64_t end) {
        for (; c + kLanes <= end; c += kLanes) store(merged + c, mean_at<Down, Across>(sources, c, whole));
        const std::int64_t rest = end - c;
        const auto part = [rest](const T* from) { return load_some(from, rest); };
        if (rest > 0) store_some(merged + c, mean_at<Down, Across>(sources, c, part), rest);
    };
    if (!streamed) return ordinary(0, channels);
    const Lines lines = whole_lines(merged, channels);
    ordinary(0, lines.first);
    for (std::int64_t c = lines.first; c < lines.last; c += kLanes)
        stream(merged + c, mean_at<Down, Across>(sources, c, whole));
    ordinary(lines.last, channels);
}

template <typename T, typename Out>
using Merge = void (*)(const Sources<T>&, std::int64_t, bool, Out*);

// Up to three crops overlap along an axis in every published geometry: those nine are unrolled.
template <typename T, typename Out>
Merge<T, Out> merge_for(const Sources<T>& sources) {
    switch (sources.down <= 3 && sources.across <= 3 ? sources.down * 4 + sources.across : 0) {
        case 5:
            return merge_token<1, 1, T, Out>;
        case 6:
            return merge_token<1, 2, T, Out>;
        case 7:
            return merge_token<1, 3, T, Out>;
        case 9:
            return merge_token<2, 1, T, Out>;
        case 10:
            return merge_token<2, 2, T, Out>;
        case 11:
            return merge_token<2, 3, T, Out>;
        case 13:
            return merge_token<3, 1, T, Out>;
        case 14:
            return merge_token<3, 2, T, Out>;
        case 15:
            return merge_token<3, 3, T, Out>;
        default:
            return merge_token<0, 0, T, Out>;
    }
}

std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// `count` channels of a token from channel c on, in scratch: zeros follow up to a multiple of kTokens.
template <typename T>
void merge_block(Sources<T> sources, std::int64_t c, std::int64_t count, float* token) {
    sources.first += c;
    if (sources.full) sources.full += c;
    merge_for<T, float>(sources)(sources, count, false, token);
    for (; count % kTokens != 0; ++count) token[count] = 0.0f;
}

// What the token is divided by: its length. The order of the additions is that of 16 lanes on every processor.
// `token` then holds the last block of it.
template <typename T>
float divisor_of(const MergePlan& plan, const Sources<T>& sources, float* token) {
    const std::int64_t channels = plan.tokens.channels;
    Floats sums[kTokens / kLanes] = {};
    for (std::int64_t c = 0; c < channels; c += plan.block) {
        const std::int64_t count = smaller(plan.block, channels - c);
        merge_block(sources, c, count, token);
        for (std::int64_t at = 0; at < count; at += kTokens)
            for (int i = 0; i < kTokens / kLanes; ++i) {
                const Floats values = load(token + at + i * kLanes);
                sums[i] += values * values;
            }
    }
    float lanes[kTokens], total = 0.0f;
    for (int i = 0; i < kTokens / kLanes; ++i) store(lanes + i * kLanes, sums[i]);
    for (int i = 0; i < kTokens; ++i) total += lanes[i];
    const float length = __builtin_sqrtf(total);
    return length < 1e-12f ? 1e-12f : length;  // NaN stays NaN
}

void divide(float* token, std::int64_t count, float divisor) {
    for (std::int64_t c = 0; c < count; c += kLanes) store(token + c, load(token + c) / broadcast(divisor));
}

template <typename T>
void put(T* to, const float* from, std::int64_t count) {
    std::int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
    if (i < count) store_some(to + i, load_some(from + i, count - i), count - i);
}

// kTokens tokens of 16 channels each become 16 channels of kTokens tokens.
void transpose(const float* tokens, std::int64_t padded, float* block) {
    for (int token = 0; token < kTokens; ++token)
        for (int c = 0; c < kTokens; ++c) block[c * kTokens + token] = tokens[token * padded + c];
}

// `channels` of them from channel c on.
template <typename T>
void put_transposed(const MergePlan& plan, std::int64_t cell, std::int64_t count, std::int64_t c, std::int64_t channels,
                    const float* tokens) {
    const std::int64_t cells = plan.grid * plan.grid;
    float block[kTokens * kTokens];
    for (std::int64_t at = 0; at < channels; at += kTokens) {
        transpose(tokens + at, plan.block, block);
        for (std::int64_t i = 0; i < kTokens && at + i < channels; ++i)
            put(static_cast<T*>(plan.merged) + (c + at + i) * cells + cell, block + i * kTokens, count);
    }
}

// `count` tokens by way of scratch. Longer ones than a block of channels are merged twice where their length is asked.
template <typename T>
void merge_by_blocks(const MergePlan& plan, std::int64_t cell, std::int64_t count, float* scratch) {
    const std::int64_t channels = plan.tokens.channels;
    const bool divided = plan.options.normalize, merged_already = divided && channels <= plan.block;
    float divisors[kTokens];
    for (std::int64_t i = 0; i < count && divided; ++i)
        divisors[i] = divisor_of(plan, sources_of<T>(plan, cell + i), scratch + i * plan.block);
    for (std::int64_t c = 0; c < channels; c += plan.block) {
        const std::int64_t width = smaller(plan.block, channels - c);
        for (std::int64_t i = 0; i < count; ++i) {
            float* const token = scratch + i * plan.block;
            if (!merged_already) merge_block(sources_of<T>(plan, cell + i), c, width, token);
            if (divided) divide(token, width, divisors[i]);
            if (!plan.options.channels_first)
                put(static_cast<T*>(plan.merged) + (cell + i) * channels + c, token, width);
        }
        if (plan.options.channels_first) put_transposed<T>(plan, cell, count, c, width, scratch);
    }
}

template <typename T>
void merge_stored(const MergePlan& plan, std::int64_t first, std::int64_t last, float* scratch) {
    const std::int64_t channels = plan.tokens.channels, step = plan.scratch_tokens;
    if (step > 0) {
        for (std::int64_t cell = first; cell < last; cell += step)
            merge_by_blocks<T>(plan, cell, smaller(step, last - cell), scratch);
        return;
    }
    for (std::int64_t cell = first; cell < last; ++cell) {
        const Sources<T> sources = sources_of<T>(plan, cell);
        merge_for<T, T>(sources)(sources, channels, plan.stream, static_cast<T*>(plan.merged) + cell * channels);
    }
    streams_done();
}

}  // namespace

void KERNELS_ISA::merge_cells(const MergePlan& plan, std::int64_t first, std::int64_t last, float* scratch) {
    switch (plan.options.storage) {
        case Storage::float32:
            return merge_stored<float>(plan, first, last, scratch);
        case Storage::float16:
            return merge_stored<Half>(plan, first, last, scratch);
        case Storage::bfloat16:
            return merge_stored<Bfloat>(plan, first, last, scratch);
    }
}

}  // namespace kernels
