// Lookup kernels for AVX2: 16 bytes of a table in each 128-bit lane. Same bytes as lookup_scalar.cpp.

#include <immintrin.h>

#include "kernels/lookup_common.hpp"

#if !defined(__AVX2__)
#error "lookup_avx2.cpp needs -mavx2"
#endif

namespace diba {
namespace {

constexpr std::size_t kLanes = 8;

inline __m256 absolute(__m256 a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0F), a); }

// (a0 + a1) + (a2 + a3) in each lane of a group of four.
inline __m256 group_sum(__m256 a) {
  const __m256 pairs = _mm256_add_ps(a, _mm256_permute_ps(a, 0xB1));
  return _mm256_add_ps(pairs, _mm256_permute_ps(pairs, 0x4E));
}

inline __m256i first_lanes(std::size_t count) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count < kLanes ? static_cast<int>(count) : 8), lanes);
}

// Fills `scaled`, in each half step groups 0, 2 before 1, 3; returns the largest range, NaN if one is not finite.
float scale_activations(const float* x, const float* d, std::size_t cols, float* scaled) {
  const __m256 limit = _mm256_set1_ps(__FLT_MAX__);
  __m256 largest = _mm256_set1_ps(kSmallestRange);
  __m256 finite = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
  for (std::size_t j = 0; j < steps_for(cols) * kStep; j += 2 * kLanes) {
    __m256 a[2];
    for (std::size_t v = 0; v < 2; ++v) {
      const std::size_t first = j + v * kLanes;
      const __m256i lanes = first_lanes(first < cols ? cols - first : 0);
      a[v] = _mm256_maskload_ps(x + first, lanes);
      if (d != nullptr) a[v] = _mm256_mul_ps(a[v], _mm256_maskload_ps(d + first, lanes));
      const __m256 range = group_sum(absolute(a[v]));
      finite = _mm256_and_ps(finite, _mm256_cmp_ps(range, limit, _CMP_LE_OQ));
      largest = _mm256_max_ps(largest, range);
    }
    _mm256_store_ps(scaled + j, _mm256_permute2f128_ps(a[0], a[1], 0x20));
    _mm256_store_ps(scaled + j + kLanes, _mm256_permute2f128_ps(a[0], a[1], 0x31));
  }
  if (_mm256_movemask_ps(finite) != 0xFF) return __builtin_nanf("");
  alignas(32) float lanes[kLanes];
  _mm256_store_ps(lanes, largest);
  float best = lanes[0];
  for (const float lane : lanes) best = lane > best ? lane : best;
  return best;
}

// A shuffle of the eight words of each 128-bit lane; 8: zero.
inline __m256i words(int w0, int w1, int w2, int w3, int w4, int w5, int w6, int w7) {
  const auto two = [](int a, int b) {
    const auto bytes = [](int w) { return w == 8 ? 0x8080U : static_cast<unsigned>((2 * w + 1) << 8 | 2 * w); };
    return static_cast<int>(bytes(a) | bytes(b) << 16);
  };
  return _mm256_broadcastsi128_si256(_mm_setr_epi32(two(w0, w1), two(w2, w3), two(w4, w5), two(w6, w7)));
}

// Makes the tables of half a step, 16 columns, at a time. In its 16-bit vectors lane l holds group 2 l, then 2 l + 1.
struct Tabulator {
  __m256 weights_per_range;
  __m256 fine;
  __m256i total_i64x4 = _mm256_setzero_si256();
  __m256i zero_i32x8 = _mm256_setzero_si256();  // each group counts twice

  explicit Tabulator(float unit, float largest)
      : weights_per_range(_mm256_set1_ps(static_cast<float>(kLargestWeight) / largest)),
        fine(_mm256_set1_ps(static_cast<float>(kFineSteps) / unit)) {}

