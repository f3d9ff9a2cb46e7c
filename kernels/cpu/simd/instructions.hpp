// What each instruction set provides. KERNELS_ISA is its name, given on the compiler's command line.
#pragma once

#include "plan.hpp"

namespace kernels::KERNELS_ISA {

extern const Instructions instructions;

void merge_cells(const MergePlan& plan, std::int64_t first, std::int64_t last, float* scratch);
void label_bands(const ArgmaxPlan& plan, std::int64_t first, std::int64_t last);
void resize_rows(const ResizePlan& plan, std::int64_t first, std::int64_t last, unsigned char* scratch);

}  // namespace kernels::KERNELS_ISA
