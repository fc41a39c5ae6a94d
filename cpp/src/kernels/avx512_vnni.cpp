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

// One vector with rows of 4 bits, four at a time. A lane has the sums of eight columns, of x's high and of its low
// bytes; less what the middle of the codes adds, both fit 16 bits, so that one instruction multiplies them by 256 *
// step and step and adds them up.
constexpr std::size_t kMostColumns = 8192, kTogether = 4, kAhead = 4096;
constexpr std::size_t kStretch = 512;  // columns with at most 16 steps

// -8 times the sums of x over the columns of each lane, 32 bytes for high and 32 for low ones, 64 columns after
// another.
void fill_middles(const std::int8_t* x, std::size_t cols, std::int8_t* middles) {
  const __m256i eight_u8x32 = _mm256_set1_epi8(8);
  for (std::size_t j = 0; j < cols; j += kCodeStep)
    for (std::size_t half = 0; half < 2; ++half) {
      const __m256i sums_i32x8 = DotProducts::eight(eight_u8x32, eight_u8x32, x + 2 * j + half * kCodeStep);
      _mm256_store_si256(reinterpret_cast<__m256i*>(middles + j + 32 * half),
                         _mm256_sub_epi32(_mm256_setzero_si256(), sums_i32x8));
    }
}

// Which steps of a stretch belong to its 64 columns: eight for the first 32 of each, eight for the others.
__m128i order_of_steps(unsigned shift) {
  alignas(16) std::uint8_t order[16];
  for (unsigned place = 0; place < 16; ++place)
    order[place] = static_cast<std::uint8_t>((place % 8 * kCodeStep + place / 8 * 32) >> shift);
  return _mm_load_si128(reinterpret_cast<const __m128i*>(order));
}

__m256i steps_of_stretch(const std::uint8_t* steps, std::size_t count, __m128i order) {
  const auto there = static_cast<__mmask16>(count >= 16 ? 0xFFFF : (1U << count) - 1);
  const __m128i steps_i8x16 = _mm_xor_si128(_mm_maskz_loadu_epi8(there, steps), _mm_set1_epi8(-128));
  return _mm256_cvtepi8_epi16(_mm_shuffle_epi8(steps_i8x16, order));
}

// Returns how many rows from `begin` on are done. Four streams are more than the processor fetches ahead by itself.
std::size_t one_vector(const CodeRows& rows, std::size_t begin, std::size_t end, const std::int16_t* x_i16,
                       std::int32_t* sums) {
  alignas(64) std::int8_t middles[kMostColumns];
  const auto* x = reinterpret_cast<const std::int8_t*>(x_i16);
  fill_middles(x, rows.cols, middles);
  const std::size_t whole = whole_rows(rows, end), groups = rows.groups();
  const unsigned shift = group_shift(rows);
  const __m128i order = order_of_steps(shift);
  const __m256i nibble = _mm256_set1_epi8(15), next = _mm256_set1_epi32(0x02000202);
  // A lane of 32 bits gets a step as a word, and its low byte again as the high byte of the other word.
  const __m256i first_words = _mm256_set1_epi32(0x00800100);
  std::size_t i = begin;
  for (; i + kTogether <= whole; i += kTogether) {
    __m256i totals[kTogether], steps_i16x16[kTogether], words = first_words;
    for (__m256i& total : totals) total = _mm256_setzero_si256();
    const std::uint8_t* later = rows.codes + i * rows.code_stride + kAhead;
    for (std::size_t byte = 0; byte < kTogether * rows.code_stride; byte += 64) __builtin_prefetch(later + byte);
    for (std::size_t j = 0; j < rows.cols; j += kCodeStep) {
      if (j % kStretch == 0) {
        const std::size_t group = j >> shift;
        for (std::size_t r = 0; r < kTogether; ++r)
          steps_i16x16[r] = steps_of_stretch(rows.steps + (i + r) * rows.step_stride + group, groups - group, order);
        words = first_words;
      }
      const std::int8_t *high = x + 2 * j, *low = high + kCodeStep;
      for (std::size_t r = 0; r < kTogether; ++r) {
        const auto* codes = reinterpret_cast<const __m256i*>(rows.codes + (i + r) * rows.code_stride + j / 2);
        const __m256i both = _mm256_loadu_si256(codes);
        const __m256i even_u8x32 = _mm256_and_si256(both, nibble);
        const __m256i odd_u8x32 = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
        const auto eight = [&](const std::int8_t* bytes, const std::int8_t* middle) {
          return _mm256_dpbusd_epi32(_mm256_dpbusd_epi32(load(middle), even_u8x32, load(bytes)), odd_u8x32,
                                     load(bytes + 32));
        };
        const __m256i high_i32x8 = eight(high, middles + j), low_i32x8 = eight(low, middles + j + 32);
        const __m256i both_i16x16 = _mm256_blend_epi16(low_i32x8, _mm256_slli_epi32(high_i32x8, 16), 0xAA);
        totals[r] = _mm256_dpwssd_epi32(totals[r], both_i16x16, _mm256_shuffle_epi8(steps_i16x16[r], words));
      }
      words = _mm256_add_epi8(words, next);
    }
    const __m256i sums_i32x8 =
        _mm256_hadd_epi32(_mm256_hadd_epi32(totals[0], totals[1]), _mm256_hadd_epi32(totals[2], totals[3]));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums + i - begin),
                     _mm_add_epi32(_mm256_castsi256_si128(sums_i32x8), _mm256_extracti128_si256(sums_i32x8, 1)));
  }
  return i - begin;
}

}  // namespace

void code_sums_vnni(const CodeRows& rows, std::size_t begin, std::size_t end, const std::int16_t* x, std::size_t count,
                    std::int32_t* sums, std::size_t stride) {
  const std::size_t done =
      count == 1 && rows.bits == 4 && rows.cols <= kMostColumns ? one_vector(rows, begin, end, x, sums) : 0;
  code_sums_of<DotProducts>(rows, begin + done, end, x, count, sums + done, stride);
}

void integer_tile_vnni(const std::int8_t* a, std::size_t rows, std::size_t stride, std::size_t groups,
                       const std::int8_t* x, std::int32_t* y) {
  constexpr std::size_t kBlock = 12;
  std::size_t i = 0;
  for (; i + kBlock <= rows; i += kBlock) integer_block<kBlock>(a + i * stride, stride, groups, x, y + i * kTile);
  for (; i < rows; ++i) integer_block<1>(a + i * stride, stride, groups, x, y + i * kTile);
}

}  // namespace diba
