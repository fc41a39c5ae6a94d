// Lookup kernels for AVX-512 without VBMI: one vector to a step. Same bytes as lookup_scalar.cpp.

#include <immintrin.h>

#include "kernels/lookup.hpp"

#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512DQ__) || !defined(__AVX512VL__)
#error "lookup_avx512.cpp needs -mavx512f -mavx512bw -mavx512dq -mavx512vl"
#endif

namespace diba {
namespace {

struct Vector {
  using Any = __m512i;
  using F32 = __m512;
  typedef std::int32_t I32 __attribute__((vector_size(64)));
  typedef std::int16_t I16 __attribute__((vector_size(64)));
  typedef std::uint16_t U16 __attribute__((vector_size(64)));
  typedef std::uint8_t U8 __attribute__((vector_size(64)));

  static U8 load(const std::uint8_t* x) { return (U8)_mm512_load_si512(x); }
  static void store(std::uint8_t* x, U8 a) { _mm512_store_si512(x, (Any)a); }
  static F32 load(const float* x) { return _mm512_load_ps(x); }
  static F32 load_any(const float* x) { return _mm512_loadu_ps(x); }
  static void store(float* x, F32 a) { _mm512_store_ps(x, a); }
  static F32 load_first(const float* x, std::size_t count) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>(count < 16 ? (1U << count) - 1U : 0xFFFFU), x);
  }
  static F32 fold(F32 a, F32 b) { return _mm512_shuffle_ps(a, b, 0x88) + _mm512_shuffle_ps(a, b, 0xDD); }
  static I32 fold(I32 a, I32 b) {
    return (I32)_mm512_shuffle_ps((F32)a, (F32)b, 0x88) + (I32)_mm512_shuffle_ps((F32)a, (F32)b, 0xDD);
  }
  static F32 spread(F32 a, std::size_t i) {
    return i == 0   ? _mm512_permute_ps(a, 0x00)
           : i == 1 ? _mm512_permute_ps(a, 0x55)
           : i == 2 ? _mm512_permute_ps(a, 0xAA)
                    : _mm512_permute_ps(a, 0xFF);
  }
  static F32 even_groups(F32 a, F32 b) { return _mm512_shuffle_f32x4(a, b, 0x88); }
  static F32 odd_groups(F32 a, F32 b) { return _mm512_shuffle_f32x4(a, b, 0xDD); }
  static I32 ceiling(F32 a) { return (I32)_mm512_cvt_roundps_epi32(a, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC); }
  static I32 nearest(F32 a) { return (I32)_mm512_cvtps_epi32(a); }

  static I32 min(I32 a, I32 b) { return (I32)_mm512_min_epi32((Any)a, (Any)b); }
  static I32 max(I32 a, I32 b) { return (I32)_mm512_max_epi32((Any)a, (Any)b); }
  static I16 min(I16 a, I16 b) { return (I16)_mm512_min_epi16((Any)a, (Any)b); }
  static I32 multiply_add(I16 a, I16 b) { return (I32)_mm512_madd_epi16((Any)a, (Any)b); }
  static U16 multiply_add(U8 a, U8 b) { return (U16)_mm512_maddubs_epi16((Any)a, (Any)b); }
  static I16 pack(I32 a, I32 b) { return (I16)_mm512_packs_epi32((Any)a, (Any)b); }
  static U8 pack(I16 a, I16 b) { return (U8)_mm512_packus_epi16((Any)a, (Any)b); }
  static U8 unpack_low(U8 a, U8 b) { return (U8)_mm512_unpacklo_epi8((Any)a, (Any)b); }
  static U8 unpack_high(U8 a, U8 b) { return (U8)_mm512_unpackhi_epi8((Any)a, (Any)b); }
  static U16 unpack_low(U16 a, U16 b) { return (U16)_mm512_unpacklo_epi16((Any)a, (Any)b); }
  static U16 unpack_high(U16 a, U16 b) { return (U16)_mm512_unpackhi_epi16((Any)a, (Any)b); }
  static U8 upper_bytes(U16 a, U16 b) { return (U8)((a >> 8) | (b & 0xFF00)); }
  static U8 shuffle(U8 a, U8 places) { return (U8)_mm512_shuffle_epi8((Any)a, (Any)places); }
  static U8 broadcast(__m128i a) { return (U8)_mm512_broadcast_i32x4(a); }

  static void store_rows(std::int32_t* y, I32 a, I32 b) {
    const auto two_lanes = [](Any all) {
      return _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    };
    const __m256i rows_0 = two_lanes((Any)a), rows_4 = two_lanes((Any)b);
    const __m256i low = _mm256_permute2x128_si256(rows_0, rows_4, 0x20);
    const __m256i high = _mm256_permute2x128_si256(rows_0, rows_4, 0x31);
    _mm256_store_si256(reinterpret_cast<__m256i*>(y), _mm256_add_epi32(low, high));
  }
  static std::int32_t sum(I32 a) { return _mm512_reduce_add_epi32((Any)a); }
  static std::int64_t sum_i64(I32 a) {
    const Any low = _mm512_cvtepi32_epi64(_mm512_castsi512_si256((Any)a));
    const Any high = _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64((Any)a, 1));
    return _mm512_reduce_add_epi64(_mm512_add_epi64(low, high));
  }
  static std::int32_t largest(I32 a) { return _mm512_reduce_max_epi32((Any)a); }

  static void keep(U16&) {}  // with 32 registers, compilers do by themselves

  static void store_weights(I32 weights, std::uint8_t* to) {  // of the even and the odd groups of two steps
    const Any order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m128i bytes = _mm512_cvtsepi32_epi8(_mm512_permutexvar_epi32(order, (Any)weights));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
  }
  static U8 weight_pairs(const std::uint8_t* weights, std::size_t /*p*/) {
    std::int64_t eight;
    __builtin_memcpy(&eight, weights, sizeof eight);
    const __m128i both = _mm_unpacklo_epi8(_mm_cvtsi64_si128(eight), _mm_cvtsi64_si128(eight >> 32));
    const Any places = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    return (U8)_mm512_permutexvar_epi32(places, _mm512_castsi128_si512(_mm_unpacklo_epi16(both, both)));
  }

  struct Quotients {
    F32 of_weight;  // 1 to 16
    explicit Quotients(float x)
        : of_weight(x / _mm512_setr_ps(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16)) {}
    F32 by(I32 weights) const { return _mm512_permutexvar_ps((Any)(weights - 1), of_weight); }
  };
};

}  // namespace
}  // namespace diba

#include "kernels/lookup_x86.hpp"

namespace diba {

void tabulate_avx512(const float* x, const float* d, std::size_t cols, float* scaled, LookupTables* out) {
  tabulate<Tabulator>(x, d, cols, scaled, out);
}

const LookupKernels kLookupAvx512 = {"avx512", TileLayout::kBytes, tabulate_avx512, look_up_lanes, finish};

}  // namespace diba
