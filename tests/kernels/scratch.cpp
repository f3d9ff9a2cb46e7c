// How much heap a CPU kernel holds at a time: the most bytes, on standard output. Built without OpenMP, so that the one
// thread has its scratch and the tables that all threads would share. tests/kernels/test_scratch.py builds and drives
// it.
#include <malloc.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include "dispatch.hpp"

namespace {

std::size_t held = 0, most = 0;

// Inputs and results, which are not counted.
void* zeros(std::int64_t bytes) {
    void* const memory = std::calloc(1, static_cast<std::size_t>(bytes));
    if (!memory) std::exit(3);
    return memory;
}

using Numbers = std::vector<std::int64_t>;

// crops per axis, crop grid, stride, channels, normalize, channels first
void lga_merge(const Numbers& a) {
    const kernels::TokenGrid tokens{a[0], a[1], a[2], a[3]};
    const kernels::MergeOptions options{kernels::Storage::float32, a[4] != 0, a[5] != 0};
    const std::int64_t whole = tokens.grid() * tokens.grid() * a[3] * 4;
    kernels::lga_merge(tokens, options, zeros(a[0] * a[0] * a[1] * a[1] * a[3] * 4), zeros(whole), zeros(whole));
}

// K, h, w, H, W
void upsample_argmax(const Numbers& a) {
    const kernels::Logits logits{
        {a[0], a[1], a[2]}, kernels::Storage::float32, zeros(a[0] * a[1] * a[2] * 4), a[1] * a[2], a[2]};
    float* const scores = static_cast<float*>(zeros(a[3] * a[4] * 4));
    kernels::upsample_argmax(logits, {{a[3], a[4]}, 2, zeros(a[3] * a[4] * 2), scores});
}

// H, W, size, antialias, bytes a pixel: 3, 4, or 1 for three planes
void preprocess(const Numbers& a) {
    const std::int64_t pixel = a[4], row = pixel * a[1], channel = pixel == 1 ? a[0] * row : 1;
    const auto* const pixels = static_cast<const std::uint8_t*>(zeros(3 * channel + a[0] * row));
    const kernels::Photo photo{pixels, a[0], a[1], row, pixel, channel};
    kernels::preprocess(photo, {a[2], 0, 1}, {kernels::Storage::float16, a[3] != 0}, zeros(6 * a[2] * a[2]), nullptr);
}

}  // namespace

void* operator new(std::size_t size) {
    void* const memory = std::malloc(size);
    if (!memory) throw std::bad_alloc();
    held += malloc_usable_size(memory);
    most = std::max(most, held);
    return memory;
}

void operator delete(void* memory) noexcept {
    if (memory) held -= malloc_usable_size(memory);
    std::free(memory);
}

void operator delete(void* memory, std::size_t) noexcept { operator delete(memory); }

int main(int count, char** words) {
    const std::string kernel = count > 1 ? words[1] : "";
    Numbers numbers;
    for (int i = 2; i < count; ++i) numbers.push_back(std::atoll(words[i]));
    kernels::instructions();
    const std::size_t before = held;
    most = held;
    if (kernel == "lga_merge")
        lga_merge(numbers);
    else if (kernel == "upsample_argmax")
        upsample_argmax(numbers);
    else if (kernel == "preprocess")
        preprocess(numbers);
    else
        return 2;
    std::printf("%zu\n", most - before);
}
