// Threads, where the work is worth starting them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace kernels {

constexpr double kWorthThreads = 1e6;              // nanoseconds
constexpr std::int64_t kWorthStreaming = 8 << 20;  // bytes: more than a core's caches hold

// Calls do_part(first, last, scratch) for consecutive parts of [0, count), each `part` long. The result must not depend
// on which thread does which. `scratch` elements of T are the thread's own.
template <typename T, typename DoPart>
void for_parts(std::int64_t count, std::int64_t part, [[maybe_unused]] double nanoseconds, std::int64_t scratch,
               DoPart do_part) {
    const std::int64_t parts = (count + part - 1) / part;
#pragma omp parallel if (nanoseconds > kWorthThreads && parts > 1)
    {
        std::vector<T> own(static_cast<std::size_t>(scratch));
#pragma omp for schedule(dynamic)
        for (std::int64_t i = 0; i < parts; ++i) do_part(i * part, std::min((i + 1) * part, count), own.data());
    }
}

}  // namespace kernels
