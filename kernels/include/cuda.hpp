// The CUDA twins. All pointers, the photo's included, are device memory; nothing is allocated and nothing is
// waited for, so that a call may be captured into a graph. They return what the launch itself reported.
#pragma once

#include <cuda_runtime_api.h>

#include "lga_merge.hpp"
#include "preprocess.hpp"
#include "upsample_argmax.hpp"

namespace kernels::cuda {

constexpr int kThreads = 256;  // a block; one thread an output element

inline unsigned blocks_for(std::int64_t elements) {
    return static_cast<unsigned>((elements + kThreads - 1) / kThreads);
}

cudaError_t preprocess(const Photo& photo, const CropGeometry& geometry, float* image, float* crops,
                       cudaStream_t stream);

cudaError_t lga_merge(const TokenGrid& tokens, const float* crops, const float* full, float* merged,
                      cudaStream_t stream);

template <typename Label>
cudaError_t upsample_argmax(const LogitsShape& in, const float* logits, const LabelShape& out, Label* labels,
                            float* scores, cudaStream_t stream);

}  // namespace kernels::cuda
