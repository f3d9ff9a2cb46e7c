#include "lga_merge.hpp"

#include <algorithm>

#include "dispatch.hpp"
#include "parallel.hpp"

namespace kernels {

void lga_merge(const TokenGrid& tokens, const MergeOptions& options, const void* crops, const void* full,
               void* merged) {
    const std::int64_t cells = tokens.grid() * tokens.grid(), elements = cells * tokens.channels;
    MergePlan plan{tokens, tokens.grid(), options, crops, full, merged, false, 0, 0};
    plan.stream = elements * (options.storage == Storage::float32 ? 4 : 2) >= kWorthStreaming;
    plan.scratch_tokens = options.channels_first ? kTokens : options.normalize ? 1 : 0;
    plan.block = std::min((tokens.channels + kTokens - 1) / kTokens * kTokens, kBlockChannels);

    const Instructions& chosen = instructions();
    for_parts<float>(
        cells, 4 * kTokens, static_cast<double>(elements), plan.scratch_tokens * plan.block,
        [&](std::int64_t first, std::int64_t last, float* scratch) { chosen.merge_cells(plan, first, last, scratch); });
}

}  // namespace kernels
