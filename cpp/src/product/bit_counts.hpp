// Exact products of rows of numbers of one or two bits: Y = A B^T in 32-bit integers.
//
// A number of b bits is 2 u - (2^b - 1) with 0 <= u < 2^b: -1, 1 or -3, -1, 1, 3. So
//   sum a b' = 4 sum u v - 2 (2^q - 1) sum u - 2 (2^p - 1) sum v + n (2^p - 1) (2^q - 1)
// with p and q bits, and the sums of u v are those of the ones that planes of bits have in common.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/parallel.hpp"

namespace diba {

// Rows of numbers: `bits` planes one after another, the low bits first, each of rows * words_for(cols) words, zero past
// the last column.
struct BitNumbers {
  const std::uint64_t* words;
  std::size_t rows, cols;
  int bits;
};

// y (a.rows, b.rows), row-major. a.cols == b.cols, at most kMostCountedCols.
void bit_products(const BitNumbers& a, const BitNumbers& b, std::int32_t* y, int threads);

// Rows of floats as numbers of `bits` bits times a step: a number is the nearest, the one below in the middle between
// two. So u counts the thresholds below x(j): 0 with one bit; -2, 0 and 2 steps with two. x (rows, cols), row-major and
// finite; words: planes as of BitNumbers; steps (rows): given, or found (and then written) if `found`: with one bit the
// mean of |x|, with two kNormalStep of the root mean square, so that rows of zeros have a step of zero.
void round_rows(const float* x, std::size_t rows, std::size_t cols, int bits, bool found, float* steps,
                std::uint64_t* words, int threads);

// Layers: every row of X (count, weight.cols) is rounded to numbers of `bits` bits times a step that is found, and
// becomes the row of Y (count, weight.rows) with step * scale(i) * (its numbers by those of row i of the weight) +
// bias(i), one operation in float32 after the other. scale (weight.rows); bias: null, or (weight.rows). X is finite.
void bit_linear(const BitNumbers& weight, const float* scale, const float* bias, int bits, const float* x,
                std::size_t count, float* y, const Executor& executor);

inline constexpr double kNormalStep = 0.4979;  // of least error for a normal variable and four levels (Max, 1960)
inline constexpr std::size_t kMostCountedCols = std::size_t{1} << 27;  // 9 * 2^27 fits 32 bits

}  // namespace diba
