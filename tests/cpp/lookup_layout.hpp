// What the tests of the lookup kernels share.
#pragma once

#include "data.hpp"
#include "kernels/kernels.hpp"
#include "runtime/dispatch.hpp"

namespace lookup {

inline const diba::LookupKernels& kernels() { return *diba::active().lookup; }

// Where the table of a group lies among the tables, and its weight among the weights.
inline std::size_t place(std::size_t group) { return group / 8 * 8 + group % 2 * 4 + group % 8 / 2; }

// The columns of a group that are set in row i, lowest bit first.
inline unsigned chosen(diba::BitView bits, std::size_t i, std::size_t group) {
  unsigned b = 0;
  for (unsigned j = 0; j < 4; ++j) b |= static_cast<unsigned>(data::bit(bits, i, 4 * group + j)) << j;
  return b;
}

}  // namespace lookup
