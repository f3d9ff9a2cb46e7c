#include "upsample_argmax.hpp"

#include <numeric>
#include <vector>

#include "dispatch.hpp"
#include "parallel.hpp"

namespace kernels {
namespace {

constexpr std::int64_t kBandRows = 64;      // at most: few rows of logits must not mean few parts
constexpr std::int64_t kBandsAPart = 8;     // the first of them tells whether pruning pays in the others
constexpr double kNanosecondsAClass = 0.1;  // and pixel, about

struct ColumnTables {
    std::vector<ArgmaxTile> tiles;
    std::vector<ArgmaxWindow> windows;
    bool four_columns = true;
    std::vector<std::int32_t> left, right;
    std::vector<float> left_weight, right_weight;
};

// A vector load of logits brings `lanes` columns and so serves the lanes - 1 cells between them; the last one also
// the half cell beyond the last column.
std::vector<ArgmaxTile> tiles_of(std::int64_t columns, std::int64_t lanes) {
    std::vector<ArgmaxTile> tiles;
    for (std::int64_t cell = 0; cell < columns; cell += lanes - 1) {
        const bool is_last = columns - cell <= lanes;
        const std::int64_t column = is_last ? std::max<std::int64_t>(columns - lanes, 0) : cell;
        const std::int64_t last_cell = is_last ? columns : cell + lanes - 1;
        tiles.push_back({column, cell - column, last_cell - column, 0, 0});
        if (is_last) break;
    }
    return tiles;
}

void add_pixel(ColumnTables& tables, std::int64_t x, const Tap& tap, std::int64_t lanes) {
    const std::int64_t column = tables.tiles.back().column, lane = tables.windows.back().count++;
    const std::size_t at = (tables.windows.size() - 1) * lanes + lane;
    if (lane == 0) {
        tables.windows.back().x = x;
        for (auto* table : {&tables.left, &tables.right}) table->resize(at + lanes);
        for (auto* table : {&tables.left_weight, &tables.right_weight}) table->resize(at + lanes);
    }
    tables.four_columns &= tap.second - column < tables.windows.back().column + 4;
    tables.left[at] = static_cast<std::int32_t>(tap.first - column);
    tables.right[at] = static_cast<std::int32_t>(tap.second - column);
    tables.left_weight[at] = tap.first_weight;
    tables.right_weight[at] = tap.second_weight;
}

ColumnTables columns_of(std::int64_t in_width, std::int64_t out_width, std::int64_t lanes) {
    ColumnTables tables;
    std::int64_t x = 0;
    for (ArgmaxTile tile : tiles_of(in_width, lanes)) {
        tile.first_window = static_cast<std::int64_t>(tables.windows.size());
        tables.tiles.push_back(tile);
        for (; x < out_width; ++x) {
            const Tap tap = bilinear_tap(x, in_width, out_width);
            if (tap.first >= tile.column + tile.last_cell) break;
            const std::int64_t windows = static_cast<std::int64_t>(tables.windows.size());
            if (windows == tile.first_window || tables.windows.back().count == lanes)
                tables.windows.push_back({x, 0, std::min(tap.first - tile.column, lanes - 4)});
            add_pixel(tables, x, tap, lanes);
        }
        tables.tiles.back().last_window = static_cast<std::int64_t>(tables.windows.size());
        if (tables.tiles.back().last_window == tile.first_window) tables.tiles.pop_back();  // shrinking: no pixel
    }
    return tables;
}

struct RowTables {
    std::vector<ArgmaxBand> bands;
    std::vector<float> top_weight, bottom_weight;
};

RowTables rows_of(std::int64_t in_height, std::int64_t out_height) {
    RowTables tables;
    for (std::int64_t y = 0; y < out_height; ++y) {
        const Tap tap = bilinear_tap(y, in_height, out_height);
        auto& bands = tables.bands;
        if (bands.empty() || bands.back().top != tap.first || y - bands.back().first == kBandRows)
            bands.push_back({tap.first, tap.second, y, y});
        bands.back().last = y + 1;
        tables.top_weight.push_back(tap.first_weight);
        tables.bottom_weight.push_back(tap.second_weight);
    }
    return tables;
}

}  // namespace

void upsample_argmax(const Logits& logits, const LabelMap& out, bool prune) {
    const Instructions& chosen = instructions();
    const ColumnTables columns = columns_of(logits.shape.width, out.shape.width, chosen.lanes);
    const RowTables rows = rows_of(logits.shape.height, out.shape.height);
    std::vector<std::uint16_t> classes(static_cast<std::size_t>(logits.shape.classes));
    std::iota(classes.begin(), classes.end(), std::uint16_t{0});
    const ArgmaxPlan plan{logits,
                          out,
                          prune,
                          classes.data(),
                          rows.bands.data(),
                          columns.tiles.data(),
                          static_cast<std::int64_t>(columns.tiles.size()),
                          columns.four_columns,
                          columns.windows.data(),
                          columns.left.data(),
                          columns.right.data(),
                          columns.left_weight.data(),
                          columns.right_weight.data(),
                          rows.top_weight.data(),
                          rows.bottom_weight.data()};
    const double pixels = static_cast<double>(out.shape.height) * static_cast<double>(out.shape.width);
    for_parts<char>(static_cast<std::int64_t>(rows.bands.size()), kBandsAPart,
                    pixels * static_cast<double>(logits.shape.classes) * kNanosecondsAClass, 0,
                    [&](std::int64_t first, std::int64_t last, char*) { chosen.label_bands(plan, first, last); });
}

}  // namespace kernels
