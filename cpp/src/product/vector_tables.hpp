// Lookup tables of vectors that are multiplied together.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/lookup.hpp"

namespace diba {

inline constexpr std::size_t kMostTogether = 64;  // vectors: their tables' heads and their sums are on the stack

// Tables of some vectors of `cols` entries, in bytes_for(cols, count) bytes of 64-byte aligned memory.
class VectorTables {
 public:
  VectorTables(std::size_t cols, std::size_t count, std::uint8_t* memory)
      : cols_(cols), scaled_(reinterpret_cast<float*>(memory + count * table_bytes(cols))) {
    for (std::size_t c = 0; c < count; ++c) {
      std::uint8_t* entries = memory + c * table_bytes(cols);
      tables_[c] = {entries, entries + steps_for(cols) * kStepEntries, 0.0F, 0, 0.0F};
    }
  }
  static std::size_t bytes_for(std::size_t cols, std::size_t count) {
    return count * (table_bytes(cols) + scratch_floats(cols) * sizeof(float));
  }

  void fill(const LookupKernels& kernels, std::size_t c, const float* x, const float* d) {
    kernels.tabulate(x, d, cols_, scaled_ + c * scratch_floats(cols_), &tables_[c]);
  }

  const LookupTables* data() const { return tables_; }
  float total(std::size_t c) const { return tables_[c].total; }
  std::size_t steps() const { return steps_for(cols_); }

 private:
  static std::size_t table_bytes(std::size_t cols) {
    const std::size_t weights = (steps_for(cols) * kStepWeights + 63) / 64 * 64;  // whole cache lines
    return steps_for(cols) * kStepEntries + weights;
  }

  std::size_t cols_;
  float* scaled_;
  LookupTables tables_[kMostTogether];
};

}  // namespace diba
