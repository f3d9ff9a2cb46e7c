#include "instructions.hpp"

#include "lanes.hpp"

#define KERNELS_TEXT_OF(name) #name
#define KERNELS_TEXT(name) KERNELS_TEXT_OF(name)

namespace kernels {

const Instructions KERNELS_ISA::instructions = {KERNELS_TEXT(KERNELS_ISA), kLanes, &KERNELS_ISA::merge_cells,
                                                &KERNELS_ISA::label_bands, &KERNELS_ISA::resize_rows};

}  // namespace kernels
