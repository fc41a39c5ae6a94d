// Kernels::code_sums with 256-bit vectors. Codes are multiplied as they are, around a middle that is not zero; what
// this adds to a sum comes with x.
#pragma once

#include <immintrin.h>

#include "kernels/code_rows.hpp"

namespace diba {
namespace {

inline std::int32_t total(__m256i sums) {
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}

inline __m256i load(const void* from) { return _mm256_load_si256(static_cast<const __m256i*>(from)); }

// Products::pairs adds the products of pairs of 16-bit numbers to 32-bit sums. One vector has four sums, so that none
// waits for the one before it.
template <class Products, std::size_t kVectors>
void code_sums_8(const CodeRows& rows, std::size_t begin, std::size_t end, const std::int16_t* x, std::int32_t* out,
                 std::size_t stride) {
  constexpr std::size_t kParts = kVectors == 1 ? 4 : kVectors == 2 ? 2 : 1;
  const std::size_t length = CodeVector::length(rows);
  for (std::size_t i = begin; i < end; ++i) {
    const std::uint8_t* row = rows.codes + i * rows.code_stride;
    __m256i sums[kVectors][kParts];
    for (auto& parts : sums)
      for (__m256i& sum : parts) sum = _mm256_setzero_si256();
    for (std::size_t j = 0; j < rows.cols; j += kCodeStep) {
      const auto* codes = reinterpret_cast<const __m128i*>(row + j);
      __m256i codes_i16x16[4];
      for (std::size_t v = 0; v < 4; ++v) codes_i16x16[v] = _mm256_cvtepu8_epi16(_mm_loadu_si128(codes + v));
      for (std::size_t c = 0; c < kVectors; ++c)
        for (std::size_t v = 0; v < 4; ++v)
          sums[c][v % kParts] =
              Products::pairs(sums[c][v % kParts], codes_i16x16[v], load(x + c * length + j + 16 * v));
    }
    for (std::size_t c = 0; c < kVectors; ++c) {
      for (std::size_t half = kParts / 2; half > 0; half /= 2)
        for (std::size_t p = 0; p < half; ++p) sums[c][p] = _mm256_add_epi32(sums[c][p], sums[c][p + half]);
      const __m256i offset = load(code_offsets(x + c * length, rows));
      out[c * stride + i - begin] = total(_mm256_sub_epi32(sums[c][0], offset));
    }
  }
}

// Products::add_step adds step * (256 high + low) of 64 columns to sums.
template <class Products, std::size_t kVectors>
void code_sums_4(const CodeRows& rows, std::size_t begin, std::size_t end, const std::int16_t* x, std::int32_t* out,
                 std::size_t stride) {
  const std::size_t length = CodeVector::length(rows), offsets = CodeVector::offsets(rows);
  const __m256i nibble = _mm256_set1_epi8(15), middle_i32x8 = _mm256_set1_epi32(128);
  const unsigned shift = group_shift(rows);
  for (std::size_t i = begin; i < end; ++i) {
    const std::uint8_t* row = rows.codes + i * rows.code_stride;
    const std::uint8_t* row_steps = rows.steps + i * rows.step_stride;
    typename Products::Sums sums[kVectors];
    for (std::size_t j = 0; j < rows.cols; j += kCodeStep) {
      const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + j / 2));
      const __m256i even_u8x32 = _mm256_and_si256(both, nibble);
      const __m256i odd_u8x32 = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
      const auto steps = Products::steps(row_steps[j >> shift] - 128, row_steps[(j + 32) >> shift] - 128);
      for (std::size_t c = 0; c < kVectors; ++c)
        Products::add_step(sums[c], even_u8x32, odd_u8x32, steps, x + c * length + j);
    }
    __m256i totals[kVectors];
    for (std::size_t c = 0; c < kVectors; ++c) totals[c] = sums[c].whole();
    for (std::size_t g = 0; g < offsets; g += 8) {
      const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row_steps + g));
      const __m256i steps_i32x8 = _mm256_sub_epi32(_mm256_cvtepu8_epi32(eight), middle_i32x8);
      for (std::size_t c = 0; c < kVectors; ++c) {
        const __m256i offset = load(code_offsets(x + c * length, rows) + g);
        totals[c] = _mm256_sub_epi32(totals[c], _mm256_mullo_epi32(steps_i32x8, offset));
      }
    }
    for (std::size_t c = 0; c < kVectors; ++c) out[c * stride + i - begin] = total(totals[c]);
  }
}

template <class Products>
void code_sums_of(const CodeRows& rows, std::size_t begin, std::size_t end, const std::int16_t* x, std::size_t count,
                  std::int32_t* sums, std::size_t stride) {
  const std::size_t length = CodeVector::length(rows);
  const bool eight = rows.bits == 8;
  const std::size_t whole = whole_rows(rows, end);
  std::size_t c = 0;
  const auto run = [&](auto block, std::size_t vectors) {
    for (; c + vectors <= count; c += vectors) block(rows, begin, whole, x + c * length, sums + c * stride, stride);
  };
  if (eight) run(code_sums_8<Products, 8>, 8);
  run(eight ? code_sums_8<Products, 4> : code_sums_4<Products, 4>, 4);
  run(eight ? code_sums_8<Products, 2> : code_sums_4<Products, 2>, 2);
  run(eight ? code_sums_8<Products, 1> : code_sums_4<Products, 1>, 1);
  for (std::size_t i = whole < begin ? begin : whole; i < end; ++i)
    code_sums_of_row(rows, i, x, count, sums + i - begin, stride);
}

struct PairProducts {
  static __m256i pairs(__m256i sums, __m256i a, __m256i b) { return _mm256_add_epi32(sums, _mm256_madd_epi16(a, b)); }

  struct Sums {
    __m256i high = _mm256_setzero_si256(), low = _mm256_setzero_si256();
    __m256i whole() const { return _mm256_add_epi32(_mm256_slli_epi32(high, 8), low); }
  };
  static __m256i steps(std::int32_t first, std::int32_t last) {
    return _mm256_set_m128i(_mm_set1_epi16(static_cast<std::int16_t>(last)),
                            _mm_set1_epi16(static_cast<std::int16_t>(first)));
  }
  // Two products of a code and a byte, and two more, are far below 2^15.
  static __m256i four(__m256i even_u8x32, __m256i odd_u8x32, const std::int8_t* x) {
    return _mm256_add_epi16(_mm256_maddubs_epi16(even_u8x32, load(x)), _mm256_maddubs_epi16(odd_u8x32, load(x + 32)));
  }
  static void add_step(Sums& sums, __m256i even_u8x32, __m256i odd_u8x32, __m256i steps_i16x16, const void* x) {
    const auto* bytes = static_cast<const std::int8_t*>(x);
    sums.high = pairs(sums.high, four(even_u8x32, odd_u8x32, bytes), steps_i16x16);
    sums.low = pairs(sums.low, four(even_u8x32, odd_u8x32, bytes + kCodeStep), steps_i16x16);
  }
};

[[maybe_unused]] void code_sums_256(const CodeRows& rows, std::size_t begin, std::size_t end, const std::int16_t* x,
                                    std::size_t count, std::int32_t* sums, std::size_t stride) {
  code_sums_of<PairProducts>(rows, begin, end, x, count, sums, stride);
}

}  // namespace
}  // namespace diba
