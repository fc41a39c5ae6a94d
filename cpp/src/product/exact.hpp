// Exact products with a bit matrix, float32 in and out, sums in float32: y = B x, or S x with S = 2 B - 1 when `signs`.
//
// The kernels know only 0/1: S x = 2 (B x) - sum(x). Rounding: |y - exact| <= cols * eps * sum |x| for B and
// (cols + 2) * eps * sum |x| for S, eps = 2^-23 (rows instead of cols for the transposed products).
#pragma once

#include <cstddef>

#include "kernels/kernels.hpp"
#include "layout/aligned.hpp"
#include "layout/bit_matrix.hpp"

namespace diba {

// x (cols), y (rows)
void matvec(BitView bits, bool signs, const float* x, float* y, int threads);

// y = B^T x; x (rows), y (cols)
void matvec_t(BitView bits, bool signs, const float* x, float* y, int threads);

// Y = B X; x (cols, p), y (rows, p), row-major
void matmul(BitView bits, bool signs, const float* x, std::size_t p, float* y, int threads);

// Y = B^T X; x (rows, p), y (cols, p), row-major
void matmul_t(BitView bits, bool signs, const float* x, std::size_t p, float* y, int threads);

// A dense matrix in the tiles that the products read: made once, multiplied many times.
class TiledMatrix {
 public:
  // x / divisor, a copy. x is row-major: (rows, cols), or (cols, rows) where its transpose is meant.
  TiledMatrix(const float* x, std::size_t rows_, std::size_t cols_, bool transposed = false, float divisor = 1);

  // All zero.
  TiledMatrix(std::size_t rows_, std::size_t cols_);

  const std::size_t rows, cols;
  std::size_t tiles() const { return (cols + kTile - 1) / kTile; }
  const float* tile(std::size_t t) const { return data_.data() + t * tile_floats_; }
  float* tile(std::size_t t) { return data_.data() + t * tile_floats_; }

 private:
  std::size_t tile_floats_;
  AlignedFloats data_;
};

// Y = X^T W B^T with W = diag(weights): correlations of the columns of X with the rows of B.
// x.rows = bits.cols; weights (cols), y (x.cols, rows).
void correlate(BitView bits, bool signs, const TiledMatrix& x, const float* weights, float* y, int threads);

// H = B W B^T with W = diag(weights); weights (cols), h (rows, rows), symmetric to the bit.
void gram(BitView bits, bool signs, const float* weights, float* h, int threads);

}  // namespace diba
