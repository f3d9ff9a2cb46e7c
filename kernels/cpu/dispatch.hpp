// Which of the compiled instruction sets this process uses.
#pragma once

#include <string>
#include <vector>

#include "plan.hpp"

namespace kernels {

// The best that this processor has, or the one named by DINOV3SEG_CPU.
// Throws std::invalid_argument where that one was not compiled in or the processor does not have it.
const Instructions& instructions();

// For the calls that begin from now on, so that a benchmark can compare them in one process. Throws as above.
void use_instructions(const std::string& name);

std::vector<std::string> compiled_instructions();  // best first

}  // namespace kernels
