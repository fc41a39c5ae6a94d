// What AVX-512 VNNI adds to avx512.cpp: sums of four products of bytes in one instruction. Same bytes as scalar.cpp.

#include <immintrin.h>

#include "kernels/codes_256.hpp"

#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512VL__) || !defined(__AVX512VNNI__)
#error "avx512_vnni.cpp needs -mavx512f -mavx512bw -mavx512vl -mavx512vnni"
#endif

namespace diba {
namespace {

constexpr std::size_t kLanes = 16;

// The instruction takes one unsigned operand, so it gets x + 128; the surplus, 128 times the sum of a, is subtracted.
template <std::size_t kRows>
inline void integer_block(const std::int8_t* a, std::size_t stride, std::size_t groups, const std::int8_t* x,
                          std::int32_t* y) {
  const __m512i offset_u8x64 = _mm512_set1_epi8(-128);
  __m512i sums[kRows][2];
  __m512i surplus[kRows];
  for (std::size_t r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = surplus[r] = _mm512_setzero_si512();
  for (std::size_t g = 0; g < groups; ++g) {
    const __m512i x0_u8x64 = _mm512_xor_si512(_mm512_load_si512(x + g * kTile * 4), offset_u8x64);
    const __m512i x1_u8x64 = _mm512_xor_si512(_mm512_load_si512(x + g * kTile * 4 + 64), offset_u8x64);
    for (std::size_t r = 0; r < kRows; ++r) {
      std::int32_t four;
      __builtin_memcpy(&four, a + r * stride + 4 * g, sizeof four);
      const __m512i a_i8x64 = _mm512_set1_epi32(four);
      sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], x0_u8x64, a_i8x64);
      sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], x1_u8x64, a_i8x64);
    }
  }
  for (std::size_t r = 0; r < kRows; ++r) {
    std::size_t j = 0;
    for (; j + 64 <= 4 * groups; j += 64)
      surplus[r] = _mm512_dpbusd_epi32(surplus[r], offset_u8x64, _mm512_loadu_si512(a + r * stride + j));
    const auto rest = static_cast<__mmask64>((std::uint64_t{1} << (4 * groups - j)) - 1);
    surplus[r] = _mm512_dpbusd_epi32(surplus[r], offset_u8x64, _mm512_maskz_loadu_epi8(rest, a + r * stride + j));
    const __m512i total_i32x16 = _mm512_set1_epi32(_mm512_reduce_add_epi32(surplus[r]));
    for (std::size_t v = 0; v < 2; ++v)
      _mm512_store_si512(y + r * kTile + v * kLanes, _mm512_sub_epi32(sums[r][v], total_i32x16));
  }
}

struct DotProducts {
  static __m256i pairs(__m256i sums, __m256i a, __m256i b) { return _mm256_dpwssd_epi32(sums, a, b); }

  struct Sums {
    __m256i sum = _mm256_setzero_si256();
    __m256i whole() const { return sum; }
  };
  static __m256i steps(std::int32_t first, std::int32_t last) {
    return _mm256_set_m128i(_mm_set1_epi32(last), _mm_set1_epi32(first));
  }
  static __m256i eight(__m256i even_u8x32, __m256i odd_u8x32, const std::int8_t* x) {
    return _mm256_dpbusd_epi32(_mm256_dpbusd_epi32(_mm256_setzero_si256(), even_u8x32, load(x)), odd_u8x32,
                               load(x + 32));
  }
  static void add_step(Sums& sums, __m256i even_u8x32, __m256i odd_u8x32, __m256i steps_i32x8, const void* x) {
    const auto* bytes = static_cast<const std::int8_t*>(x);
    const __m256i high = _mm256_slli_epi32(eight(even_u8x32, odd_u8x32, bytes), 8);
    const __m256i low = eight(even_u8x32, odd_u8x32, bytes + kCodeStep);
    sums.sum = _mm256_add_epi32(sums.sum, _mm256_mullo_epi32(_mm256_add_epi32(high, low), steps_i32x8));
  }
};

}  // namespace

void code_sums_vnni(const CodeRows& rows, std::size_t begin, std::size_t end, const std::int16_t* x, std::size_t count,
                    std::int32_t* sums, std::size_t stride) {
  code_sums_of<DotProducts>(rows, begin, end, x, count, sums, stride);
}

void integer_tile_vnni(const std::int8_t* a, std::size_t rows, std::size_t stride, std::size_t groups,
                       const std::int8_t* x, std::int32_t* y) {
  constexpr std::size_t kBlock = 12;
  std::size_t i = 0;
  for (; i + kBlock <= rows; i += kBlock) integer_block<kBlock>(a + i * stride, stride, groups, x, y + i * kTile);
  for (; i < rows; ++i) integer_block<1>(a + i * stride, stride, groups, x, y + i * kTile);
}

}  // namespace diba
