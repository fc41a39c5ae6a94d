// Transposition of small squares, in vectors of 16 bytes that every processor has.
#pragma once

#include <cstddef>

namespace diba {

// to(c, i) = from(i, c) for a square of four; rows are `from_stride` and `to_stride` apart.
inline void transpose_4x4(const float* from, std::size_t from_stride, float* to, std::size_t to_stride) {
  typedef float Four __attribute__((vector_size(16), aligned(4)));
  Four rows[4];
  for (std::size_t i = 0; i < 4; ++i) rows[i] = *reinterpret_cast<const Four*>(from + i * from_stride);
  const Four low01 = __builtin_shufflevector(rows[0], rows[1], 0, 4, 1, 5);
  const Four low23 = __builtin_shufflevector(rows[2], rows[3], 0, 4, 1, 5);
  const Four high01 = __builtin_shufflevector(rows[0], rows[1], 2, 6, 3, 7);
  const Four high23 = __builtin_shufflevector(rows[2], rows[3], 2, 6, 3, 7);
  *reinterpret_cast<Four*>(to) = __builtin_shufflevector(low01, low23, 0, 1, 4, 5);
  *reinterpret_cast<Four*>(to + to_stride) = __builtin_shufflevector(low01, low23, 2, 3, 6, 7);
  *reinterpret_cast<Four*>(to + 2 * to_stride) = __builtin_shufflevector(high01, high23, 0, 1, 4, 5);
  *reinterpret_cast<Four*>(to + 3 * to_stride) = __builtin_shufflevector(high01, high23, 2, 3, 6, 7);
}

// to(c, i) = from(i, c) for a contiguous square of kSide, a multiple of four.
template <std::size_t kSide>
void transpose_square(const float* from, float* to) {
  for (std::size_t i = 0; i < kSide; i += 4)
    for (std::size_t c = 0; c < kSide; c += 4) transpose_4x4(from + i * kSide + c, kSide, to + c * kSide + i, kSide);
}

}  // namespace diba
