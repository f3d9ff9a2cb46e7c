// Enough of CUDA to run the kernels of kernels/cuda on a CPU, as they are, with a plain C++ compiler.
//
// Every CUDA thread of a block is a fibre with its own stack. It runs until it has to wait for others (a barrier, a
// shuffle); when all have got there, all go on. Blocks, and the threads between two barriers, run in random order, so
// that a missing barrier shows as a wrong result; threads that wait at different places end the program. Shared
// memory is filled with 0xFF (NaN) before every block.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("shared_memory")))

extern char __start_shared_memory[], __stop_shared_memory[];  // the linker's names for that section's ends

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
typedef struct CUstream_st* cudaStream_t;

struct uint4 {
    unsigned x, y, z, w;
};
struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    dim3() = default;
    explicit dim3(unsigned x) : x(x) {}
};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    std::size_t dynamicSmemBytes;
    cudaStream_t stream;
};

inline dim3 threadIdx, blockIdx, blockDim;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

namespace emulator {

constexpr std::size_t kStack = 128 << 10;

struct Fibre {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[kStack]};
    int waits_at = 0;  // line of the source; 0: has ended
    float given = 0;   // to a shuffle
};

inline std::vector<Fibre> fibres;
inline ucontext_t scheduler;
inline Fibre* running;
inline std::mt19937 order(1);
inline void (*body)(void*);
inline void* body_arguments;

inline void wait(int line) {
    running->waits_at = line;
    swapcontext(&running->context, &scheduler);
}

inline void run_fibre() {
    body(body_arguments);
    running->waits_at = 0;
}

inline void start(Fibre& fibre) {
    fibre.waits_at = -1;
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.get();
    fibre.context.uc_stack.ss_size = kStack;
    fibre.context.uc_link = &scheduler;
    makecontext(&fibre.context, run_fibre, 0);
}

// All threads of one block, from barrier to barrier.
inline void run_block() {
    std::memset(__start_shared_memory, 0xFF, __stop_shared_memory - __start_shared_memory);
    std::vector<unsigned> threads(blockDim.x);
    std::iota(threads.begin(), threads.end(), 0u);
    for (unsigned thread : threads) start(fibres[thread]);
    while (!threads.empty()) {
        std::shuffle(threads.begin(), threads.end(), order);
        for (unsigned thread : threads) {
            running = &fibres[thread];
            threadIdx = dim3(thread);
            swapcontext(&scheduler, &running->context);
        }
        const auto ended = [](unsigned thread) { return fibres[thread].waits_at == 0; };
        threads.erase(std::remove_if(threads.begin(), threads.end(), ended), threads.end());
        for (unsigned thread : threads)
            if (fibres[thread].waits_at != fibres[threads[0]].waits_at) {
                std::fprintf(stderr, "threads wait at lines %d and %d\n", fibres[thread].waits_at,
                             fibres[threads[0]].waits_at);
                std::abort();
            }
    }
}

inline void run_grid(unsigned blocks, unsigned threads, void (*function)(void*), void* arguments) {
    body = function;
    body_arguments = arguments;
    blockDim = dim3(threads);
    if (fibres.size() < threads) fibres.resize(threads);
    std::vector<unsigned> queue(blocks);
    std::iota(queue.begin(), queue.end(), 0u);
    std::shuffle(queue.begin(), queue.end(), order);
    for (unsigned next : queue) {
        blockIdx = dim3(next);
        run_block();
    }
}

inline float shuffle_xor(float value, int step, int line) {
    const unsigned partner = threadIdx.x ^ static_cast<unsigned>(step);
    running->given = value;
    wait(line);
    const float taken = fibres[partner].given;
    wait(line);  // nobody gives again before all have taken
    return taken;
}

}  // namespace emulator

#define __syncthreads() emulator::wait(__LINE__)
#define __syncwarp() emulator::wait(__LINE__)
#define __shfl_xor_sync(mask, value, step) emulator::shuffle_xor(value, step, __LINE__)

inline int __ffsll(long long value) { return __builtin_ffsll(value); }

template <typename T>
void check_aligned(const T* pointer) {
    if (reinterpret_cast<std::uintptr_t>(pointer) % sizeof(T) == 0) return;
    std::fprintf(stderr, "misaligned vector access\n");
    std::abort();
}

template <typename T>
T __ldg(const T* from) {
    check_aligned(from);
    return *from;
}

template <typename T>
void __stwb(T* to, T value) {
    check_aligned(to);
    *to = value;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
    if (config->gridDim.x == 0 || config->blockDim.x == 0 || config->blockDim.x > 1024)
        return cudaErrorInvalidConfiguration;
    auto call = [&] { kernel(arguments...); };
    emulator::run_grid(
        config->gridDim.x, config->blockDim.x, [](void* it) { (*static_cast<decltype(call)*>(it))(); }, &call);
    return cudaSuccess;
}
