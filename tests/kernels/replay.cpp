// The CPU kernels as a filter: numbers on the command line, arrays on standard input, results on standard output.
// For processors that this machine only emulates; tests/kernels/test_cross.py builds and drives it.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "dispatch.hpp"

namespace {

using Bytes = std::vector<unsigned char>;

Bytes read(std::size_t count) {
    Bytes bytes(count);
    if (std::fread(bytes.data(), 1, count, stdin) != count) std::exit(3);
    return bytes;
}

void write(const void* data, std::size_t count) {
    if (std::fwrite(data, 1, count, stdout) != count) std::exit(4);
}

void lga_merge(const std::vector<std::int64_t>& a) {
    const kernels::TokenGrid tokens{a[0], a[1], a[2], a[3]};
    const kernels::MergeOptions options{static_cast<kernels::Storage>(a[4]), a[5] != 0, a[6] != 0};
    const std::size_t element = a[4] == 0 ? 4 : 2;
    const Bytes crops = read(a[0] * a[0] * a[1] * a[1] * a[3] * element);
    Bytes merged(tokens.grid() * tokens.grid() * a[3] * element);
    const Bytes full = read(a[7] != 0 ? merged.size() : 0);
    kernels::lga_merge(tokens, options, crops.data(), full.empty() ? nullptr : full.data(), merged.data());
    write(merged.data(), merged.size());
}

void upsample_argmax(const std::vector<std::int64_t>& a) {
    const Bytes logits = read(a[0] * a[1] * a[2] * (a[5] == 0 ? 4 : 2));
    Bytes labels(a[3] * a[4] * (a[0] <= 255 ? 1 : 2));
    std::vector<float> scores(a[3] * a[4]);
    kernels::upsample_argmax(
        {{a[0], a[1], a[2]}, static_cast<kernels::Storage>(a[5]), logits.data(), a[1] * a[2], a[2]},
        {{a[3], a[4]}, a[0] <= 255 ? 1 : 2, labels.data(), scores.data()});
    write(labels.data(), labels.size());
    write(scores.data(), scores.size() * sizeof(float));
}

void preprocess(const std::vector<std::int64_t>& a) {
    const Bytes photo = read(a[0] * a[1] * 3);
    const kernels::CropGeometry geometry{a[2], a[3], a[4]};
    const std::size_t element = a[6] == 0 ? 4 : 2;
    Bytes image(3 * a[2] * a[2] * element);
    Bytes crops(geometry.crops_per_axis() * geometry.crops_per_axis() * 3 * a[3] * a[3] * element);
    kernels::preprocess({photo.data(), a[0], a[1], 3 * a[1], 3, 1}, geometry,
                        {static_cast<kernels::Storage>(a[6]), a[5] != 0}, image.data(), crops.data());
    write(image.data(), image.size());
    write(crops.data(), crops.size());
}

}  // namespace

int main(int count, char** words) {
    const std::string kernel = count > 1 ? words[1] : "";
    std::vector<std::int64_t> numbers;
    for (int i = 2; i < count; ++i) numbers.push_back(std::atoll(words[i]));
    if (kernel == "lga_merge")
        lga_merge(numbers);
    else if (kernel == "upsample_argmax")
        upsample_argmax(numbers);
    else if (kernel == "preprocess")
        preprocess(numbers);
    else
        return 2;
}
