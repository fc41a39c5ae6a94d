// The hot loop of DiBA-Greedy (Ono, arXiv 2605.05994): exact one-bit improvement tests on independent rows.
//
// One side of the factorization is A (rows, n) ~ diag(d) B C with C (k, n) fixed. Everything about A and C enters
// through the Gram matrix C C^T and the correlations C a_i.
#pragma once

#include <cstddef>
#include <cstdint>

#include "layout/bit_matrix.hpp"

namespace diba {

struct FlipResult {
  std::uint64_t flips;
  double decrease;  // by how much the objective fell, summed over rows in order
};

// What greedy_rows starts from: residual (rows, k) = C r_i with r_i = a_i - d_i b_i C, for C = diag(inner) X^T.
// `fit` first sets every scale to its best value d_i = <a_i, b_i C> / |b_i C|^2, or to 0 where b_i C is zero. Returns
// by how much that lowers the objective, summed over rows in order. gram (k, k) = C C^T; correlations (rows, k) = X^T
// a_i; inner (k); scale (rows) = d_i, written when `fit`; k = bits.cols.
double residual_correlations(const float* gram, const float* correlations, const float* inner, BitView bits, bool signs,
                             bool fit, float* scale, float* residual, int threads);

// Lowers sum_i |a_i - d_i b_i C|^2 over the bits of every row until no single flip helps.
// gram (k, k) = C C^T; correlations (rows, k) = C r_i, kept up to date; scale (rows) = d_i; k = bits.cols.
// Best flip of the row first, the published order. With `pairs`, until no pair of flips helps either: one flip moves
// the row's sum, which 0/1 factors keep balanced, and a pair can keep it.
FlipResult greedy_rows(const float* gram, float* correlations, const float* scale, MutableBitView bits, bool signs,
                       bool pairs, int threads);

}  // namespace diba
