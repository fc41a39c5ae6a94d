// Which instruction set runs: asked once, overridden by DIBA_ISA or select().
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.hpp"

namespace diba {

// Names of the instruction sets that this build and this processor support, best first; the last is "scalar".
std::vector<std::string> supported();

// The table in use. The first call picks DIBA_ISA if it is set, else the best supported one; it throws
// std::invalid_argument, listing the valid names, when DIBA_ISA names none of them.
const Kernels& active();

// Use the named table from now on (tests, benchmarks). Throws std::invalid_argument as active() does.
void select(const std::string& name);

}  // namespace diba
