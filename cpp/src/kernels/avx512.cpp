// AVX-512 F, BW, DQ, VL: 16 lanes of float32, bits used directly as mask registers. Same bytes as scalar.cpp.

#include <immintrin.h>

#include "kernels/common.hpp"
#include "kernels/dense_rows.hpp"
#include "kernels/integer_256.hpp"

#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512DQ__) || !defined(__AVX512VL__)
#error "avx512.cpp needs -mavx512f -mavx512bw -mavx512dq -mavx512vl"
#endif

namespace diba {
namespace {

constexpr std::size_t kLanes = 16;
constexpr std::size_t kVectors = kWordBits / kLanes;  // vectors that one word of bits covers
inline __mmask16 lane_mask(std::uint64_t word, std::size_t v) { return static_cast<__mmask16>(word >> (kLanes * v)); }

inline __mmask16 first_lanes(std::size_t count) { return static_cast<__mmask16>((1U << smaller(count, kLanes)) - 1U); }

void pack_row(const float* x, std::size_t cols, std::uint64_t* words) {
  const __m512 zero = _mm512_setzero_ps();
  for (std::size_t w = 0; w < words_for(cols); ++w) {
    std::uint64_t word = 0;
    const std::size_t end = smaller(kWordBits, cols - w * kWordBits);
    for (std::size_t l = 0; l < end; l += kLanes) {
      const __m512 x_f32x16 = _mm512_maskz_loadu_ps(first_lanes(end - l), x + w * kWordBits + l);
      word |= static_cast<std::uint64_t>(_mm512_cmp_ps_mask(x_f32x16, zero, _CMP_GT_OQ)) << l;
    }
    words[w] = word;
  }
}

void unpack_row(const std::uint64_t* words, std::size_t cols, float zero, float one, float* x) {
  const __m512 zero_f32x16 = _mm512_set1_ps(zero);
  const __m512 one_f32x16 = _mm512_set1_ps(one);
  for (std::size_t j = 0; j < cols; j += kLanes) {
    const __mmask16 bits = lane_mask(words[j / kWordBits], j % kWordBits / kLanes);
    _mm512_mask_storeu_ps(x + j, first_lanes(cols - j), _mm512_mask_blend_ps(bits, zero_f32x16, one_f32x16));
  }
}

inline __m512 add_where(__m512 sum_f32x16, __mmask16 bits, __m512 x_f32x16) {
  return _mm512_mask_add_ps(sum_f32x16, bits, sum_f32x16, x_f32x16);
}

// Adds lanes l and l + 32, l + 16, ... l + 1 of 64.
inline float add_lanes(const __m512 sums_f32x16[kVectors]) {
  const __m512 lanes32 =
      _mm512_add_ps(_mm512_add_ps(sums_f32x16[0], sums_f32x16[2]), _mm512_add_ps(sums_f32x16[1], sums_f32x16[3]));
  const __m256 lanes8 = _mm256_add_ps(_mm512_castps512_ps256(lanes32), _mm512_extractf32x8_ps(lanes32, 1));
  const __m128 lanes4 = _mm_add_ps(_mm256_castps256_ps128(lanes8), _mm256_extractf128_ps(lanes8, 1));
  const __m128 lanes2 = _mm_add_ps(lanes4, _mm_movehl_ps(lanes4, lanes4));
  return _mm_cvtss_f32(_mm_add_ss(lanes2, _mm_movehdup_ps(lanes2)));
}

void row_sums(const std::uint64_t* words, std::size_t rows, std::size_t cols, const float* x, float* y) {
  const std::size_t full = cols / kWordBits;
  for (std::size_t i = 0; i < rows; ++i) {
    const std::uint64_t* row = words + i * words_for(cols);
    __m512 sums[kVectors] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    for (std::size_t w = 0; w < full; ++w)
      for (std::size_t v = 0; v < kVectors; ++v)
        sums[v] = add_where(sums[v], lane_mask(row[w], v), _mm512_loadu_ps(x + w * kWordBits + v * kLanes));
    if (full < words_for(cols)) {
      for (std::size_t v = 0; v < kVectors; ++v) {
        const __mmask16 bits = lane_mask(row[full], v);  // the tail's bits are zero: nothing past the end is read
        sums[v] = add_where(sums[v], bits, _mm512_maskz_loadu_ps(bits, x + full * kWordBits + v * kLanes));
      }
    }
    y[i] = add_lanes(sums);
  }
}

// kWords neighbouring words at a time: their columns stay in registers while the rows go by.
template <std::size_t kWords>
void sum_columns(const std::uint64_t* words, std::size_t rows, std::size_t row_words, const float* x, float* y,
                 std::size_t count) {
  __m512 sums[kWords * kVectors];
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  for (std::size_t i = 0; i < rows; ++i) {
    const __m512 x_f32x16 = _mm512_set1_ps(x[i]);
    for (std::size_t v = 0; v < kWords * kVectors; ++v) {
      const std::uint64_t word = words[i * row_words + v / kVectors];
      sums[v] = add_where(sums[v], lane_mask(word, v % kVectors), x_f32x16);
    }
  }
  for (std::size_t v = 0; v < kWords * kVectors && v * kLanes < count; ++v)
    _mm512_mask_storeu_ps(y + v * kLanes, first_lanes(count - v * kLanes), sums[v]);
}

void column_sums(const std::uint64_t* words, std::size_t rows, std::size_t cols, std::size_t word_begin,
                 std::size_t word_end, const float* x, float* y) {
  constexpr std::size_t kWide = 4;
  std::size_t w = word_begin;
  for (; w + kWide <= word_end; w += kWide)
    sum_columns<kWide>(words + w, rows, words_for(cols), x, y + w * kWordBits, cols - w * kWordBits);
  for (; w < word_end; ++w)
    sum_columns<1>(words + w, rows, words_for(cols), x, y + w * kWordBits, cols - w * kWordBits);
}

constexpr std::size_t kTileVectors = kTile / kLanes;

void fill_table(const float* x, const float* weights, float* table) {
  for (std::size_t g = 0; g < kGroups; ++g) {
    for (std::size_t v = 0; v < kTileVectors; ++v) {
      __m512 sums[16];
      sums[0] = _mm512_setzero_ps();
      for (std::size_t top = 0; top < 4; ++top) {
        const std::size_t j = g * 4 + top;
        const __m512 x_f32x16 = _mm512_mul_ps(_mm512_load_ps(x + j * kTile + v * kLanes), _mm512_set1_ps(weights[j]));
        for (std::size_t b = 0; b < std::size_t{1} << top; ++b)
          sums[(std::size_t{1} << top) + b] = _mm512_add_ps(sums[b], x_f32x16);
      }
      for (std::size_t b = 0; b < 16; ++b) _mm512_store_ps(table + (g * 16 + b) * kTile + v * kLanes, sums[b]);
    }
  }
}

// Adds the sums that groups [kFirst, kFirst + kCount) choose, neighbours first: short chains of additions.
template <std::size_t kFirst, std::size_t kCount>
inline __m512 add_groups(const float* table, const std::size_t choice[]) {
  if constexpr (kCount == 1) {
    return _mm512_load_ps(table + kFirst * 16 * kTile + choice[kFirst]);
  } else {
    return _mm512_add_ps(add_groups<kFirst, kCount / 2>(table, choice),
                         add_groups<kFirst + kCount / 2, kCount / 2>(table, choice));
  }
}

template <bool kFirst>
void add_half(const std::uint64_t* words, std::size_t rows, std::size_t row_words, std::size_t h, const float* table,
              float* y) {
  for (std::size_t i = 0; i < rows; ++i) {
    const std::uint64_t half = half_word(words + i * row_words, h);
    std::size_t choice[kGroups];  // where in its group's table a group's sums begin: 32 floats for each of 16 nibbles
    choice[0] = ((half << 4) & 0xF0U) * 2;
    for (std::size_t g = 1; g < kGroups; ++g) choice[g] = ((half >> (4 * g - 4)) & 0xF0U) * 2;
    for (std::size_t v = 0; v < kTileVectors; ++v) {
      float* out = y + i * kTile + v * kLanes;
      const __m512 before = kFirst ? _mm512_setzero_ps() : _mm512_load_ps(out);
      _mm512_store_ps(out, _mm512_add_ps(before, add_groups<0, kGroups>(table + v * kLanes, choice)));
    }
  }
}

void row_sums_tile(const std::uint64_t* words, std::size_t rows, std::size_t cols, const float* x, const float* weights,
                   float* y, float* table) {
  for (std::size_t h = 0; h < padded_cols(cols) / kHalfBits; ++h) {
    fill_table(x + h * kHalfBits * kTile, weights + h * kHalfBits, table);
    if (h == 0) {
      add_half<true>(words, rows, words_for(cols), h, table, y);
    } else {
      add_half<false>(words, rows, words_for(cols), h, table, y);
    }
  }
}

inline double add_lanes(__m512d x_f64x8) {
  const __m256d lanes4 = _mm256_add_pd(_mm512_castpd512_pd256(x_f64x8), _mm512_extractf64x4_pd(x_f64x8, 1));
  const __m128d lanes2 = _mm_add_pd(_mm256_castpd256_pd128(lanes4), _mm256_extractf128_pd(lanes4, 1));
  return _mm_cvtsd_f64(_mm_add_sd(lanes2, _mm_unpackhi_pd(lanes2, lanes2)));
}

// kRows rows share the loads of x.
template <std::size_t kRows>
void dots_of(const double* x, const double* y, std::size_t stride, std::size_t cols, double* dots) {
  __m512d sums[kRows];
  for (__m512d& sum : sums) sum = _mm512_setzero_pd();
  std::size_t j = 0;
  for (; j + 8 <= cols; j += 8)
    for (std::size_t r = 0; r < kRows; ++r)
      sums[r] = _mm512_add_pd(sums[r], _mm512_mul_pd(_mm512_loadu_pd(x + j), _mm512_loadu_pd(y + r * stride + j)));
  const auto rest = static_cast<__mmask8>((1U << (cols - j)) - 1U);
  for (std::size_t r = 0; r < kRows; ++r) {
    const __m512d product =
        _mm512_mul_pd(_mm512_maskz_loadu_pd(rest, x + j), _mm512_maskz_loadu_pd(rest, y + r * stride + j));
    dots[r] = add_lanes(_mm512_mask_add_pd(sums[r], rest, sums[r], product));
  }
}

void dot_rows(const double* x, const double* y, std::size_t stride, std::size_t rows, std::size_t cols, double* dots) {
  if (rows == 4) {
    dots_of<4>(x, y, stride, cols, dots);
  } else {
    for (std::size_t r = 0; r < rows; ++r) dots_of<1>(x, y + r * stride, stride, cols, dots + r);
  }
}

// One row of a FlipProblem in terms of the gains of its flips; see scalar.cpp.
struct Row {
  float linear;
  float curvature;
  float threshold;
  float* gains;  // (k), padded with -infinity
  std::uint64_t* words;
};

inline __m512 negate_where(__mmask16 bits, __m512 x_f32x16) {
  return _mm512_mask_xor_ps(x_f32x16, bits, x_f32x16, _mm512_set1_ps(-0.0F));
}

// Returns the largest gain.
float open_row(const FlipProblem& f, std::size_t i, float* scratch, Row& row) {
  const float moved = f.step * f.scale[i];
  row.linear = 2.0F * moved;
  row.curvature = moved * moved;
  row.threshold = kFlipThreshold * (row.curvature * f.max_diagonal);
  row.gains = scratch;
  row.words = f.words + i * words_for(f.k);
  const float* correlations = f.correlations + i * f.k;
  const __m512 linear = _mm512_set1_ps(row.linear);
  const __m512 curvature = _mm512_set1_ps(row.curvature);
  const __m512 none = _mm512_set1_ps(-__builtin_inff());
  __m512 best = none;
  for (std::size_t j = 0; j < kWordBits * words_for(f.k); j += kLanes) {
    const __mmask16 lanes = j < f.k ? first_lanes(f.k - j) : __mmask16{0};
    const __mmask16 bits = lane_mask(row.words[j / kWordBits], j % kWordBits / kLanes);
    const __m512 slope = _mm512_mul_ps(linear, _mm512_maskz_loadu_ps(lanes, correlations + j));
    const __m512 cost = _mm512_mul_ps(curvature, _mm512_maskz_loadu_ps(lanes, f.diagonal + j));
    const __m512 gain = _mm512_mask_sub_ps(none, lanes, negate_where(bits, slope), cost);
    _mm512_store_ps(row.gains + j, gain);
    best = _mm512_max_ps(best, gain);
  }
  return _mm512_reduce_max_ps(best);
}

inline __m512 moved_gain(__m512 gain, __mmask16 bits, __m512 change, __m512 unchange, __m512 gram) {
  return _mm512_add_ps(gain, _mm512_mul_ps(_mm512_mask_blend_ps(bits, change, unchange), gram));
}

// Returns the largest gain after the flip of bit b. Bit b's own lane stays out of the maximum and is set last: its new
// gain, -gains[b], is negative and never the one that counts.
float apply_flip(const FlipProblem& f, const Row& row, std::size_t b) {
  const float* gram = f.gram + b * f.k;
  const float undo = -row.gains[b];
  row.gains[b] = -__builtin_inff();
  const float toward = 2.0F * row.curvature;
  const bool was_set = (row.words[b / kWordBits] >> (b % kWordBits)) & 1U;
  const __m512 change = _mm512_set1_ps(was_set ? toward : -toward);
  const __m512 unchange = _mm512_set1_ps(was_set ? -toward : toward);
  __m512 best[kVectors];
  for (__m512& lane : best) lane = _mm512_set1_ps(-__builtin_inff());
  const std::size_t full = f.k / kWordBits;
  for (std::size_t w = 0; w < full; ++w) {
    for (std::size_t v = 0; v < kVectors; ++v) {
      float* gains = row.gains + w * kWordBits + v * kLanes;
      const __m512 gain = moved_gain(_mm512_load_ps(gains), lane_mask(row.words[w], v), change, unchange,
                                     _mm512_loadu_ps(gram + w * kWordBits + v * kLanes));
      _mm512_store_ps(gains, gain);
      best[v] = _mm512_max_ps(best[v], gain);
    }
  }
  for (std::size_t j = full * kWordBits, v = 0; j < f.k; j += kLanes, ++v) {
    const __m512 gain = moved_gain(_mm512_load_ps(row.gains + j), lane_mask(row.words[full], v), change, unchange,
                                   _mm512_maskz_loadu_ps(first_lanes(f.k - j), gram + j));
    _mm512_store_ps(row.gains + j, gain);
    best[v] = _mm512_max_ps(best[v], gain);
  }
  row.gains[b] = undo;
  row.words[b / kWordBits] ^= std::uint64_t{1} << (b % kWordBits);
  return _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(best[0], best[1]), _mm512_max_ps(best[2], best[3])));
}

