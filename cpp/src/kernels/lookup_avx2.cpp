// Lookup kernels for AVX2: two parts of 32 bytes to a step. Same bytes as lookup_scalar.cpp.

#include <immintrin.h>

#include "kernels/lookup.hpp"

#if !defined(__AVX2__)
#error "lookup_avx2.cpp needs -mavx2"
#endif

namespace diba {
namespace {

struct Vector {
  using Any = __m256i;
  using F32 = __m256;
  typedef std::int32_t I32 __attribute__((vector_size(32)));
  typedef std::int16_t I16 __attribute__((vector_size(32)));
  typedef std::uint16_t U16 __attribute__((vector_size(32)));
  typedef std::uint8_t U8 __attribute__((vector_size(32)));

  static U8 load(const std::uint8_t* x) { return (U8)_mm256_load_si256(reinterpret_cast<const Any*>(x)); }
  static void store(std::uint8_t* x, U8 a) { _mm256_store_si256(reinterpret_cast<Any*>(x), (Any)a); }
  static F32 load(const float* x) { return _mm256_load_ps(x); }
  static F32 load_any(const float* x) { return _mm256_loadu_ps(x); }
  static void store(float* x, F32 a) { _mm256_store_ps(x, a); }
  static F32 load_first(const float* x, std::size_t count) {
    const Any lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_ps(x, _mm256_cmpgt_epi32(_mm256_set1_epi32(count < 8 ? static_cast<int>(count) : 8), lanes));
  }
  static F32 fold(F32 a, F32 b) { return _mm256_shuffle_ps(a, b, 0x88) + _mm256_shuffle_ps(a, b, 0xDD); }
  static I32 fold(I32 a, I32 b) {
    return (I32)_mm256_shuffle_ps((F32)a, (F32)b, 0x88) + (I32)_mm256_shuffle_ps((F32)a, (F32)b, 0xDD);
  }
  static F32 spread(F32 a, std::size_t i) {
    return i == 0   ? _mm256_permute_ps(a, 0x00)
           : i == 1 ? _mm256_permute_ps(a, 0x55)
           : i == 2 ? _mm256_permute_ps(a, 0xAA)
                    : _mm256_permute_ps(a, 0xFF);
  }
  static F32 even_groups(F32 a, F32 b) { return _mm256_permute2f128_ps(a, b, 0x20); }
  static F32 odd_groups(F32 a, F32 b) { return _mm256_permute2f128_ps(a, b, 0x31); }
  static I32 ceiling(F32 a) { return (I32)_mm256_cvtps_epi32(_mm256_ceil_ps(a)); }
  static I32 nearest(F32 a) { return (I32)_mm256_cvtps_epi32(a); }

  static I32 min(I32 a, I32 b) { return (I32)_mm256_min_epi32((Any)a, (Any)b); }
  static I32 max(I32 a, I32 b) { return (I32)_mm256_max_epi32((Any)a, (Any)b); }
  static I16 min(I16 a, I16 b) { return (I16)_mm256_min_epi16((Any)a, (Any)b); }
  static I32 multiply_add(I16 a, I16 b) { return (I32)_mm256_madd_epi16((Any)a, (Any)b); }
  static U16 multiply_add(U8 a, U8 b) { return (U16)_mm256_maddubs_epi16((Any)a, (Any)b); }
  static I16 pack(I32 a, I32 b) { return (I16)_mm256_packs_epi32((Any)a, (Any)b); }
  static U8 pack(I16 a, I16 b) { return (U8)_mm256_packus_epi16((Any)a, (Any)b); }
  static U8 unpack_low(U8 a, U8 b) { return (U8)_mm256_unpacklo_epi8((Any)a, (Any)b); }
  static U8 unpack_high(U8 a, U8 b) { return (U8)_mm256_unpackhi_epi8((Any)a, (Any)b); }
  static U16 unpack_low(U16 a, U16 b) { return (U16)_mm256_unpacklo_epi16((Any)a, (Any)b); }
  static U16 unpack_high(U16 a, U16 b) { return (U16)_mm256_unpackhi_epi16((Any)a, (Any)b); }
  static U8 upper_bytes(U16 a, U16 b) {
    return (U8)_mm256_blendv_epi8(_mm256_srli_epi16((Any)a, 8), (Any)b, _mm256_set1_epi16(static_cast<short>(0xFF00)));
  }
  static U8 shuffle(U8 a, U8 places) { return (U8)_mm256_shuffle_epi8((Any)a, (Any)places); }
  static U8 broadcast(__m128i a) { return (U8)_mm256_broadcastsi128_si256(a); }

  static void store_rows(std::int32_t* y, I32 a, I32 b) {
    const Any low = _mm256_permute2x128_si256((Any)a, (Any)b, 0x20);
    const Any high = _mm256_permute2x128_si256((Any)a, (Any)b, 0x31);
    _mm256_store_si256(reinterpret_cast<Any*>(y), _mm256_add_epi32(low, high));
  }
  static std::int32_t sum(I32 a) {
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128((Any)a), _mm256_extracti128_si256((Any)a, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xB1)));
  }
  static std::int64_t sum_i64(I32 a) {
    const Any low = _mm256_cvtepi32_epi64(_mm256_castsi256_si128((Any)a));
    const Any four = _mm256_add_epi64(low, _mm256_cvtepi32_epi64(_mm256_extracti128_si256((Any)a, 1)));
    const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
    return _mm_cvtsi128_si64(_mm_add_epi64(two, _mm_unpackhi_epi64(two, two)));
  }
  static std::int32_t largest(I32 a) {
    const __m128i four = _mm_max_epi32(_mm256_castsi256_si128((Any)a), _mm256_extracti128_si256((Any)a, 1));
    const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xB1)));
  }

  static void keep(U16& a) { asm("" : "+x"(a)); }

  static void store_weights(I32 weights, std::uint8_t* to) {  // 0, 1, 4, 5 and 2, 3, 6, 7
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128((Any)weights), _mm256_extracti128_si256((Any)weights, 1));
    const __m128i places = _mm_setr_epi8(0, 8, 4, 12, 2, 10, 6, 14, -1, -1, -1, -1, -1, -1, -1, -1);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_shuffle_epi8(words, places));
  }
  static U8 weight_pairs(const std::uint8_t* weights, std::size_t p) {
    std::int64_t eight;
    __builtin_memcpy(&eight, weights, sizeof eight);
    const auto low = static_cast<long long>(p == 0 ? 0x0400040004000400 : 0x0602060206020602);
    const auto high = static_cast<long long>(p == 0 ? 0x0501050105010501 : 0x0703070307030703);
    return (U8)_mm256_shuffle_epi8(_mm256_set1_epi64x(eight), _mm256_set_epi64x(high, high, low, low));
  }

  struct Quotients {
    const float x;
    F32 by(I32 weights) const { return x / _mm256_cvtepi32_ps((Any)weights); }
  };
};

}  // namespace
}  // namespace diba

#include "kernels/lookup_x86.hpp"

namespace diba {

const LookupKernels kLookupAvx2 = {"avx2", TileLayout::kBytes, tabulate<Tabulator>, look_up_lanes, finish};

}  // namespace diba
