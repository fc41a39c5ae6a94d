// Stands in for the compiler's header: the AVX-512 intrinsics that the kernel files use, in the portable code of SIMDe
// (Debian's libsimde-dev), so that their results can be tested on any machine. What SIMDe 0.7 lacks is added here.
#pragma once

#define SIMDE_NO_NATIVE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>

#include <cstdint>
#include <cstring>

#define __AVX2__ 1
#define __FMA__ 1
#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512DQ__ 1
#define __AVX512VL__ 1
#define __AVX512VNNI__ 1
#define __AVX512VBMI__ 1
#define __AVX512VPOPCNTDQ__ 1
#define __AMX_TILE__ 1
#define __AMX_INT8__ 1

using __mmask8 = simde__mmask8;
using __mmask16 = simde__mmask16;
using __mmask64 = simde__mmask64;
enum { _MM_PERM_CDAB = 0xB1 };
#undef _MM_FROUND_NO_EXC
#define _MM_FROUND_NO_EXC SIMDE_MM_FROUND_NO_EXC

// Names without arguments, for calls whose template arguments hold commas; SIMDe 0.7 has the wrong ones for the second.
#undef _mm512_add_ps
#define _mm512_add_ps simde_mm512_add_ps
#undef _mm512_madd_epi16
#define _mm512_madd_epi16 simde_mm512_madd_epi16

#undef _mm_maskz_loadu_epi8
#undef _mm512_cvt_roundps_epi32
#undef _mm512_cvtepi32_epi64
#undef _mm512_cvtps_epi32
#undef _mm512_extractf32x8_ps
#undef _mm512_fmadd_ps
#undef _mm512_mask_storeu_ps
#undef _mm512_maskz_loadu_epi8
#undef _mm512_maskz_loadu_pd
#undef _mm512_maskz_loadu_ps
#undef _mm512_permute_ps
#undef _mm512_reduce_add_epi32
#undef _mm512_reduce_add_epi64
#undef _mm512_reduce_max_epi32
#undef _mm512_reduce_max_ps
#undef _mm512_shuffle_epi32
#undef _mm512_shuffle_f32x4
#undef _mm512_srai_epi32

namespace emulated {

template <typename T, typename Vector>
struct Lanes {
  static constexpr int kCount = sizeof(Vector) / sizeof(T);
  T lane[kCount];
  explicit Lanes(const Vector& vector) { std::memcpy(lane, &vector, sizeof lane); }
  Lanes() : lane{} {}
  operator Vector() const {
    Vector vector;
    std::memcpy(&vector, lane, sizeof lane);
    return vector;
  }
};
using Floats = Lanes<float, __m512>;
using Ints = Lanes<std::int32_t, __m512i>;
using Longs = Lanes<std::int64_t, __m512i>;

// Reads the lanes whose bit is set, and no other.
template <typename Vector, typename T>
Vector load_where(std::uint64_t bits, const T* from) {
  Lanes<T, Vector> to;
  for (int l = 0; l < to.kCount; ++l)
    if (bits >> l & 1U) to.lane[l] = from[l];
  return to;
}

template <typename Lanes>
auto add_all(const Lanes& lanes) {
  auto sum = lanes.lane[0];
  for (int l = 1; l < lanes.kCount; ++l) sum += lanes.lane[l];
  return sum;
}

template <typename Lanes>
auto largest_of(const Lanes& lanes) {
  auto best = lanes.lane[0];
  for (int l = 1; l < lanes.kCount; ++l) best = lanes.lane[l] > best ? lanes.lane[l] : best;
  return best;
}

template <typename Lanes>
Lanes permuted(const Lanes& a, int order) {
  Lanes to;
  for (int l = 0; l < to.kCount; ++l) to.lane[l] = a.lane[l / 4 * 4 + (order >> l % 4 * 2 & 3)];
  return to;
}

inline Ints converted(const Floats& a, float (*round)(float)) {
  Ints to;
  for (int l = 0; l < to.kCount; ++l) to.lane[l] = static_cast<std::int32_t>(round(a.lane[l]));
  return to;
}
inline float up(float a) { return __builtin_ceilf(a); }
inline float nearest(float a) { return __builtin_nearbyintf(a); }

}  // namespace emulated

inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {  // SIMDe's portable one rounds twice
  const emulated::Floats x(a), y(b), z(c);
  emulated::Floats to;
  for (int l = 0; l < to.kCount; ++l) to.lane[l] = __builtin_fmaf(x.lane[l], y.lane[l], z.lane[l]);
  return to;
}
inline __m512 _mm512_maskz_loadu_ps(__mmask16 k, const void* p) {
  return emulated::load_where<__m512>(k, static_cast<const float*>(p));
}
inline __m512d _mm512_maskz_loadu_pd(__mmask8 k, const void* p) {
  return emulated::load_where<__m512d>(k, static_cast<const double*>(p));
}
inline __m128i _mm_maskz_loadu_epi8(__mmask16 k, const void* p) {
  return emulated::load_where<__m128i>(k, static_cast<const std::int8_t*>(p));
}
inline __m512i _mm512_maskz_loadu_epi8(__mmask64 k, const void* p) {
  return emulated::load_where<__m512i>(k, static_cast<const std::int8_t*>(p));
}
inline void _mm512_mask_storeu_ps(void* p, __mmask16 k, __m512 a) {
  const emulated::Floats from(a);
  for (int l = 0; l < from.kCount; ++l)
    if (k >> l & 1U) static_cast<float*>(p)[l] = from.lane[l];
}
inline std::int32_t _mm512_reduce_add_epi32(__m512i a) { return emulated::add_all(emulated::Ints(a)); }
inline std::int64_t _mm512_reduce_add_epi64(__m512i a) { return emulated::add_all(emulated::Longs(a)); }
inline std::int32_t _mm512_reduce_max_epi32(__m512i a) { return emulated::largest_of(emulated::Ints(a)); }
inline float _mm512_reduce_max_ps(__m512 a) { return emulated::largest_of(emulated::Floats(a)); }
inline __m512 _mm512_permute_ps(__m512 a, int order) { return emulated::permuted(emulated::Floats(a), order); }
inline __m512i _mm512_shuffle_epi32(__m512i a, int order) { return emulated::permuted(emulated::Ints(a), order); }
inline __m512 _mm512_shuffle_f32x4(__m512 a, __m512 b, int order) {
  const emulated::Floats x(a), y(b);
  emulated::Floats to;
  for (int l = 0; l < to.kCount; ++l) to.lane[l] = (l < 8 ? x : y).lane[(order >> l / 4 * 2 & 3) * 4 + l % 4];
  return to;
}
inline __m512i _mm512_srai_epi32(__m512i a, unsigned count) {
  emulated::Ints to(a);
  for (std::int32_t& lane : to.lane) lane >>= count;
  return to;
}
inline __m512 _mm512_cvtepi32_ps(__m512i a) {
  std::int32_t lanes[16];
  float to[16];
  std::memcpy(lanes, &a, sizeof lanes);
  for (int l = 0; l < 16; ++l) to[l] = static_cast<float>(lanes[l]);
  __m512 result;
  std::memcpy(&result, to, sizeof result);
  return result;
}
inline __m512i _mm512_cvtps_epi32(__m512 a) { return emulated::converted(emulated::Floats(a), emulated::nearest); }
inline __m512i _mm512_cvt_roundps_epi32(__m512 a, int /*up*/) {
  return emulated::converted(emulated::Floats(a), emulated::up);
}
inline __m512i _mm512_cvtepi32_epi64(__m256i a) {
  const emulated::Lanes<std::int32_t, __m256i> from(a);
  emulated::Longs to;
  for (int l = 0; l < to.kCount; ++l) to.lane[l] = from.lane[l];
  return to;
}
inline __m256 _mm512_extractf32x8_ps(__m512 a, int half) {
  const emulated::Floats from(a);
  emulated::Lanes<float, __m256> to;
  for (int l = 0; l < to.kCount; ++l) to.lane[l] = from.lane[8 * half + l];
  return to;
}

// ---- AMX: eight registers of up to 16 rows of 64 bytes

namespace emulated {

struct Tile {
  std::size_t rows, row_bytes;
  std::int8_t data[16][64];
};
inline thread_local Tile tiles[8];

}  // namespace emulated

inline void _tile_loadconfig(const void* config) {
  const auto* bytes = static_cast<const std::uint8_t*>(config);
  for (std::size_t t = 0; t < 8; ++t)
    emulated::tiles[t] = {bytes[48 + t], static_cast<std::size_t>(bytes[16 + 2 * t] | bytes[17 + 2 * t] << 8), {}};
}
inline void _tile_release() {
  for (emulated::Tile& tile : emulated::tiles) tile = {};
}
inline void _tile_zero(int t) { std::memset(emulated::tiles[t].data, 0, sizeof emulated::tiles[t].data); }
inline void _tile_loadd(int t, const void* from, std::size_t stride) {
  emulated::Tile& tile = emulated::tiles[t];
  for (std::size_t i = 0; i < tile.rows; ++i)
    std::memcpy(tile.data[i], static_cast<const std::int8_t*>(from) + i * stride, tile.row_bytes);
}
inline void _tile_stored(int t, void* to, std::size_t stride) {
  const emulated::Tile& tile = emulated::tiles[t];
  for (std::size_t i = 0; i < tile.rows; ++i)
    std::memcpy(static_cast<std::int8_t*>(to) + i * stride, tile.data[i], tile.row_bytes);
}
inline void _tile_dpbssd(int c, int a, int b) {
  emulated::Tile &sums = emulated::tiles[c], &left = emulated::tiles[a], &right = emulated::tiles[b];
  for (std::size_t i = 0; i < sums.rows; ++i)
    for (std::size_t j = 0; j < sums.row_bytes / 4; ++j) {
      std::int32_t sum;
      std::memcpy(&sum, sums.data[i] + 4 * j, sizeof sum);
      for (std::size_t l = 0; l < left.row_bytes; ++l) sum += left.data[i][l] * right.data[l / 4][4 * j + l % 4];
      std::memcpy(sums.data[i] + 4 * j, &sum, sizeof sum);
    }
}
