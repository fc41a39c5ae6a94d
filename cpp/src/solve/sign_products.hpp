// The products of ADMM's steps with signs S = 2 B - 1: as correlate and gram of product/exact.hpp, but their terms are
// rounded (Kernels::sign_sums_tile), so that they add up as 16-bit integers: the same bytes on every processor.
#pragma once

#include "product/exact.hpp"

namespace diba {

// Y = X^T W S^T with W = diag(weights). x.rows = bits.cols; weights (cols), y (x.cols, rows).
// Error: |y(c, i) - exact| <= 1.01 / 1022 * sum over words of 64 columns j of 64 max |x(j, c) weights(j)|.
void correlate_signs(BitView bits, const TiledMatrix& x, const float* weights, float* y, int threads);

// H = S W S^T with W = diag(weights) >= 0; weights (cols), h (rows, rows), symmetric to the bit. Rounded are the
// weights alone: H is positive semidefinite, but for the rounding of sums of words.
void gram_signs(BitView bits, const float* weights, float* h, int threads);

}  // namespace diba
