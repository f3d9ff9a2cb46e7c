// What the portable half of a kernel (shapes, tables, threads) hands to its vector half, which is compiled once per
// instruction set. Plain data only: the vector half must not instantiate anything that the linker could share.
#pragma once

#include <cstdint>

#include "lga_merge.hpp"
#include "preprocess.hpp"
#include "upsample_argmax.hpp"

namespace kernels {

constexpr int kMostLanes = 16;  // floats in a register, on any processor
constexpr int kTokens = 16;     // merged at a time where the result is transposed: a cache line of it

// At a time, where tokens go through scratch: kTokens of them are 128 KB, however many channels there are.
constexpr std::int64_t kBlockChannels = 2048;

struct MergePlan {
    TokenGrid tokens;
    std::int64_t grid;
    MergeOptions options;
    const void *crops, *full;
    void* merged;
    bool stream;                         // the result is larger than the caches
    std::int64_t scratch_tokens, block;  // in scratch at a time, and channels of each: a multiple of kTokens
};

// Logits columns that one vector load brings, and the cells between them whose pixels it serves.
struct ArgmaxTile {
    std::int64_t column;                 // the first of them
    std::int64_t first_cell, last_cell;  // relative to it
    std::int64_t first_window, last_window;
};

// Up to `lanes` pixels side by side; the lane-wise tables of window i begin at i * lanes. From `column` of the tile on
// are four columns, which hold all that the window reads if it reads no more than four.
struct ArgmaxWindow {
    std::int64_t x, count, column;
};

// Output rows that lie between the same two rows of logits.
struct ArgmaxBand {
    std::int64_t top, bottom, first, last;
};

struct ArgmaxPlan {
    Logits logits;
    LabelMap out;
    bool prune;
    const std::uint16_t* classes;  // 0, 1, 2, ...
    const ArgmaxBand* bands;
    const ArgmaxTile* tiles;
    std::int64_t tile_count;
    bool four_columns;  // no window reads more
    const ArgmaxWindow* windows;
    const std::int32_t *left, *right;         // by pixel of a window: columns of its tile
    const float *left_weight, *right_weight;  // by pixel of a window
    const float *top_weight, *bottom_weight;  // by output row
};

// One axis: output i is the weighted sum of inputs first[i] to first[i] + count[i]; its weights begin at
// weights[i * width], and those beyond `count` are 0. Of columns, `first` counts bytes of a row.
struct ResizeAxis {
    std::int64_t width;
    const std::int64_t *first, *count;
    const float* weights;
};

// `pixels` are three bytes side by side, `pitch` apart, where the photo allows it (`in_place`); otherwise rows are
// repacked so, one at a time. Byte c of a pixel belongs to plane[c].
struct ResizePlan {
    Photo photo;
    bool in_place;
    std::int64_t pitch;
    int plane[3];
    CropGeometry geometry;
    ResizeAxis rows, columns;
    std::int64_t padded_size;  // a multiple of 4: the tables of `columns` go on to there
    Storage storage;
    std::int64_t element;  // bytes of one
    unsigned char *image, *crops;
    bool stream;                                          // the result is larger than the caches
    std::int64_t blended_floats, line_floats, row_bytes;  // of a thread's scratch: once, three times, twice
};

// One instruction set. Each function does the part [first, last) of its plan; `scratch` is the thread's own.
struct Instructions {
    const char* name;
    int lanes;
    void (*merge_cells)(const MergePlan&, std::int64_t first, std::int64_t last, float* scratch);
    void (*label_bands)(const ArgmaxPlan&, std::int64_t first, std::int64_t last);
    void (*resize_rows)(const ResizePlan&, std::int64_t first, std::int64_t last, unsigned char* scratch);
};

}  // namespace kernels
