// Matrices of 8 or 4 bits an entry, W(i, j) = scale(i) * e(i, j) (CodeRows), as embeddings and output layers have them.
#pragma once

#include "kernels/kernels.hpp"
#include "runtime/parallel.hpp"

namespace diba {

// The largest step of a 4-bit row, and the magnitude of e that bounds the activations.
inline constexpr int kLargestStep = 63;
inline constexpr std::int32_t kLargestEntry8 = 128, kLargestEntry4 = 8 * kLargestStep;

// Rows of so many columns are multiplied; longer ones would leave activations too few steps.
inline constexpr std::size_t kCodeMaxCols = std::size_t{1} << 16;

// y(c, i) = (scale(i) * unit(c)) * float(s(c, i)) + bias(i), s being the exact sum of e(i, j) q(c, j) and q(c, j) the
// nearest integer (ties to even) to x(c, j) / unit(c), unit(c) = max |x(c, j)| / steps, steps = min(most,
// (2^31 - 1) / (cols * kLargestEntry)) with most = 32767 at 8 bits and kCodeMost at 4. All y(c, ...) are NaN where an
// x(c, j) is not finite; what is beyond the range of float32 is its largest number. scale (rows), x (count, cols), bias
// (rows) or null, y (count, rows).
void multiply_codes(const CodeRows& rows, const float* scale, const float* x, std::size_t count, const float* bias,
                    float* y, const Executor& executor);

// y(j) = scale(i) * e(i, j), rounded once, within the range of float32; y (cols).
void decode_row(const CodeRows& rows, const float* scale, std::size_t i, float* y);

}  // namespace diba
