#include "dispatch.hpp"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

// One line for each instruction set that CMakeLists.txt compiles for.
#define KERNELS_DECLARE(name)               \
    namespace kernels::name {               \
    extern const Instructions instructions; \
    }
#if defined(KERNELS_X86)
KERNELS_DECLARE(avx512)
KERNELS_DECLARE(avx2)
#endif
KERNELS_DECLARE(KERNELS_BASELINE)

namespace kernels {
namespace {

struct Choice {
    const Instructions* instructions;
    bool available;
};

std::vector<Choice> choices() {
    std::vector<Choice> found;
#if defined(KERNELS_X86)
    __builtin_cpu_init();
    found.push_back({&avx512::instructions, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                                __builtin_cpu_supports("avx512vl") &&
                                                __builtin_cpu_supports("avx512dq")});
    found.push_back({&avx2::instructions, __builtin_cpu_supports("avx2") != 0});  // with it always comes F16C
#endif
    found.push_back({&KERNELS_BASELINE::instructions, true});
    return found;
}

// `asked_by` names who wants it, for the message.
const Instructions* choose(const std::string& asked_by, const char* wanted) {
    std::string available;
    for (const Choice& choice : choices()) {
        if (!choice.available) continue;
        if (!wanted || !*wanted || choice.instructions->name == std::string(wanted)) return choice.instructions;
        available += (available.empty() ? "" : ", ") + std::string(choice.instructions->name);
    }
    throw std::invalid_argument(asked_by + ": got '" + std::string(wanted) +
                                "', expected one of those that this processor has: " + available);
}

std::atomic<const Instructions*>& in_use() {
    static std::atomic<const Instructions*> chosen{choose("DINOV3SEG_CPU", std::getenv("DINOV3SEG_CPU"))};
    return chosen;
}

}  // namespace

const Instructions& instructions() { return *in_use(); }

void use_instructions(const std::string& name) { in_use() = choose("instructions", name.c_str()); }

std::vector<std::string> compiled_instructions() {
    std::vector<std::string> names;
    for (const Choice& choice : choices()) names.emplace_back(choice.instructions->name);
    return names;
}

}  // namespace kernels
