// Products with a square matrix in 8-bit integers: exact sums, so the same bytes on every processor.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.hpp"
#include "layout/aligned.hpp"
#include "product/exact.hpp"

namespace diba {

// A symmetric matrix, its diagonal in float32 and the rest in 8-bit integers with one scale a column.
class QuantizedMatrix {
 public:
  explicit QuantizedMatrix(std::size_t size_);

  // From the tiles of a symmetric matrix (size, size).
  void assign(const TiledMatrix& x, int threads);

  // x + shift I + w w^T; x (size, size), w (size) or null for none.
  void assign(const float* x, float shift, const float* w, int threads);

  // Y = T X; t (rows, size), y (rows, size). Rows of T are rounded to 8 bits, too, except for the products with the
  // diagonal.
  // Error: |y - exact| <= 1.01 / 127 * size * max|t_i| * max|X off the diagonal, column c| + float32 rounding.
  // Scratch: q (rows * padded_bytes(size)), sums (rows * kTile), both 64-byte aligned.
  void multiply(const float* t, std::size_t rows, float* y, std::int8_t* q, std::int32_t* sums) const;

  const std::size_t size;

 private:
  void assign_tile(const TiledMatrix& x, std::size_t t);

  const std::size_t tile_words_;    // four entries a word
  AlignedFloats diagonal_, scale_;  // (padded_cols(size))
  Aligned<std::uint32_t> words_;    // tile by tile, as Kernels::integer_tile reads them
};

// Y = A X in 8-bit integers, with units u for the rows of X, which may lie far apart: A diag(u) and diag(u)^-1 X are
// rounded, the first with one scale a row, the second with one a column. u_j is the root mean square of row j of X.
// a (rows, cols), x (cols, p), y (rows, p), row-major.
// Error: |y - exact| <= 1.01 / 127 * cols * max|a_i u| * max|x_c / u| + float32 rounding.
void multiply_rounded(const float* a, const float* x, std::size_t rows, std::size_t cols, std::size_t p, float* y,
                      int threads);

}  // namespace diba
