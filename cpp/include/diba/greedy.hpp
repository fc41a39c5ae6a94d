// The hot loop of DiBA-Greedy (Ono, arXiv 2605.05994): exact one-bit improvement tests on independent rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "diba/bit_matrix.hpp"

namespace diba {

struct FlipResult {
  std::uint64_t flips;
  double decrease;  // of the objective, summed over rows in order
};

// Lowers sum_i |a_i - d_i b_i C|^2 over the bits of every row until no single flip helps.
// gram (k, k) = C C^T; correlations (rows, k) = C r_i, kept up to date; scale (rows) = d_i; k = bits.cols.
// Best flip of the row first (the published order), or in cyclic order of the bits.
FlipResult greedy_rows(const float* gram, float* correlations, const float* scale, MutableBitView bits, bool signs,
                       bool cyclic, int threads);

}  // namespace diba
