// What an array's elements are kept as. Arithmetic is float32 in every case.
#pragma once

namespace kernels {

enum class Storage : int { float32 = 0, float16 = 1, bfloat16 = 2 };

}  // namespace kernels
