// Kernels::integer_tile with 256-bit vectors, for processors without dot-product instructions.
#pragma once

#include <immintrin.h>

#include "kernels/common.hpp"

namespace diba {
namespace {

// |a| * (x with the sign of a): pairs of products stay below 2^15, since no entry is -128.
template <std::size_t kRows>
inline void integer_block_256(const std::int8_t* a, std::size_t stride, std::size_t groups, const std::int8_t* x,
                              std::int32_t* y) {
  const __m256i ones_i16x16 = _mm256_set1_epi16(1);
  __m256i sums[kRows][2];
  for (auto& row : sums) row[0] = row[1] = _mm256_setzero_si256();
  for (std::size_t g = 0; g < groups; ++g) {
    const auto* from = reinterpret_cast<const __m256i*>(x + g * kTile * 4);
    const __m256i x_i8x32[2] = {_mm256_load_si256(from), _mm256_load_si256(from + 1)};
    for (std::size_t r = 0; r < kRows; ++r) {
      std::int32_t four;
      __builtin_memcpy(&four, a + r * stride + 4 * g, sizeof four);
      const __m256i a_i8x32 = _mm256_set1_epi32(four);
      const __m256i size_u8x32 = _mm256_abs_epi8(a_i8x32);
      for (std::size_t v = 0; v < 2; ++v) {
        const __m256i pairs_i16x16 = _mm256_maddubs_epi16(size_u8x32, _mm256_sign_epi8(x_i8x32[v], a_i8x32));
        sums[r][v] = _mm256_add_epi32(sums[r][v], _mm256_madd_epi16(pairs_i16x16, ones_i16x16));
      }
    }
  }
  for (std::size_t r = 0; r < kRows; ++r)
    for (std::size_t v = 0; v < 2; ++v) _mm256_store_si256(reinterpret_cast<__m256i*>(y + r * kTile) + v, sums[r][v]);
}

void integer_tile_256(const std::int8_t* a, std::size_t rows, std::size_t stride, std::size_t groups,
                      const std::int8_t* x, std::int32_t* y) {
  for (std::size_t c = 0; c < kTile; c += 16) {
    std::size_t i = 0;
    for (; i + 4 <= rows; i += 4) integer_block_256<4>(a + i * stride, stride, groups, x + c * 4, y + i * kTile + c);
    for (; i < rows; ++i) integer_block_256<1>(a + i * stride, stride, groups, x + c * 4, y + i * kTile + c);
  }
}

}  // namespace
}  // namespace diba
