// Kernels::code_sums with 256-bit vectors: codes are widened to 16 bits, and pairs of products added in 32.
#pragma once

#include <immintrin.h>

#include "kernels/code_reader.hpp"

namespace diba {
namespace {

using Codes = __m256i[4];  // 64 columns, in the order of code_place

inline void decode_8(const std::uint8_t* codes, Codes& e) {
  const __m256i middle_i16x16 = _mm256_set1_epi16(128);
  for (std::size_t v = 0; v < 4; ++v) {
    const __m128i codes_u8x16 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes) + v);
    e[v] = _mm256_sub_epi16(_mm256_cvtepu8_epi16(codes_u8x16), middle_i16x16);
  }
}

// Four codes of 16 bits go to four vectors: code - 8 is what flipping the highest of its bits makes of it.
inline void decode_4(const std::uint8_t* codes, std::int16_t step_0, std::int16_t step_1, Codes& e) {
  const __m256i four_u4x64 = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)),
                                              _mm256_set1_epi8(static_cast<char>(0x88)));
  const __m256i steps_i16x16 = _mm256_set_m128i(_mm_set1_epi16(step_1), _mm_set1_epi16(step_0));
  e[0] = _mm256_mullo_epi16(_mm256_srai_epi16(_mm256_slli_epi16(four_u4x64, 12), 12), steps_i16x16);
  e[1] = _mm256_mullo_epi16(_mm256_srai_epi16(_mm256_slli_epi16(four_u4x64, 8), 12), steps_i16x16);
  e[2] = _mm256_mullo_epi16(_mm256_srai_epi16(_mm256_slli_epi16(four_u4x64, 4), 12), steps_i16x16);
  e[3] = _mm256_mullo_epi16(_mm256_srai_epi16(four_u4x64, 12), steps_i16x16);
}

inline std::int32_t total(__m256i sums) {
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}

// Products::add(sums, a, b): sums of pairs of products of 16-bit numbers are added. One vector has four sums, so that
// none waits for the one before it.
template <class Products, int kBits, std::size_t kVectors>
inline void code_sums_block(const CodeRows& rows, std::size_t begin, std::size_t end, const std::int16_t* x,
                            std::int32_t* out, std::size_t stride) {
  constexpr std::size_t kParts = kVectors == 1 ? 4 : kVectors == 2 ? 2 : 1;
  const std::size_t length = padded_codes(rows.cols);
  CodeReader read(rows);
  for (std::size_t i = begin; i < end; ++i) {
    __m256i sums[kVectors][kParts];
    for (auto& parts : sums)
      for (__m256i& sum : parts) sum = _mm256_setzero_si256();
    for (std::size_t j = 0; j < rows.cols; j += kCodeStep) {
      Codes e;
      if (kBits == 8) {
        decode_8(read.codes(i, j), e);
      } else {
        decode_4(read.codes(i, j), read.step(i, j, 0), read.step(i, j, 1), e);
      }
      for (std::size_t c = 0; c < kVectors; ++c)
        for (std::size_t v = 0; v < 4; ++v) {
          const auto* from = reinterpret_cast<const __m256i*>(x + c * length + j) + v;
          sums[c][v % kParts] = Products::add(sums[c][v % kParts], e[v], _mm256_load_si256(from));
        }
    }
    for (std::size_t c = 0; c < kVectors; ++c) {
      for (std::size_t half = kParts / 2; half > 0; half /= 2)
        for (std::size_t p = 0; p < half; ++p) sums[c][p] = _mm256_add_epi32(sums[c][p], sums[c][p + half]);
      out[c * stride + i - begin] = total(sums[c][0]);
    }
  }
}

template <class Products, int kBits>
inline void code_sums_at(const CodeRows& rows, std::size_t begin, std::size_t end, const std::int16_t* x,
                         std::size_t count, std::int32_t* sums, std::size_t stride) {
  const std::size_t length = padded_codes(rows.cols);
  std::size_t c = 0;
  for (; c + 8 <= count; c += 8)
    code_sums_block<Products, kBits, 8>(rows, begin, end, x + c * length, sums + c * stride, stride);
  for (; c + 2 <= count; c += 2)
    code_sums_block<Products, kBits, 2>(rows, begin, end, x + c * length, sums + c * stride, stride);
  for (; c < count; ++c)
    code_sums_block<Products, kBits, 1>(rows, begin, end, x + c * length, sums + c * stride, stride);
}

template <class Products>
void code_sums_of(const CodeRows& rows, std::size_t begin, std::size_t end, const std::int16_t* x, std::size_t count,
                  std::int32_t* sums, std::size_t stride) {
  const auto run = rows.bits == 8 ? code_sums_at<Products, 8> : code_sums_at<Products, 4>;
  run(rows, begin, end, x, count, sums, stride);
}

struct PairProducts {
  static __m256i add(__m256i sums, __m256i a, __m256i b) { return _mm256_add_epi32(sums, _mm256_madd_epi16(a, b)); }
};

[[maybe_unused]] void code_sums_256(const CodeRows& rows, std::size_t begin, std::size_t end, const std::int16_t* x,
                                    std::size_t count, std::int32_t* sums, std::size_t stride) {
  code_sums_of<PairProducts>(rows, begin, end, x, count, sums, stride);
}

}  // namespace
}  // namespace diba
