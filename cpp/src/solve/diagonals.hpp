// The inner diagonal in closed form, from Gram matrices and correlations only, all sums in float64.
//
// The model is A ~ L diag(d2) R^T with L = diag(scale) B. The objective |A - L diag(d2) R^T|^2 is
//   |A|^2 - 2 c^T d2 + d2^T M d2   with   M = (L^T L) o (R^T R)   and   c = diag(L^T A R).
// (The scales of rows and columns are fitted where their residuals are made: residual_correlations in greedy.hpp.)
#pragma once

#include <cstddef>

#include "layout/bit_matrix.hpp"

namespace diba {

// |x|^2
double energy(const float* x, std::size_t count);

// d^T (gram_left o gram_right) d: |L diag(d) R^T|^2, for gram_left, gram_right (k, k) = L^T L and R^T R; d (k).
double product_energy(const float* gram_left, const float* gram_right, const float* d, std::size_t k);

// <L diag(d) R^T, A> for L = diag(scale) B; correlations (rows, k) = A R, bits, scale (rows): L, d (k).
double product_along(BitView bits, bool signs, const float* scale, const float* correlations, const float* d);

// Sets d2 (k) to the solution of M d2 = c, or leaves it where rounding would make it worse, and returns the objective.
// gram_left, gram_right (k, k) = L^T L and R^T R; correlations (rows, k) = A R; bits, scale (rows): L; k = bits.cols.
// A component that the ones before it can replace, up to float32 rounding, gets 0.
double fit_inner(const float* gram_left, const float* gram_right, const float* correlations, BitView bits, bool signs,
                 const float* scale, double energy, float* d2, int threads);

}  // namespace diba