  // Groups 0 and 2 go to the first two places of entries and weights, 1 and 3 half a step further.
  void add_half_step(const float* scaled, std::uint8_t* entries, std::uint8_t* weights) {
    __m256i weight[2], q[2];
    for (std::size_t h = 0; h < 2; ++h) {
      const __m256 a = _mm256_load_ps(scaled + h * kLanes);
      const __m256 range = _mm256_mul_ps(group_sum(absolute(a)), weights_per_range);
      const __m256i ceiling = _mm256_cvtps_epi32(_mm256_ceil_ps(range));
      weight[h] = _mm256_max_epi32(_mm256_set1_epi32(1), _mm256_min_epi32(ceiling, _mm256_set1_epi32(kLargestWeight)));
      q[h] = _mm256_cvtps_epi32(_mm256_mul_ps(a, _mm256_div_ps(fine, _mm256_cvtepi32_ps(weight[h]))));
    }
    const __m256i q_i16x16 = _mm256_packs_epi32(q[0], q[1]);
    const __m256i weight_i16x16 = _mm256_packs_epi32(weight[0], weight[1]);
    weights[0] = static_cast<std::uint8_t>(_mm256_extract_epi16(weight_i16x16, 0));
    weights[1] = static_cast<std::uint8_t>(_mm256_extract_epi16(weight_i16x16, 8));
    weights[4] = static_cast<std::uint8_t>(_mm256_extract_epi16(weight_i16x16, 4));
    weights[5] = static_cast<std::uint8_t>(_mm256_extract_epi16(weight_i16x16, 12));

    const __m256i negative = _mm256_min_epi16(q_i16x16, _mm256_setzero_si256());
    const __m256i pairs = _mm256_madd_epi16(negative, _mm256_set1_epi16(1));
    const __m256i negatives = _mm256_add_epi32(pairs, _mm256_shuffle_epi32(pairs, 0xB1));
    const __m256i lift = _mm256_srai_epi32(_mm256_sub_epi32(_mm256_set1_epi32(kFineSteps - 1), negatives), 7);
    zero_i32x8 = _mm256_add_epi32(zero_i32x8, _mm256_madd_epi16(lift, weight_i16x16));
    const __m256i shares = _mm256_madd_epi16(q_i16x16, weight_i16x16);
    total_i64x4 = _mm256_add_epi64(total_i64x4, _mm256_cvtepi32_epi64(_mm256_castsi256_si128(shares)));
    total_i64x4 = _mm256_add_epi64(total_i64x4, _mm256_cvtepi32_epi64(_mm256_extracti128_si256(shares, 1)));

    // Entry b is low[b & 3] + high[b >> 2].
    const __m256i base = _mm256_add_epi32(_mm256_slli_epi32(lift, 7), _mm256_set1_epi32(kFineSteps / 2));
    const __m256i low = _mm256_add_epi16(_mm256_shuffle_epi8(q_i16x16, words(8, 0, 8, 0, 8, 4, 8, 4)),
                                         _mm256_shuffle_epi8(q_i16x16, words(8, 8, 1, 1, 8, 8, 5, 5)));
    const __m256i chosen = _mm256_add_epi16(_mm256_shuffle_epi8(q_i16x16, words(8, 2, 8, 2, 8, 6, 8, 6)),
                                            _mm256_shuffle_epi8(q_i16x16, words(8, 8, 3, 3, 8, 8, 7, 7)));
    const __m256i high = _mm256_add_epi16(chosen, _mm256_shuffle_epi8(base, words(0, 0, 0, 0, 4, 4, 4, 4)));
    store_tables(_mm256_unpacklo_epi64(low, low), high, words(0, 0, 0, 0, 1, 1, 1, 1), words(2, 2, 2, 2, 3, 3, 3, 3),
                 entries);
    store_tables(_mm256_unpackhi_epi64(low, low), high, words(4, 4, 4, 4, 5, 5, 5, 5), words(6, 6, 6, 6, 7, 7, 7, 7),
                 entries + 64);
  }

 private:
  static void store_tables(__m256i low, __m256i high, __m256i first, __m256i second, std::uint8_t* entries) {
    const __m256i to_7 = _mm256_srli_epi16(_mm256_add_epi16(low, _mm256_shuffle_epi8(high, first)), 7);
    const __m256i to_15 = _mm256_srli_epi16(_mm256_add_epi16(low, _mm256_shuffle_epi8(high, second)), 7);
    _mm256_store_si256(reinterpret_cast<__m256i*>(entries), _mm256_packus_epi16(to_7, to_15));
  }
};

void tabulate(const float* x, const float* d, std::size_t cols, float* scaled, LookupTables* out) {
  const std::size_t steps = steps_for(cols);
  const float largest = scale_activations(x, d, cols, scaled);
  if (!(largest <= __FLT_MAX__)) return tabulate_not_finite(steps, out);
  out->unit = largest / (kEntryRange * static_cast<float>(kLargestWeight));
  Tabulator tables(out->unit, largest);
  for (std::size_t h = 0; h < 2 * steps; ++h)
    tables.add_half_step(scaled + 2 * kLanes * h, out->entries + h / 2 * kStepEntries + h % 2 * 32,
                         out->weights + h / 2 * kStepWeights + h % 2 * 2);
  alignas(32) std::int32_t zeros[kLanes];
  alignas(32) std::int64_t totals[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(zeros), tables.zero_i32x8);
  _mm256_store_si256(reinterpret_cast<__m256i*>(totals), tables.total_i64x4);
  std::int32_t zero = 0;
  for (const std::int32_t lane : zeros) zero += lane;
  out->zero = zero / 2;
  const auto total = static_cast<float>((totals[0] + totals[1]) + (totals[2] + totals[3]));
  out->total = total * (out->unit / static_cast<float>(kFineSteps));
}

