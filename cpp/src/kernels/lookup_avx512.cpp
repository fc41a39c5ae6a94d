// Lookup kernels for AVX-512 without VBMI: 16 bytes of a table in every 128-bit lane. Same bytes as lookup_scalar.cpp.

#include <immintrin.h>

#include "kernels/lookup_common.hpp"

#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512DQ__) || !defined(__AVX512VL__)
#error "lookup_avx512.cpp needs -mavx512f -mavx512bw -mavx512dq -mavx512vl"
#endif

namespace diba {

// For lookup_avx512_vbmi.cpp, too.
void tabulate_avx512(const float* x, const float* d, std::size_t cols, float* scaled, LookupTables* out);

namespace {

constexpr std::size_t kLanes = 16;

// (a0 + a1) + (a2 + a3) in each lane of a group of four.
inline __m512 group_sum(__m512 a) {
  const __m512 pairs = _mm512_add_ps(a, _mm512_permute_ps(a, 0xB1));
  return _mm512_add_ps(pairs, _mm512_permute_ps(pairs, 0x4E));
}

// Fills `scaled`, in each step groups 0, 2, 4, 6 before 1, 3, 5, 7; returns the largest range, NaN if one is not
// finite.
inline float scale_activations(const float* x, const float* d, std::size_t cols, float* scaled) {
  __m512i largest = _mm512_castps_si512(_mm512_set1_ps(kSmallestRange));  // as integers: NaN is above all numbers
  for (std::size_t j = 0; j < steps_for(cols) * kStep; j += kStep) {
    __m512 a[2];
    for (std::size_t v = 0; v < 2; ++v) {
      const std::size_t first = j + v * kLanes;
      const std::size_t rest = first < cols ? cols - first : 0;
      const auto lanes = static_cast<__mmask16>(rest >= kLanes ? 0xFFFFU : (1U << rest) - 1U);
      a[v] = _mm512_maskz_loadu_ps(lanes, x + first);
      if (d != nullptr) a[v] = _mm512_maskz_mul_ps(lanes, a[v], _mm512_maskz_loadu_ps(lanes, d + first));
      largest = _mm512_max_epi32(largest, _mm512_castps_si512(group_sum(_mm512_abs_ps(a[v]))));
    }
    _mm512_store_ps(scaled + j, _mm512_shuffle_f32x4(a[0], a[1], 0x88));
    _mm512_store_ps(scaled + j + kLanes, _mm512_shuffle_f32x4(a[0], a[1], 0xDD));
  }
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(largest))));
}

// A shuffle of the eight words of each 128-bit lane; 8: zero.
inline __m512i words(int w0, int w1, int w2, int w3, int w4, int w5, int w6, int w7) {
  const auto two = [](int a, int b) {
    const auto bytes = [](int w) { return w == 8 ? 0x8080U : static_cast<unsigned>((2 * w + 1) << 8 | 2 * w); };
    return static_cast<int>(bytes(a) | bytes(b) << 16);
  };
  return _mm512_broadcast_i32x4(_mm_setr_epi32(two(w0, w1), two(w2, w3), two(w4, w5), two(w6, w7)));
}

// What fits 32-bit sums of q times weight: 1024 steps * 2 * 32513 * 16 < 2^31.
constexpr std::size_t kStepsIn32Bits = 1024;

// Makes the tables of one step after the other. In its 16-bit vectors lane j holds group 2 j, then group 2 j + 1.
struct Tabulator {
  __m512 weights_per_range;
  __m512 factors;  // of weight 1 to 16
  __m512i total_i32x16 = _mm512_setzero_si512();
  __m512i zero_i32x16 = _mm512_setzero_si512();  // each group counts twice

  explicit Tabulator(float unit, float largest)
      : weights_per_range(_mm512_set1_ps(static_cast<float>(kLargestWeight) / largest)),
        factors(_mm512_div_ps(_mm512_set1_ps(static_cast<float>(kFineSteps) / unit),
                              _mm512_setr_ps(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16))) {}

