// The CUDA twins. All pointers, the photo's included, are device memory; nothing is allocated and nothing is
// waited for, so that a call may be captured into a graph. They return what the launch itself reported.
#pragma once

#include <cuda_runtime_api.h>

#include "lga_merge.hpp"
#include "preprocess.hpp"
#include "storage.hpp"
#include "upsample_argmax.hpp"

namespace kernels::cuda {

// As kernels::preprocess, in one launch: interleaved uint8 -> planes of `storage`. `crops` is unused where
// geometry.crop is 0. Unlike on the CPU, a photo's columns must run forwards: column_stride > 0.
cudaError_t preprocess(const Photo& photo, const CropGeometry& geometry, const PreprocessOptions& options, void* image,
                       void* crops, cudaStream_t stream);

// As kernels::lga_merge.
cudaError_t lga_merge(const TokenGrid& tokens, const MergeOptions& options, const void* crops, const void* full,
                      void* merged, cudaStream_t stream);

// As kernels::upsample_argmax. `prune` false computes every class at every pixel. The result is the same.
cudaError_t upsample_argmax(const Logits& logits, const LabelMap& out, bool prune, cudaStream_t stream);

}  // namespace kernels::cuda