void close_row(const FlipProblem& f, const Row& row, std::size_t i) {
  float* correlations = f.correlations + i * f.k;
  const __m512 linear = _mm512_set1_ps(row.linear);
  const __m512 curvature = _mm512_set1_ps(row.curvature);
  for (std::size_t j = 0; j < f.k; j += kLanes) {
    const __mmask16 lanes = first_lanes(f.k - j);
    const __mmask16 bits = lane_mask(row.words[j / kWordBits], j % kWordBits / kLanes);
    const __m512 cost = _mm512_mul_ps(curvature, _mm512_maskz_loadu_ps(lanes, f.diagonal + j));
    const __m512 slope = _mm512_add_ps(_mm512_load_ps(row.gains + j), cost);
    _mm512_mask_storeu_ps(correlations + j, lanes, _mm512_div_ps(negate_where(bits, slope), linear));
  }
}

// The first bit of the largest gain; k if rounding left none.
std::size_t find_bit(const Row& row, std::size_t k, float best) {
  const __m512 best_f32x16 = _mm512_set1_ps(best);
  for (std::size_t j = 0; j < k; j += kLanes) {
    const __mmask16 found = _mm512_cmp_ps_mask(_mm512_load_ps(row.gains + j), best_f32x16, _CMP_EQ_OQ);
    if (found != 0) return j + static_cast<std::size_t>(__builtin_ctz(found));
  }
  return k;
}