  void add_step(const float* scaled, std::uint8_t* entries, std::uint8_t* weights) {
    __m512i weight[2], q[2];
    for (std::size_t h = 0; h < 2; ++h) {
      const __m512 a = _mm512_load_ps(scaled + h * kLanes);
      const __m512 range = _mm512_mul_ps(group_sum(_mm512_abs_ps(a)), weights_per_range);
      const __m512i ceiling = _mm512_cvt_roundps_epi32(range, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
      const __m512i one = _mm512_set1_epi32(1);
      weight[h] = _mm512_max_epi32(one, _mm512_min_epi32(ceiling, _mm512_set1_epi32(kLargestWeight)));
      const __m512 factor = _mm512_permutexvar_ps(_mm512_sub_epi32(weight[h], one), factors);
      q[h] = _mm512_cvtps_epi32(_mm512_mul_ps(a, factor));
    }
    const __m512i q_i16x32 = _mm512_packs_epi32(q[0], q[1]);
    const __m512i weight_i16x32 = _mm512_packs_epi32(weight[0], weight[1]);
    store_weights(weight_i16x32, weights);

    const __m512i negative = _mm512_min_epi16(q_i16x32, _mm512_setzero_si512());
    const __m512i pairs = _mm512_madd_epi16(negative, _mm512_set1_epi16(1));
    const __m512i negatives = _mm512_add_epi32(pairs, _mm512_shuffle_epi32(pairs, _MM_PERM_CDAB));
    const __m512i lift = _mm512_srai_epi32(_mm512_sub_epi32(_mm512_set1_epi32(kFineSteps - 1), negatives), 7);
    zero_i32x16 = _mm512_add_epi32(zero_i32x16, _mm512_madd_epi16(lift, weight_i16x32));
    const __m512i shares = _mm512_madd_epi16(q_i16x32, weight_i16x32);
    total_i32x16 = _mm512_add_epi32(total_i32x16, shares);

    // Entry b is low[b & 3] + high[b >> 2].
    const __m512i base = _mm512_add_epi32(_mm512_slli_epi32(lift, 7), _mm512_set1_epi32(kFineSteps / 2));
    const __m512i low = _mm512_add_epi16(_mm512_shuffle_epi8(q_i16x32, words(8, 0, 8, 0, 8, 4, 8, 4)),
                                         _mm512_shuffle_epi8(q_i16x32, words(8, 8, 1, 1, 8, 8, 5, 5)));
    const __m512i chosen = _mm512_add_epi16(_mm512_shuffle_epi8(q_i16x32, words(8, 2, 8, 2, 8, 6, 8, 6)),
                                            _mm512_shuffle_epi8(q_i16x32, words(8, 8, 3, 3, 8, 8, 7, 7)));
    const __m512i high = _mm512_add_epi16(chosen, _mm512_shuffle_epi8(base, words(0, 0, 0, 0, 4, 4, 4, 4)));
    store_tables(_mm512_unpacklo_epi64(low, low), high, words(0, 0, 0, 0, 1, 1, 1, 1), words(2, 2, 2, 2, 3, 3, 3, 3),
                 entries);
    store_tables(_mm512_unpackhi_epi64(low, low), high, words(4, 4, 4, 4, 5, 5, 5, 5), words(6, 6, 6, 6, 7, 7, 7, 7),
                 entries + 64);
  }

  // The sum of q times weight so far, which begins again.
  std::int64_t take_total() {
    const __m512i low = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(total_i32x16));
    const __m512i high = _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(total_i32x16, 1));
    total_i32x16 = _mm512_setzero_si512();
    return _mm512_reduce_add_epi64(_mm512_add_epi64(low, high));
  }

 private:
  static void store_tables(__m512i low, __m512i high, __m512i first, __m512i second, std::uint8_t* entries) {
    const __m512i to_7 = _mm512_srli_epi16(_mm512_add_epi16(low, _mm512_shuffle_epi8(high, first)), 7);
    const __m512i to_15 = _mm512_srli_epi16(_mm512_add_epi16(low, _mm512_shuffle_epi8(high, second)), 7);
    _mm512_store_si512(entries, _mm512_packus_epi16(to_7, to_15));
  }

  static void store_weights(__m512i weight_i16x32, std::uint8_t* weights) {
    const __m512i order = _mm512_castsi128_si512(_mm_setr_epi16(0, 8, 16, 24, 4, 12, 20, 28));
    const __m128i eight = _mm512_castsi512_si128(_mm512_permutexvar_epi16(order, weight_i16x32));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(weights), _mm_packus_epi16(eight, eight));
  }
};

// The 16-bit weights of a step, [0][j] and [1][j] beside one another in lane j.
inline __m512i weight_pairs(const std::uint8_t* weights) {
  std::int64_t eight;
  __builtin_memcpy(&eight, weights, sizeof eight);
  const __m128i both = _mm_unpacklo_epi8(_mm_cvtsi64_si128(eight), _mm_cvtsi64_si128(eight >> 32));
  const __m512i places = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
  const __m512i twice = _mm512_castsi128_si512(_mm_unpacklo_epi16(both, both));
  return _mm512_permutexvar_epi32(places, twice);
}

// What fits 16-bit sums: 8 steps * 2 * 255 * 16 < 2^16.
constexpr std::size_t kStepsIn16Bits = 8;

