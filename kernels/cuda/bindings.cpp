// A module of its own, so that the CPU kernels load without it. Importing it asks nothing of a driver.
#include <nanobind/nanobind.h>

#include <sstream>
#include <stdexcept>
#include <string>

#include "addresses.hpp"

namespace nb = nanobind;

namespace {

// The function with its error as a Python exception. The GIL stays: a launch takes microseconds.
template <typename... Arguments>
auto raising(const char* kernel, cudaError_t (*launch)(Arguments...)) {
    return [kernel, launch](Arguments... arguments) {
        const cudaError_t error = launch(arguments...);
        if (error != cudaSuccess)
            throw std::runtime_error(std::string(kernel) + ": CUDA launch failed: " + cudaGetErrorString(error));
    };
}

int device_count() {
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
    cudaGetLastError();  // no driver is an answer here, and must not show up in the next launch
    return 0;
}

nb::list architectures() {
    nb::list names;
    std::istringstream all(KERNELS_CUDA_ARCHITECTURES);
    for (std::string name; std::getline(all, name, ',');) names.append(name.c_str());
    return names;
}

}  // namespace

NB_MODULE(_kernels_cuda, module) {
    using namespace kernels::cuda;
    module.def("preprocess", raising("preprocess", &call_preprocess));
    module.def("lga_merge", raising("lga_merge", &call_lga_merge));
    module.def("upsample_argmax", raising("upsample_argmax", &call_upsample_argmax));
    module.def("device_count", &device_count);
    module.def("architectures", &architectures);
}
