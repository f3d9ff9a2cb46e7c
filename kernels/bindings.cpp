// Arrays arrive checked by kernels/__init__.py; here they only become pointers and sizes.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <sstream>
#include <stdexcept>
#include <string>

#include "dispatch.hpp"
#include "lga_merge.hpp"
#include "preprocess.hpp"
#include "upsample_argmax.hpp"
#ifdef KERNELS_CUDA_ARCHITECTURES
#include "cuda.hpp"
#endif

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using PhotoArray = nb::ndarray<const std::uint8_t, nb::ndim<3>, nb::device::cpu>;
using Stored = nb::ndarray<nb::ro, nb::device::cpu>;  // float32, or 16-bit floats as uint16
using Result = nb::ndarray<nb::c_contig, nb::device::cpu>;
using Output = nb::ndarray<float, nb::c_contig, nb::device::cpu>;

// An array that may be None.
template <typename Array>
auto data_or_null(const Array& array) -> decltype(array.data()) {
    return array.is_valid() ? array.data() : nullptr;
}

std::int64_t extent(const Stored& array, std::size_t axis) { return static_cast<std::int64_t>(array.shape(axis)); }

void preprocess(const PhotoArray& photo, std::int64_t crop, std::int64_t stride, bool antialias, const Output& image,
                const Output& crops) {
    const kernels::Photo source{photo.data(),
                                static_cast<std::int64_t>(photo.shape(0)),
                                static_cast<std::int64_t>(photo.shape(1)),
                                static_cast<std::ptrdiff_t>(photo.stride(0)),
                                static_cast<std::ptrdiff_t>(photo.stride(1)),
                                static_cast<std::ptrdiff_t>(photo.stride(2))};
    const kernels::CropGeometry geometry{static_cast<std::int64_t>(image.shape(2)), crop, stride};
    const nb::gil_scoped_release unlocked;
    kernels::preprocess(source, geometry, antialias, image.data(), data_or_null(crops));
}

void lga_merge(const Stored& crops, const Stored& full, std::int64_t crops_per_axis, std::int64_t crop_grid,
               std::int64_t stride, int storage, bool normalize, bool channels_first, const Result& merged) {
    const kernels::TokenGrid tokens{crops_per_axis, crop_grid, stride, extent(crops, crops.ndim() - 1)};
    const kernels::MergeOptions options{static_cast<kernels::Storage>(storage), normalize, channels_first};
    const nb::gil_scoped_release unlocked;
    kernels::lga_merge(tokens, options, crops.data(), data_or_null(full), merged.data());
}

void upsample_argmax(const Stored& logits, int storage, const Result& labels, const Output& scores, bool prune) {
    const kernels::Logits source{{extent(logits, 0), extent(logits, 1), extent(logits, 2)},
                                 static_cast<kernels::Storage>(storage),
                                 logits.data(),
                                 logits.stride(0),
                                 logits.stride(1)};
    const kernels::LabelMap out{
        {static_cast<std::int64_t>(labels.shape(0)), static_cast<std::int64_t>(labels.shape(1))},
        static_cast<int>(labels.itemsize()),
        labels.data(),
        data_or_null(scores)};
    const nb::gil_scoped_release unlocked;
    kernels::upsample_argmax(source, out, prune);
}

// Everything that was compiled in, best first.
nb::list simd() {
    nb::list names;
    for (const std::string& name : kernels::compiled_instructions()) names.append(name.c_str());
    return names;
}

nb::list cuda_architectures() {
    nb::list names;
#ifdef KERNELS_CUDA_ARCHITECTURES
    std::istringstream all(KERNELS_CUDA_ARCHITECTURES);
    for (std::string name; std::getline(all, name, ',');) names.append(name.c_str());
#endif
    return names;
}

