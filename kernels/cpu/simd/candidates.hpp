// Exact pruning: which classes can win anywhere in a tile.
//
// Between four neighbouring logits a bilinear value lies between their least and their most. So a class whose most is
// below another's least wins nowhere there. Both bounds hold for the *rounded* interpolation too: rounding is monotone,
// so a value is at most what four corners equal to the most would give, and that differs from it by rounding of that
// number alone (6 units in the last place; `relaxed` allows 16).
#pragma once

#include "plan.hpp"
#include "storage.hpp"

namespace kernels {
namespace {

constexpr int kTilesAtOnce = 64, kMostCandidates = 256, kClassesAhead = 4;

// Of tiles side by side in one band. A tile with more than `limit` classes has all of them.
struct Candidates {
    std::int64_t limit;
    Floats floor[kTilesAtOnce];  // by cell: what a class must reach
    std::int64_t count[kTilesAtOnce];
    std::uint16_t classes[kTilesAtOnce][kMostCandidates];
};

template <typename T>
const T* logits_at(const ArgmaxPlan& plan, std::int64_t k, std::int64_t row) {
    return static_cast<const T*>(plan.logits.data) + k * plan.logits.class_stride + row * plan.logits.row_stride;
}

// The rows of a class are far from those of the next: processors do not foresee them.
template <typename T>
KERNELS_INLINE void prefetch(const ArgmaxPlan& plan, const ArgmaxBand& band, std::int64_t k, std::int64_t column) {
    if (k >= plan.logits.shape.classes) return;
    __builtin_prefetch(logits_at<T>(plan, k, band.top) + column, 0, 2);
    __builtin_prefetch(logits_at<T>(plan, k, band.bottom) + column, 0, 2);
}

KERNELS_INLINE Floats relaxed(Floats least) {
    const Floats size = reinterpret_cast<Floats>(reinterpret_cast<Ints>(least) & 0x7fffffff);
    return least - (size * 0x1p-20f + 1e-37f);  // -infinity stays: what it is not above, nothing is pruned by
}

// The least and most of the four corners of every cell. A cell with an infinite or NaN corner may hold NaN anywhere,
// so its least is -infinity; its most needs no such care, because NaN and -infinity never win.
struct Bounds {
    Floats least, most;
};

KERNELS_INLINE Bounds bounds_of(Floats top, Floats bottom, Ints next) {
    const Floats sum = top + bottom, least = sum - sum == Floats{} ? least_of(top, bottom) : broadcast(-kInfinity);
    const Floats most = most_of(top, bottom);
    return {least_of(least, permute(least, next)), most_of(most, permute(most, next))};
}

template <typename T>
KERNELS_INLINE Bounds bounds_at(const ArgmaxPlan& plan, const ArgmaxBand& band, const ArgmaxTile& tile, std::int64_t k,
                                Ints next) {
    const T *top = logits_at<T>(plan, k, band.top) + tile.column,
            *bottom = logits_at<T>(plan, k, band.bottom) + tile.column;
    if (plan.logits.shape.width >= kLanes) return bounds_of(load(top), load(bottom), next);
    const std::int64_t columns = plan.logits.shape.width;
    return bounds_of(load_some(top, columns), load_some(bottom, columns), next);
}

// The right-hand neighbour of every lane; the last column is its own.
Ints next_lanes(const ArgmaxPlan& plan) {
    const std::int64_t columns = plan.logits.shape.width < kLanes ? plan.logits.shape.width : kLanes;
    Ints next = {};
    for (int i = 0; i < kLanes; ++i) next[i] = i + 1 < columns ? i + 1 : static_cast<int>(columns) - 1;
    return next;
}

// Lanes beyond the tile's cells ask for infinity, which no class reaches.
Floats lowest_floor(const ArgmaxTile& tile) {
    Floats floor = broadcast(kInfinity);
    for (std::int64_t i = tile.first_cell; i < tile.last_cell; ++i) floor[i] = -kInfinity;
    return floor;
}

// Fills `found` for tiles [first, last) and returns how many classes they keep in all.
template <typename T>
std::int64_t find_candidates(const ArgmaxPlan& plan, const ArgmaxBand& band, std::int64_t first, std::int64_t last,
                             Candidates& found) {
    const std::int64_t classes = plan.logits.shape.classes, tiles = last - first;
    const Ints next = next_lanes(plan);
    found.limit = classes / 2 < kMostCandidates ? classes / 2 : kMostCandidates;
    for (std::int64_t t = 0; t < tiles; ++t) {
        found.floor[t] = lowest_floor(plan.tiles[first + t]);
        found.count[t] = 0;
    }
    for (std::int64_t k = 0; k < classes; ++k)
        for (std::int64_t t = 0; t < tiles; ++t) {
            prefetch<T>(plan, band, k + kClassesAhead, plan.tiles[first + t].column);
            const Bounds bounds = bounds_at<T>(plan, band, plan.tiles[first + t], k, next);
            const bool below = !any(~(bounds.most < found.floor[t]));
            found.floor[t] = most_of(relaxed(bounds.least), found.floor[t]);
            if (below) continue;
            if (found.count[t] < found.limit) found.classes[t][found.count[t]] = static_cast<std::uint16_t>(k);
            ++found.count[t];
        }

    std::int64_t kept = 0;
    for (std::int64_t t = 0; t < tiles; ++t) {
        if (found.count[t] > found.limit) {
            kept += classes;
            continue;
        }
        std::int64_t count = 0;  // the floor has risen since the first ones were noted
        for (std::int64_t i = 0; i < found.count[t]; ++i) {
            const std::uint16_t k = found.classes[t][i];
            const Bounds bounds = bounds_at<T>(plan, band, plan.tiles[first + t], k, next);
            if (any(~(bounds.most < found.floor[t]))) found.classes[t][count++] = k;
        }
        kept += found.count[t] = count;
    }
    return kept;
}

}  // namespace
}  // namespace kernels
