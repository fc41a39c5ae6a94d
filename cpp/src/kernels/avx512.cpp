// AVX-512 F, BW, DQ, VL: 16 lanes of float32, bits used directly as mask registers. Same bytes as scalar.cpp.

#include <immintrin.h>

#include "kernels/codes_256.hpp"
#include "kernels/integer_256.hpp"
#include "kernels/sparse_256.hpp"

#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512DQ__) || !defined(__AVX512VL__)
#error "avx512.cpp needs -mavx512f -mavx512bw -mavx512dq -mavx512vl"
#endif

namespace diba {
namespace {

struct Vector {
  using Floats = __m512;
  using Doubles = __m512d;
  using Shorts = __m512i;
  using Mask = __mmask16;
  static constexpr std::size_t kLanes = 16, kDoubles = 8, kColumnWords = 4, kFusedRows = 12;
  static constexpr bool kBitsSelect = true;

  static Floats set1(float x) { return _mm512_set1_ps(x); }
  static Floats load(const float* x) { return _mm512_load_ps(x); }
  static Floats load_any(const float* x) { return _mm512_loadu_ps(x); }
  static void store(float* x, Floats a) { _mm512_store_ps(x, a); }
  static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
  static Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
  static Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static unsigned greater(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  static unsigned equal(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
  static Floats select(Mask mask, Floats zero, Floats one) { return _mm512_mask_blend_ps(mask, zero, one); }
  static Floats add_where(Floats sum, Mask mask, Floats x) { return _mm512_mask_add_ps(sum, mask, sum, x); }

  static Mask lanes(std::uint64_t word, std::size_t v) { return static_cast<Mask>(word >> (kLanes * v)); }
  static Floats load_first(const float* x, std::size_t count) { return _mm512_maskz_loadu_ps(first_lanes(count), x); }
  static void store_first(float* x, std::size_t count, Floats a) { _mm512_mask_storeu_ps(x, first_lanes(count), a); }
  static float sum(Floats a) {
    const __m256 lanes8 = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m128 lanes4 = _mm_add_ps(_mm256_castps256_ps128(lanes8), _mm256_extractf128_ps(lanes8, 1));
    const __m128 lanes2 = _mm_add_ps(lanes4, _mm_movehl_ps(lanes4, lanes4));
    return _mm_cvtss_f32(_mm_add_ss(lanes2, _mm_movehdup_ps(lanes2)));
  }
  static float largest(Floats a) { return _mm512_reduce_max_ps(a); }

  static Shorts no_shorts() { return _mm512_setzero_si512(); }
  static Shorts load(const std::int16_t* x) { return _mm512_load_si512(x); }
  static void store(std::int16_t* x, Shorts a) { _mm512_store_si512(x, a); }
  static Shorts add(Shorts a, Shorts b) { return _mm512_add_epi16(a, b); }
  static void keep(Shorts&) {}  // a line of the table is one vector
  static Shorts sub(Shorts a, Shorts b) { return _mm512_sub_epi16(a, b); }
  // Both interleave fours of a and b, so that no lane crosses from one quarter of a vector to another.
  static Shorts rounded(Floats a, Floats b) { return _mm512_packs_epi32(_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b)); }
  static Floats low(Shorts a) { return widened(_mm512_unpacklo_epi16(a, a)); }
  static Floats high(Shorts a) { return widened(_mm512_unpackhi_epi16(a, a)); }

  static Doubles set1(double x) { return _mm512_set1_pd(x); }
  static Doubles load_any(const double* x) { return _mm512_loadu_pd(x); }
  static Doubles add(Doubles a, Doubles b) { return _mm512_add_pd(a, b); }
  static Doubles mul(Doubles a, Doubles b) { return _mm512_mul_pd(a, b); }
  static Doubles load_first(const double* x, std::size_t count) {
    return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1U << smaller(count, kDoubles)) - 1U), x);
  }
  static double sum(Doubles a) {
    const __m256d lanes4 = _mm256_add_pd(_mm512_castpd512_pd256(a), _mm512_extractf64x4_pd(a, 1));
    const __m128d lanes2 = _mm_add_pd(_mm256_castpd256_pd128(lanes4), _mm256_extractf128_pd(lanes4, 1));
    return _mm_cvtsd_f64(_mm_add_sd(lanes2, _mm_unpackhi_pd(lanes2, lanes2)));
  }

 private:
  static Floats widened(__m512i twice) { return _mm512_cvtepi32_ps(_mm512_srai_epi32(twice, 16)); }
  static Mask first_lanes(std::size_t count) { return static_cast<Mask>((1U << smaller(count, kLanes)) - 1U); }
};

// Vectors of bytes for counts.hpp.
struct Bytes {
  using Vector = __m512i;
  static constexpr std::size_t kBytes = 64;

  static Vector zero() { return _mm512_setzero_si512(); }
  static Vector load(const std::uint8_t* p) { return _mm512_load_si512(p); }
  static Vector table(const std::uint8_t* p) {
    return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Vector lookup(Vector table, Vector nibbles) { return _mm512_shuffle_epi8(table, nibbles); }
  static Vector add(Vector a, Vector b) { return _mm512_add_epi8(a, b); }
  static void add_to(std::uint16_t* sums, Vector a) {
    const __m512i low_u16x32 = widened(_mm512_castsi512_si256(a));
    const __m512i high_u16x32 = widened(_mm512_extracti64x4_epi64(a, 1));
    _mm512_store_si512(sums, _mm512_add_epi16(_mm512_load_si512(sums), low_u16x32));
    _mm512_store_si512(sums + 32, _mm512_add_epi16(_mm512_load_si512(sums + 32), high_u16x32));
  }

 private:
  static __m512i widened(__m256i a) { return _mm512_and_si512(_mm512_cvtepi8_epi16(a), _mm512_set1_epi16(255)); }
};

}  // namespace
}  // namespace diba

#include "kernels/counts.hpp"
#include "kernels/rows.hpp"

namespace diba {

constexpr Kernels kAvx512 = kernels_named("avx512", integer_tile_256, code_sums_256, sparse_rows_256, &kLookupAvx512);

}  // namespace diba
