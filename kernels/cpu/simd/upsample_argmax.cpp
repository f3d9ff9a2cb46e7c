// Labels of a band of output rows, tile by tile: the logits of a tile are gathered side by side once, then every
// output row reads them from the first-level cache. The upsampled logits exist only in registers.
#include "candidates.hpp"
#include "instructions.hpp"

namespace kernels {
namespace {

constexpr int kWindows = 4;     // side by side in one patch
constexpr int kRows = 8;        // of one patch
constexpr int kBlock = 256;     // classes gathered at a time
constexpr int kWorthwhile = 4;  // vectors of pixels in a tile: below, the bounds cost more than they save

constexpr int kGatherAhead = 24;  // classes: fetched while the ones before are copied

struct ClassList {
    const std::uint16_t* classes;
    std::int64_t count;
};

// The best so far in a few rows of a few windows.
struct Patch {
    std::int64_t row, rows, window, windows;
    Floats best[kRows][kWindows];
    Ints label[kRows][kWindows];
};

// Which of two is kept. `Careful` is `wins` of the header: anything beats NaN. The other never takes -infinity or
// NaN and is cheaper; where nothing else was found, the patch is done again with care.
template <bool Careful>
KERNELS_INLINE Ints better(Floats value, Floats best) {
    if constexpr (Careful) return ~(value <= best) & (value == value);
    return value > best;
}

template <bool Careful>
KERNELS_INLINE Floats nothing_yet() {
    return broadcast(Careful ? __builtin_nanf("") : -kInfinity);
}

// `values`: for every class, the tile's lanes of the upper and of the lower row. Vertical first, as the reference.
// Four: every window reads four columns at most, from memory.
template <int Windows, bool Careful, bool Four>
void best_of_row(const ArgmaxPlan& plan, Patch& patch, std::int64_t row, const float* values, const ClassList& list,
                 bool begins) {
    Floats best[Windows], left_weight[Windows], right_weight[Windows];
    Ints label[Windows], left[Windows], right[Windows];
    std::int64_t begin[Windows];
    KERNELS_UNROLL
    for (int i = 0; i < Windows; ++i) {
        const std::int64_t at = (patch.window + i) * kLanes;
        left[i] = load_raw<Ints>(plan.left + at);
        right[i] = load_raw<Ints>(plan.right + at);
        begin[i] = Four ? plan.windows[patch.window + i].column : 0;
        left[i] -= static_cast<std::int32_t>(begin[i]);
        right[i] -= static_cast<std::int32_t>(begin[i]);
        left_weight[i] = load(plan.left_weight + at);
        right_weight[i] = load(plan.right_weight + at);
        best[i] = begins ? nothing_yet<Careful>() : patch.best[row][i];
        label[i] = begins ? Ints{} : patch.label[row][i];
    }
    const Floats top_weight = broadcast(plan.top_weight[patch.row + row]);
    const Floats bottom_weight = broadcast(plan.bottom_weight[patch.row + row]);
    for (std::int64_t n = 0; n < list.count; ++n) {
        const Floats column = top_weight * load(values) + bottom_weight * load(values + kLanes);
        const Ints k = broadcast(static_cast<std::int32_t>(list.classes[n]));
        values += 2 * kLanes;
        alignas(sizeof(Floats)) float line[kLanes];
        if (Four) store(line, column);
        KERNELS_UNROLL
        for (int i = 0; i < Windows; ++i) {
            const Floats four = Four ? load_fours(line + begin[i]) : column;
            const Floats at_left = Four ? permute_fours(four, left[i]) : permute(column, left[i]);
            const Floats at_right = Four ? permute_fours(four, right[i]) : permute(column, right[i]);
            const Floats value = left_weight[i] * at_left + right_weight[i] * at_right;
            const Ints wins = better<Careful>(value, best[i]);
            best[i] = wins ? value : best[i];
            label[i] = wins ? k : label[i];
        }
    }
    KERNELS_UNROLL
    for (int i = 0; i < Windows; ++i) {
        patch.best[row][i] = best[i];
        patch.label[row][i] = label[i];
    }
}

template <bool Careful, bool Four>
void best_of(const ArgmaxPlan& plan, Patch& patch, std::int64_t row, const float* values, const ClassList& list,
             bool begins) {
    switch (patch.windows) {
        case 1:
            return best_of_row<1, Careful, Four>(plan, patch, row, values, list, begins);
        case 2:
            return best_of_row<2, Careful, Four>(plan, patch, row, values, list, begins);
        case 3:
            return best_of_row<3, Careful, Four>(plan, patch, row, values, list, begins);
        default:
            return best_of_row<4, Careful, Four>(plan, patch, row, values, list, begins);
    }
}

template <typename T>
void gather(const ArgmaxPlan& plan, const ArgmaxBand& band, const ArgmaxTile& tile, const ClassList& list,
            float* values) {
    const std::int64_t columns = plan.logits.shape.width;
    // The tile before has brought the cache line of the first column, but not that of the last.
    const std::int64_t last_column = tile.column + (columns < kLanes ? columns : kLanes) - 1;
    for (std::int64_t n = 0; n < list.count; ++n, values += 2 * kLanes) {
        if (n + kGatherAhead < list.count) prefetch<T>(plan, band, list.classes[n + kGatherAhead], last_column);
        const T* const top = logits_at<T>(plan, list.classes[n], band.top) + tile.column;
        const T* const bottom = logits_at<T>(plan, list.classes[n], band.bottom) + tile.column;
        store(values, columns >= kLanes ? load(top) : load_some(top, columns));
        store(values + kLanes, columns >= kLanes ? load(bottom) : load_some(bottom, columns));
    }
}

template <typename T, bool Careful>
void best_of_patch(const ArgmaxPlan& plan, const ArgmaxBand& band, const ArgmaxTile& tile, const ClassList& list,
                   Patch& patch) {
    float values[kBlock * 2 * kLanes];
    for (std::int64_t done = 0; done < list.count; done += kBlock) {
        const ClassList block{list.classes + done, list.count - done < kBlock ? list.count - done : kBlock};
        gather<T>(plan, band, tile, block, values);
        for (std::int64_t row = 0; row < patch.rows; ++row)
            if (kHasFours && plan.four_columns)
                best_of<Careful, kHasFours>(plan, patch, row, values, block, done == 0);
            else
                best_of<Careful, false>(plan, patch, row, values, block, done == 0);
    }
}

bool every_pixel_has_a_winner(const Patch& patch) {
    Ints without = {};
    for (std::int64_t row = 0; row < patch.rows; ++row)
        for (std::int64_t i = 0; i < patch.windows; ++i) without |= patch.best[row][i] == broadcast(-kInfinity);
    return !any(without);
}

KERNELS_INLINE void store_labels(std::uint8_t* to, Ints labels) {
    store_raw(to, __builtin_convertvector(__builtin_convertvector(labels, Shorts), Bytes));
}
KERNELS_INLINE void store_labels(std::uint16_t* to, Ints labels) {
    store_raw(to, __builtin_convertvector(labels, Shorts));
}

// Lanes beyond a window's pixels may be written where the row has room: the next window comes after.
template <typename Label>
void put(const ArgmaxPlan& plan, const Patch& patch) {
    for (std::int64_t row = 0; row < patch.rows; ++row)
        for (std::int64_t i = 0; i < patch.windows; ++i) {
            const std::int64_t x = plan.windows[patch.window + i].x, room = plan.out.shape.width - x;
            const std::int64_t at = (patch.row + row) * plan.out.shape.width + x;
            Label* const labels = static_cast<Label*>(plan.out.labels) + at;
            if (room >= kLanes) {
                store_labels(labels, patch.label[row][i]);
            } else {
                Label lanes[kLanes];
                store_labels(lanes, patch.label[row][i]);
                __builtin_memcpy(labels, lanes, static_cast<std::size_t>(room) * sizeof(Label));
            }
            if (plan.out.scores) store_some(plan.out.scores + at, patch.best[row][i], room < kLanes ? room : kLanes);
        }
}

template <typename T>
void label_tile(const ArgmaxPlan& plan, const ArgmaxBand& band, const ArgmaxTile& tile, const ClassList& list) {
    Patch patch;
    for (patch.row = band.first; patch.row < band.last; patch.row += kRows) {
        patch.rows = band.last - patch.row < kRows ? band.last - patch.row : kRows;
        for (patch.window = tile.first_window; patch.window < tile.last_window; patch.window += kWindows) {
            patch.windows = tile.last_window - patch.window < kWindows ? tile.last_window - patch.window : kWindows;
            best_of_patch<T, false>(plan, band, tile, list, patch);
            if (!every_pixel_has_a_winner(patch))
                best_of_patch<T, true>(plan, band, tile, {plan.classes, plan.logits.shape.classes}, patch);
            if (plan.out.label_bytes == 1)
                put<std::uint8_t>(plan, patch);
            else
                put<std::uint16_t>(plan, patch);
        }
    }
}

bool pruning_may_pay(const ArgmaxPlan& plan, const ArgmaxBand& band) {
    const ArgmaxTile& last = plan.tiles[plan.tile_count - 1];
    return plan.prune && plan.logits.shape.classes >= 8 &&
           (band.last - band.first) * last.last_window >= kWorthwhile * plan.tile_count;
}

template <typename T>
void label_stored(const ArgmaxPlan& plan, std::int64_t first, std::int64_t last) {
    const ClassList all{plan.classes, plan.logits.shape.classes};
    Candidates found;
    bool pays = true;  // as long as the band before kept less than half of its classes
    for (std::int64_t i = first; i < last; ++i) {
        const ArgmaxBand& band = plan.bands[i];
        const bool prune = pays && pruning_may_pay(plan, band);
        std::int64_t kept = 0;
        for (std::int64_t begin = 0; begin < plan.tile_count; begin += kTilesAtOnce) {
            const std::int64_t end = begin + kTilesAtOnce < plan.tile_count ? begin + kTilesAtOnce : plan.tile_count;
            if (prune) kept += find_candidates<T>(plan, band, begin, end, found);
            for (std::int64_t t = begin; t < end; ++t) {
                const bool pruned = prune && found.count[t - begin] <= found.limit;
                const ClassList some{found.classes[t - begin], pruned ? found.count[t - begin] : 0};
                label_tile<T>(plan, band, plan.tiles[t], pruned ? some : all);
            }
        }
        if (prune) pays = 2 * kept < all.count * plan.tile_count;
    }
}

}  // namespace

void KERNELS_ISA::label_bands(const ArgmaxPlan& plan, std::int64_t first, std::int64_t last) {
    switch (plan.logits.storage) {
        case Storage::float32:
            return label_stored<float>(plan, first, last);
        case Storage::float16:
            return label_stored<Half>(plan, first, last);
        case Storage::bfloat16:
            return label_stored<Bfloat>(plan, first, last);
    }
}

}  // namespace kernels