struct Block {
  template <std::size_t kTiles, std::size_t kColumns>
  static void run(const LookupSource& b, const LookupTables* x, const LookupSums& y) {
    const __m512i none = _mm512_setzero_si512();
    __m512i sums[kTiles][kColumns][4];  // of rows 0 - 3, 4 - 7, ...; the four lanes are added at the end
    for (auto& of_tile : sums)
      for (auto& of_column : of_tile)
        for (__m512i& four_rows : of_column) four_rows = none;
    for (std::size_t s = 0; s < b.steps; s += kStepsIn16Bits) {
      const std::size_t count = s + kStepsIn16Bits < b.steps ? kStepsIn16Bits : b.steps - s;
      __m512i weights[kColumns][kStepsIn16Bits];
      for (std::size_t c = 0; c < kColumns; ++c)
        for (std::size_t u = 0; u < count; ++u) weights[c][u] = weight_pairs(x[c].weights + (s + u) * kStepWeights);
      for (std::size_t t = 0; t < kTiles; ++t)
        add_steps<kColumns>(b.words + s * b.stride + t * kTileStep, b.stride, x, s, count, weights, sums[t]);
    }
    for (std::size_t t = 0; t < kTiles; ++t)
      for (std::size_t c = 0; c < kColumns; ++c)
        for (std::size_t four = 0; four < 4; ++four) {
          const __m512i lanes = sums[t][c][four];
          const __m256i two = _mm256_add_epi32(_mm512_castsi512_si256(lanes), _mm512_extracti64x4_epi64(lanes, 1));
          const __m128i rows = _mm_add_epi32(_mm256_castsi256_si128(two), _mm256_extracti128_si256(two, 1));
          std::int32_t* to = y.data + c * y.stride + t * kTileRows + 4 * four;
          _mm_store_si128(reinterpret_cast<__m128i*>(to), rows);
        }
  }

 private:
  template <std::size_t kColumns>
  static void add_steps(const std::uint8_t* bytes, std::size_t stride, const LookupTables* x, std::size_t s,
                        std::size_t count, const __m512i (&weights)[kColumns][kStepsIn16Bits],
                        __m512i (&sums)[kColumns][4]) {
    const __m512i low_bits = _mm512_set1_epi8(15);
    const __m512i none = _mm512_setzero_si512();
    __m512i sums_u16x32[kColumns][2];  // of rows 0 - 7, 8 - 15
    for (auto& of_column : sums_u16x32) of_column[0] = of_column[1] = none;
    for (std::size_t u = 0; u < count; ++u) {
      fetch_ahead<kColumns>(bytes + u * stride);
      const __m512i two_groups = _mm512_load_si512(bytes + u * stride);
      const __m512i low = _mm512_and_si512(two_groups, low_bits);
      const __m512i high = _mm512_and_si512(_mm512_srli_epi16(two_groups, 4), low_bits);
      for (std::size_t c = 0; c < kColumns; ++c) {
        const std::uint8_t* entries = x[c].entries + (s + u) * kStepEntries;
        const __m512i of_low = _mm512_shuffle_epi8(_mm512_load_si512(entries), low);
        const __m512i of_high = _mm512_shuffle_epi8(_mm512_load_si512(entries + 64), high);
        const __m512i rows0 = _mm512_maddubs_epi16(_mm512_unpacklo_epi8(of_low, of_high), weights[c][u]);
        const __m512i rows8 = _mm512_maddubs_epi16(_mm512_unpackhi_epi8(of_low, of_high), weights[c][u]);
        sums_u16x32[c][0] = _mm512_add_epi16(sums_u16x32[c][0], rows0);
        sums_u16x32[c][1] = _mm512_add_epi16(sums_u16x32[c][1], rows8);
      }
    }
    for (std::size_t c = 0; c < kColumns; ++c)
      for (std::size_t half = 0; half < 2; ++half) {
        const __m512i rows = sums_u16x32[c][half];
        __m512i* to = sums[c] + 2 * half;
        to[0] = _mm512_add_epi32(to[0], _mm512_unpacklo_epi16(rows, none));
        to[1] = _mm512_add_epi32(to[1], _mm512_unpackhi_epi16(rows, none));
      }
  }
};

}  // namespace

void tabulate_avx512(const float* x, const float* d, std::size_t cols, float* scaled, LookupTables* out) {
  const std::size_t steps = steps_for(cols);
  const float largest = scale_activations(x, d, cols, scaled);
  if (!(largest <= __FLT_MAX__)) return tabulate_not_finite(steps, out);
  out->unit = largest / (kEntryRange * static_cast<float>(kLargestWeight));
  Tabulator tables(out->unit, largest);
  std::int64_t total = 0;
  for (std::size_t s = 0; s < steps; ++s) {
    tables.add_step(scaled + s * kStep, out->entries + s * kStepEntries, out->weights + s * kStepWeights);
    if (s % kStepsIn32Bits == kStepsIn32Bits - 1) total += tables.take_total();
  }
  total += tables.take_total();
  out->zero = _mm512_reduce_add_epi32(tables.zero_i32x16) / 2;
  out->total = static_cast<float>(total) * (out->unit / static_cast<float>(kFineSteps));
}

const LookupKernels kLookupAvx512 = {"avx512", TileLayout::kBytes, tabulate_avx512, look_up<Block>, finish};

}  // namespace diba
