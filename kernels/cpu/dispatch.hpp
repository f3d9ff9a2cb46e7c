// Which of the compiled instruction sets this process uses.
#pragma once

#include <string>
#include <vector>

#include "plan.hpp"

namespace kernels {

// The best that this processor has, or the one named by DINOV3SEG_CPU.
// Throws std::invalid_argument where that one was not compiled in or the processor does not have it.
const Instructions& instructions();

std::vector<std::string> compiled_instructions();  // best first

}  // namespace kernels
