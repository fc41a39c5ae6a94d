// What the kernel files share. Everything here has internal linkage: each file compiles its own copy with its own
// flags, and the linker never chooses between copies.
#pragma once

#include "kernels/kernels.hpp"

namespace diba {
namespace {

inline std::size_t smaller(std::size_t a, std::size_t b) { return a < b ? a : b; }

// Half `h` of the bits of a row: columns 32 h .. 32 h + 31.
inline std::uint32_t half_word(const std::uint64_t* row, std::size_t h) {
  return static_cast<std::uint32_t>(row[h / 2] >> (kHalfBits * (h % 2)));
}

}  // namespace
}  // namespace diba