nb::dict build_info() {
    nb::dict info;
    info["version"] = KERNELS_VERSION;
#if defined(__clang__)
    info["compiler"] = "Clang " __clang_version__;
#elif defined(__GNUC__)
    info["compiler"] = "GCC " __VERSION__;
#else
    info["compiler"] = "MSVC";
#endif
#ifdef _OPENMP
    info["openmp"] = true;
#else
    info["openmp"] = false;
#endif
    info["simd"] = simd();
    info["cpu"] = kernels::instructions().name;
    info["cuda_architectures"] = cuda_architectures();
    return info;
}

#ifdef KERNELS_CUDA_ARCHITECTURES

template <typename T>
T* pointer(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

void check(const char* kernel, cudaError_t error) {
    if (error != cudaSuccess)
        throw std::runtime_error(std::string(kernel) + ": CUDA launch failed: " + cudaGetErrorString(error));
}

int cuda_device_count() {
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
    cudaGetLastError();  // no driver is an answer here, and must not show up in the next launch
    return 0;
}

void cuda_preprocess(std::uintptr_t photo, std::int64_t height, std::int64_t width, std::int64_t pitch, bool bgr,
                     std::int64_t size, std::int64_t crop, std::int64_t stride, std::uintptr_t image,
                     std::uintptr_t crops, std::uintptr_t stream) {
    const kernels::Photo source{
        pointer<const std::uint8_t>(photo) + (bgr ? 2 : 0), height, width, pitch, 3, bgr ? -1 : 1};
    check("preprocess", kernels::cuda::preprocess(source, {size, crop, stride}, pointer<float>(image),
                                                  pointer<float>(crops), pointer<CUstream_st>(stream)));
}

void cuda_lga_merge(std::uintptr_t crops, std::uintptr_t full, std::int64_t crops_per_axis, std::int64_t crop_grid,
                    std::int64_t stride, std::int64_t channels, std::uintptr_t merged, std::uintptr_t stream) {
    check("lga_merge",
          kernels::cuda::lga_merge({crops_per_axis, crop_grid, stride, channels}, pointer<const float>(crops),
                                   pointer<const float>(full), pointer<float>(merged), pointer<CUstream_st>(stream)));
}

void cuda_upsample_argmax(std::uintptr_t logits, std::int64_t classes, std::int64_t height, std::int64_t width,
                          std::int64_t out_height, std::int64_t out_width, std::uintptr_t labels, std::uintptr_t scores,
                          std::uintptr_t stream) {
    const auto launch = [&](auto* out) {
        return kernels::cuda::upsample_argmax({classes, height, width}, pointer<const float>(logits),
                                              {out_height, out_width}, out, pointer<float>(scores),
                                              pointer<CUstream_st>(stream));
    };
    check("upsample_argmax",
          classes <= 255 ? launch(pointer<std::uint8_t>(labels)) : launch(pointer<std::uint16_t>(labels)));
}

#endif

}  // namespace

NB_MODULE(_kernels, module) {
    module.def("preprocess", &preprocess, "photo"_a.noconvert(), "crop"_a, "stride"_a, "antialias"_a,
               "image"_a.noconvert(), "crops"_a.noconvert().none());
    module.def("lga_merge", &lga_merge, "crops"_a.noconvert(), "full"_a.noconvert().none(), "crops_per_axis"_a,
               "crop_grid"_a, "stride"_a, "storage"_a, "normalize"_a, "channels_first"_a, "merged"_a.noconvert());
    module.def("upsample_argmax", &upsample_argmax, "logits"_a.noconvert(), "storage"_a, "labels"_a.noconvert(),
               "scores"_a.noconvert().none(), "prune"_a = true);
    module.def("build_info", &build_info);
#ifdef KERNELS_CUDA_ARCHITECTURES
    module.def("cuda_device_count", &cuda_device_count);
    module.def("cuda_preprocess", &cuda_preprocess);
    module.def("cuda_lga_merge", &cuda_lga_merge);
    module.def("cuda_upsample_argmax", &cuda_upsample_argmax);
#endif
}
