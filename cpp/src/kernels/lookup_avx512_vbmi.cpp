// Lookup kernels for AVX-512 with VBMI and VNNI: one instruction looks up 64 entries in four tables, one adds four
// weighted entries to the sum of their row. Same bytes as lookup_scalar.cpp.

#include <immintrin.h>

#include "kernels/lookup_common.hpp"

#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512VBMI__) || !defined(__AVX512VNNI__)
#error "lookup_avx512_vbmi.cpp needs -mavx512f -mavx512bw -mavx512vbmi -mavx512vnni"
#endif

namespace diba {
namespace {

inline __m512i four_weights(const std::uint8_t* weights) {
  std::int32_t four;
  __builtin_memcpy(&four, weights, sizeof four);
  return _mm512_set1_epi32(four);
}

struct Block {
  template <std::size_t kTiles, std::size_t kColumns>
  static void run(const LookupSource& b, const LookupTables* x, const LookupSums& y) {
    const __m512i low_bits = _mm512_set1_epi8(15);
    const __m512i table_of_byte = _mm512_set1_epi32(0x30201000);  // where the table of each byte begins
    constexpr int kAndOr = 0xEA;                                  // (a & b) | c
    __m512i sums_i32x16[kTiles][kColumns];
    for (auto& of_tile : sums_i32x16)
      for (__m512i& sum : of_tile) sum = _mm512_setzero_si512();
    for (std::size_t s = 0; s < b.steps; ++s) {
      for (std::size_t t = 0; t < kTiles; ++t) {
        const std::uint8_t* words = b.step(TileLayout::kHalfWords, t, s);
        fetch_ahead<kColumns>(b, words);
        const __m512i half_words = _mm512_load_si512(words);
        const __m512i low = _mm512_ternarylogic_epi32(half_words, low_bits, table_of_byte, kAndOr);
        const __m512i high =
            _mm512_ternarylogic_epi32(_mm512_srli_epi16(half_words, 4), low_bits, table_of_byte, kAndOr);
        for (std::size_t c = 0; c < kColumns; ++c) {
          const std::uint8_t* entries = x[c].entries + s * kStepEntries;
          const std::uint8_t* weights = x[c].weights + s * kStepWeights;
          const __m512i of_low = _mm512_permutexvar_epi8(low, _mm512_load_si512(entries));
          const __m512i of_high = _mm512_permutexvar_epi8(high, _mm512_load_si512(entries + kOddEntries));
          sums_i32x16[t][c] = _mm512_dpbusd_epi32(sums_i32x16[t][c], of_low, four_weights(weights));
          sums_i32x16[t][c] = _mm512_dpbusd_epi32(sums_i32x16[t][c], of_high, four_weights(weights + 4));
        }
      }
    }
    for (std::size_t t = 0; t < kTiles; ++t)
      for (std::size_t c = 0; c < kColumns; ++c)
        _mm512_store_si512(y.data + c * y.stride + t * kTileRows, sums_i32x16[t][c]);
  }
};

}  // namespace

const LookupKernels kLookupAvx512Vbmi = {"avx512vbmi", TileLayout::kHalfWords, tabulate_avx512, look_up<Block>, finish};

}  // namespace diba
