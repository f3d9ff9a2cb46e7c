// Arrays arrive checked by kernels/__init__.py; here they only become pointers and sizes.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <string>

#include "dispatch.hpp"
#include "lga_merge.hpp"
#include "preprocess.hpp"
#include "upsample_argmax.hpp"

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

void preprocess(const PhotoArray& photo, std::int64_t crop, std::int64_t stride, bool antialias, int storage,
                const Result& image, const Result& crops) {
    const kernels::Photo source{photo.data(),
                                static_cast<std::int64_t>(photo.shape(0)),
                                static_cast<std::int64_t>(photo.shape(1)),
                                static_cast<std::ptrdiff_t>(photo.stride(0)),
                                static_cast<std::ptrdiff_t>(photo.stride(1)),
                                static_cast<std::ptrdiff_t>(photo.stride(2))};
    const kernels::CropGeometry geometry{static_cast<std::int64_t>(image.shape(2)), crop, stride};
    const kernels::PreprocessOptions options{static_cast<kernels::Storage>(storage), antialias};
    const nb::gil_scoped_release unlocked;
    kernels::preprocess(source, geometry, options, image.data(), data_or_null(crops));
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
    return info;
}

}  // namespace

NB_MODULE(_kernels, module) {
    module.def("preprocess", &preprocess, "photo"_a.noconvert(), "crop"_a, "stride"_a, "antialias"_a, "storage"_a,
               "image"_a.noconvert(), "crops"_a.noconvert().none());
    module.def("lga_merge", &lga_merge, "crops"_a.noconvert(), "full"_a.noconvert().none(), "crops_per_axis"_a,
               "crop_grid"_a, "stride"_a, "storage"_a, "normalize"_a, "channels_first"_a, "merged"_a.noconvert());
    module.def("upsample_argmax", &upsample_argmax, "logits"_a.noconvert(), "storage"_a, "labels"_a.noconvert(),
               "scores"_a.noconvert().none(), "prune"_a = true);
    module.def("build_info", &build_info);
    module.def("use_instructions", [](const char* name) { kernels::use_instructions(name); }, "name"_a);
}
