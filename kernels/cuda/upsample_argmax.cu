#include <cmath>

#include "bilinear.hpp"
#include "cuda.hpp"

namespace kernels::cuda {
namespace {

// One thread a pixel, all classes in turn: the upsampled logits exist only in registers.
template <typename Label>
__global__ void upsample_argmax_kernel(LogitsShape in, const float* __restrict__ logits, LabelShape out,
                                       Label* __restrict__ labels, float* __restrict__ scores) {
    const std::int64_t pixel = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (pixel >= out.height * out.width) return;
    const Tap v = bilinear_tap(pixel / out.width, in.height, out.height);
    const Tap h = bilinear_tap(pixel % out.width, in.width, out.width);

    float best = NAN;
    std::int64_t label = 0;
    for (std::int64_t k = 0; k < in.classes; ++k) {
        const float* top = logits + (k * in.height + v.first) * in.width;
        const float* bottom = logits + (k * in.height + v.second) * in.width;
        const float left = v.first_weight * top[h.first] + v.second_weight * bottom[h.first];
        const float right = v.first_weight * top[h.second] + v.second_weight * bottom[h.second];
        const float value = h.first_weight * left + h.second_weight * right;
        if (wins(value, best)) {
            best = value;
            label = k;
        }
    }
    labels[pixel] = static_cast<Label>(label);
    if (scores) scores[pixel] = best;
}

}  // namespace

template <typename Label>
cudaError_t upsample_argmax(const LogitsShape& in, const float* logits, const LabelShape& out, Label* labels,
                            float* scores, cudaStream_t stream) {
    upsample_argmax_kernel<<<blocks_for(out.height * out.width), kThreads, 0, stream>>>(in, logits, out, labels,
                                                                                        scores);
    return cudaGetLastError();
}

template cudaError_t upsample_argmax(const LogitsShape&, const float*, const LabelShape&, std::uint8_t*, float*,
                                     cudaStream_t);
template cudaError_t upsample_argmax(const LogitsShape&, const float*, const LabelShape&, std::uint16_t*, float*,
                                     cudaStream_t);

}  // namespace kernels::cuda