// [0][j] and [1][j] of a step beside one another; j is 0 and 1 in the two lanes, or 2 and 3.
inline __m256i weight_pairs(const std::uint8_t* weights, std::size_t half) {
  std::int64_t eight;
  __builtin_memcpy(&eight, weights, sizeof eight);
  const auto low = static_cast<long long>(half == 0 ? 0x0400040004000400 : 0x0602060206020602);
  const auto high = static_cast<long long>(half == 0 ? 0x0501050105010501 : 0x0703070307030703);
  return _mm256_shuffle_epi8(_mm256_set1_epi64x(eight), _mm256_set_epi64x(high, high, low, low));
}

// What fits 16-bit sums: 4 steps * 4 * 255 * 16 < 2^16.
constexpr std::size_t kStepsIn16Bits = 4;

template <std::size_t kColumns>
struct Weights {
  __m256i of[kColumns][kStepsIn16Bits][2];
};

struct Block {
  template <std::size_t kTiles, std::size_t kColumns>
  static void run(const LookupSource& b, const LookupTables* x, const LookupSums& y) {
    const __m256i none = _mm256_setzero_si256();
    __m256i sums[kTiles][kColumns][4];  // of rows 0 - 3, 4 - 7, ...; the two lanes are added at the end
    for (auto& of_tile : sums)
      for (auto& of_column : of_tile)
        for (__m256i& four_rows : of_column) four_rows = none;
    for (std::size_t s = 0; s < b.steps; s += kStepsIn16Bits) {
      const std::size_t count = s + kStepsIn16Bits < b.steps ? kStepsIn16Bits : b.steps - s;
      Weights<kColumns> weights;
      for (std::size_t c = 0; c < kColumns; ++c)
        for (std::size_t u = 0; u < count; ++u)
          for (std::size_t half = 0; half < 2; ++half)
            weights.of[c][u][half] = weight_pairs(x[c].weights + (s + u) * kStepWeights, half);
      for (std::size_t t = 0; t < kTiles; ++t)
        add_steps<kColumns>(b.words + s * b.stride + t * kTileStep, b.stride, x, s, count, weights, sums[t]);
    }
    for (std::size_t t = 0; t < kTiles; ++t)
      for (std::size_t c = 0; c < kColumns; ++c)
        for (std::size_t four = 0; four < 4; ++four) {
          const __m256i lanes = sums[t][c][four];
          const __m128i rows = _mm_add_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
          std::int32_t* to = y.data + c * y.stride + t * kTileRows + 4 * four;
          _mm_store_si128(reinterpret_cast<__m128i*>(to), rows);
        }
  }

 private:
  template <std::size_t kColumns>
  static void add_steps(const std::uint8_t* bytes, std::size_t stride, const LookupTables* x, std::size_t s,
                        std::size_t count, const Weights<kColumns>& weights, __m256i (&sums)[kColumns][4]) {
    const __m256i low_bits = _mm256_set1_epi8(15);
    const __m256i none = _mm256_setzero_si256();
    __m256i sums_u16x16[kColumns][2];  // of rows 0 - 7, 8 - 15
    for (auto& of_column : sums_u16x16) of_column[0] = of_column[1] = none;
    for (std::size_t u = 0; u < count; ++u) {
      fetch_ahead<kColumns>(bytes + u * stride);
      for (std::size_t half = 0; half < 2; ++half) {  // bytes 0 and 1, then 2 and 3, of the half-words
        const auto* place = reinterpret_cast<const __m256i*>(bytes + u * stride + 32 * half);
        const __m256i two_groups = _mm256_load_si256(place);
        const __m256i low = _mm256_and_si256(two_groups, low_bits);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(two_groups, 4), low_bits);
        for (std::size_t c = 0; c < kColumns; ++c) {
          const auto* entries = reinterpret_cast<const __m256i*>(x[c].entries + (s + u) * kStepEntries + 32 * half);
          const __m256i of_low = _mm256_shuffle_epi8(_mm256_load_si256(entries), low);
          const __m256i of_high = _mm256_shuffle_epi8(_mm256_load_si256(entries + 2), high);
          const __m256i weight = weights.of[c][u][half];
          const __m256i rows0 = _mm256_maddubs_epi16(_mm256_unpacklo_epi8(of_low, of_high), weight);
          const __m256i rows8 = _mm256_maddubs_epi16(_mm256_unpackhi_epi8(of_low, of_high), weight);
          sums_u16x16[c][0] = _mm256_add_epi16(sums_u16x16[c][0], rows0);
          sums_u16x16[c][1] = _mm256_add_epi16(sums_u16x16[c][1], rows8);
        }
      }
    }
    for (std::size_t c = 0; c < kColumns; ++c)
      for (std::size_t half = 0; half < 2; ++half) {
        const __m256i rows = sums_u16x16[c][half];
        __m256i* to = sums[c] + 2 * half;
        to[0] = _mm256_add_epi32(to[0], _mm256_unpacklo_epi16(rows, none));
        to[1] = _mm256_add_epi32(to[1], _mm256_unpackhi_epi16(rows, none));
      }
  }
};

}  // namespace

const LookupKernels kLookupAvx2 = {"avx2", TileLayout::kBytes, tabulate, look_up<Block>, finish};

}  // namespace diba