struct Vector {
  using Type = __m512;
  static constexpr std::size_t kLanes = diba::kLanes;
  static Type load(const float* x) { return _mm512_load_ps(x); }
  static void store(float* x, Type x_f32x16) { _mm512_store_ps(x, x_f32x16); }
  static Type set1(float x) { return _mm512_set1_ps(x); }
  static Type fused(Type a, Type b, Type c) { return _mm512_fmadd_ps(a, b, c); }
};

std::uint64_t above(const Row& /*row*/, const float* x, float limit) {
  const __m512 limit_f32x16 = _mm512_set1_ps(limit);
  std::uint64_t word = 0;
  for (std::size_t l = 0; l < kWordBits; l += kLanes) {
    const __mmask16 found = _mm512_cmp_ps_mask(_mm512_load_ps(x + l), limit_f32x16, _CMP_GT_OQ);
    word |= static_cast<std::uint64_t>(found) << l;
  }
  return word;
}

float largest_in(const Row& /*row*/, const float* x, std::uint64_t word) {
  __m512 best = _mm512_set1_ps(-__builtin_inff());
  for (std::size_t v = 0; v < kVectors; ++v)
    best = _mm512_mask_max_ps(best, lane_mask(word, v), best, _mm512_load_ps(x + v * kLanes));
  return _mm512_reduce_max_ps(best);
}

}  // namespace

const Kernels kAvx512 = {"avx512",     pack_row,         unpack_row,       row_sums,
                         column_sums,  row_sums_tile,    dot_rows,         fused_tile<Vector, 12>,
                         invert_pivot, quantize_row,     integer_tile_256, sign_target,
                         sign_project, search_rows<Row>, &kLookupAvx512};

}  // namespace diba
