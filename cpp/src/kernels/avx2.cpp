// AVX2: 8 lanes of float32, bits widened to lane masks. Same bytes as scalar.cpp.

#include <immintrin.h>

#include "kernels/codes_256.hpp"
#include "kernels/integer_256.hpp"
#include "kernels/sparse_256.hpp"

#if !defined(__AVX2__) || !defined(__FMA__)
#error "avx2.cpp needs -mavx2 -mfma"
#endif

namespace diba {
namespace {

struct Vector {
  using Floats = __m256;
  using Doubles = __m256d;
  using Shorts = __m256i;
  using Mask = __m256;  // all ones in the lanes chosen
  static constexpr std::size_t kLanes = 8, kDoubles = 4, kColumnWords = 1, kFusedRows = 6;
  static constexpr bool kBitsSelect = false;

  static Floats set1(float x) { return _mm256_set1_ps(x); }
  static Floats load(const float* x) { return _mm256_load_ps(x); }
  static Floats load_any(const float* x) { return _mm256_loadu_ps(x); }
  static void store(float* x, Floats a) { _mm256_store_ps(x, a); }
  static Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static Floats sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats div(Floats a, Floats b) { return _mm256_div_ps(a, b); }
  static Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
  static Floats fused(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static unsigned greater(Floats a, Floats b) { return bits(_mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
  static unsigned equal(Floats a, Floats b) { return bits(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }
  static Floats select(Mask mask, Floats zero, Floats one) { return _mm256_blendv_ps(zero, one, mask); }
  static Floats add_where(Floats sum, Mask mask, Floats x) { return add(sum, _mm256_and_ps(mask, x)); }

  static Mask lanes(std::uint64_t word, std::size_t v) {  // one half of the word serves four vectors
    const __m256i lane = _mm256_slli_epi32(_mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), 8 * (v % 4));
    const __m256i half = _mm256_set1_epi32(static_cast<int>(word >> (32 * (v / 4))));
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(half, lane), lane));
  }
  static Floats load_first(const float* x, std::size_t count) {
    return count < kLanes ? _mm256_maskload_ps(x, first_lanes(count)) : load_any(x);
  }
  static void store_first(float* x, std::size_t count, Floats a) {
    count < kLanes ? _mm256_maskstore_ps(x, first_lanes(count), a) : _mm256_storeu_ps(x, a);
  }
  static float sum(Floats a) {
    const __m128 lanes4 = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 lanes2 = _mm_add_ps(lanes4, _mm_movehl_ps(lanes4, lanes4));
    return _mm_cvtss_f32(_mm_add_ss(lanes2, _mm_movehdup_ps(lanes2)));
  }
  static float largest(Floats a) {
    const __m128 lanes4 = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 lanes2 = _mm_max_ps(lanes4, _mm_movehl_ps(lanes4, lanes4));
    return _mm_cvtss_f32(_mm_max_ss(lanes2, _mm_movehdup_ps(lanes2)));
  }

  static Shorts no_shorts() { return _mm256_setzero_si256(); }
  static Shorts load(const std::int16_t* x) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(x)); }
  static void store(std::int16_t* x, Shorts a) { _mm256_store_si256(reinterpret_cast<__m256i*>(x), a); }
  static Shorts add(Shorts a, Shorts b) { return _mm256_add_epi16(a, b); }
  static void keep(Shorts& a) { __asm__("" : "+x"(a)); }
  static Shorts sub(Shorts a, Shorts b) { return _mm256_sub_epi16(a, b); }
  // Both interleave fours of a and b, so that no lane crosses from one half of a vector to the other.
  static Shorts rounded(Floats a, Floats b) { return _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b)); }
  static Floats low(Shorts a) { return widened(_mm256_unpacklo_epi16(a, a)); }
  static Floats high(Shorts a) { return widened(_mm256_unpackhi_epi16(a, a)); }

  static Doubles set1(double x) { return _mm256_set1_pd(x); }
  static Doubles load_any(const double* x) { return _mm256_loadu_pd(x); }
  static Doubles add(Doubles a, Doubles b) { return _mm256_add_pd(a, b); }
  static Doubles mul(Doubles a, Doubles b) { return _mm256_mul_pd(a, b); }
  static Doubles load_first(const double* x, std::size_t count) {
    const __m256i mask = _mm256_cmpgt_epi64(_mm256_set1_epi64x(static_cast<int>(smaller(count, kDoubles))),
                                            _mm256_setr_epi64x(0, 1, 2, 3));
    return _mm256_maskload_pd(x, mask);
  }
  static double sum(Doubles a) {
    const __m128d lanes2 = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(lanes2, _mm_unpackhi_pd(lanes2, lanes2)));
  }

 private:
  static Floats widened(__m256i twice) { return _mm256_cvtepi32_ps(_mm256_srai_epi32(twice, 16)); }
  static unsigned bits(__m256 condition) { return static_cast<unsigned>(_mm256_movemask_ps(condition)); }
  static __m256i first_lanes(std::size_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};

// Vectors of bytes for counts.hpp.
struct Bytes {
  using Vector = __m256i;
  static constexpr std::size_t kBytes = 32;

  static Vector zero() { return _mm256_setzero_si256(); }
  static Vector load(const std::uint8_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
  static Vector table(const std::uint8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Vector lookup(Vector table, Vector nibbles) { return _mm256_shuffle_epi8(table, nibbles); }
  static Vector add(Vector a, Vector b) { return _mm256_add_epi8(a, b); }
  static void add_to(std::uint16_t* sums, Vector a) {
    auto* const to = reinterpret_cast<__m256i*>(sums);
    const __m256i low_u16x16 = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(a));
    const __m256i high_u16x16 = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(a, 1));
    _mm256_store_si256(to, _mm256_add_epi16(_mm256_load_si256(to), low_u16x16));
    _mm256_store_si256(to + 1, _mm256_add_epi16(_mm256_load_si256(to + 1), high_u16x16));
  }
};

}  // namespace
}  // namespace diba

#include "kernels/counts.hpp"
#include "kernels/rows.hpp"

namespace diba {

constexpr Kernels kAvx2 = kernels_named("avx2", integer_tile_256, code_sums_256, sparse_rows_256, &kLookupAvx2);

}  // namespace diba
