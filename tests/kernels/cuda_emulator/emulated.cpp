// The emulated kernels behind C names, in the order of arguments of kernels/cuda/bindings.cpp.
#include "addresses.hpp"

using namespace kernels::cuda;

// The same signature as `call`, whatever that is.
template <auto call>
struct Exported;
template <typename... Arguments, cudaError_t (*call)(Arguments...)>
struct Exported<call> {
    static int function(Arguments... arguments) { return call(arguments...); }
};

extern "C" {
extern void* const emulated_preprocess = reinterpret_cast<void*>(&Exported<&call_preprocess>::function);
extern void* const emulated_lga_merge = reinterpret_cast<void*>(&Exported<&call_lga_merge>::function);
extern void* const emulated_upsample_argmax = reinterpret_cast<void*>(&Exported<&call_upsample_argmax>::function);
}
