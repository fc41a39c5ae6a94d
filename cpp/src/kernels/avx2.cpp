// AVX2: 8 lanes of float32, bits widened to lane masks. Same bytes as scalar.cpp.

#include <immintrin.h>

#include "kernels/common.hpp"
#include "kernels/dense_rows.hpp"
#include "kernels/integer_256.hpp"

#if !defined(__AVX2__) || !defined(__FMA__)
#error "avx2.cpp needs -mavx2 -mfma"
#endif

namespace diba {
namespace {

constexpr std::size_t kLanes = 8;
constexpr std::size_t kVectors = kWordBits / kLanes;  // vectors that one word of bits covers
inline unsigned lane_bits(std::uint64_t word, std::size_t v) {
  return static_cast<unsigned>(word >> (kLanes * v)) & 0xFFU;
}

// All ones in the lanes whose bit is set, for masks of loads, stores and selections.
inline __m256i lane_mask(unsigned bits) {
  const __m256i lane_bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane_bit), lane_bit);
}

inline __m256i first_lanes(std::size_t count) { return lane_mask((1U << smaller(count, kLanes)) - 1U); }

inline float max_lane(__m256 x_f32x8) {
  const __m128 lanes4 = _mm_max_ps(_mm256_castps256_ps128(x_f32x8), _mm256_extractf128_ps(x_f32x8, 1));
  const __m128 lanes2 = _mm_max_ps(lanes4, _mm_movehl_ps(lanes4, lanes4));
  return _mm_cvtss_f32(_mm_max_ss(lanes2, _mm_movehdup_ps(lanes2)));
}

void pack_row(const float* x, std::size_t cols, std::uint64_t* words) {
  const __m256 zero = _mm256_setzero_ps();
  for (std::size_t w = 0; w < words_for(cols); ++w) {
    std::uint64_t word = 0;
    const std::size_t end = smaller(kWordBits, cols - w * kWordBits);
    for (std::size_t l = 0; l < end; l += kLanes) {
      const __m256 x_f32x8 = _mm256_maskload_ps(x + w * kWordBits + l, first_lanes(end - l));
      const int bits = _mm256_movemask_ps(_mm256_cmp_ps(x_f32x8, zero, _CMP_GT_OQ));
      word |= static_cast<std::uint64_t>(bits) << l;
    }
    words[w] = word;
  }
}

void unpack_row(const std::uint64_t* words, std::size_t cols, float zero, float one, float* x) {
  const __m256 zero_f32x8 = _mm256_set1_ps(zero);
  const __m256 one_f32x8 = _mm256_set1_ps(one);
  for (std::size_t j = 0; j < cols; j += kLanes) {
    const __m256i bits = lane_mask(lane_bits(words[j / kWordBits], j % kWordBits / kLanes));
    const __m256 x_f32x8 = _mm256_blendv_ps(zero_f32x8, one_f32x8, _mm256_castsi256_ps(bits));
    _mm256_maskstore_ps(x + j, first_lanes(cols - j), x_f32x8);
  }
}

// A masked lane adds +0, which changes nothing: no sum that starts at +0 is ever -0.
inline __m256 add_where(__m256 sum_f32x8, __m256i bits, __m256 x_f32x8) {
  return _mm256_add_ps(sum_f32x8, _mm256_and_ps(_mm256_castsi256_ps(bits), x_f32x8));
}

// Adds lanes l and l + 32, l + 16, ... l + 1 of 64.
inline float add_lanes(const __m256 sums_f32x8[kVectors]) {
  __m256 lanes32[4];
  for (std::size_t v = 0; v < 4; ++v) lanes32[v] = _mm256_add_ps(sums_f32x8[v], sums_f32x8[v + 4]);
  const __m256 lanes8 = _mm256_add_ps(_mm256_add_ps(lanes32[0], lanes32[2]), _mm256_add_ps(lanes32[1], lanes32[3]));
  const __m128 lanes4 = _mm_add_ps(_mm256_castps256_ps128(lanes8), _mm256_extractf128_ps(lanes8, 1));
  const __m128 lanes2 = _mm_add_ps(lanes4, _mm_movehl_ps(lanes4, lanes4));
  return _mm_cvtss_f32(_mm_add_ss(lanes2, _mm_movehdup_ps(lanes2)));
}

void row_sums(const std::uint64_t* words, std::size_t rows, std::size_t cols, const float* x, float* y) {
  const std::size_t full = cols / kWordBits;
  for (std::size_t i = 0; i < rows; ++i) {
    const std::uint64_t* row = words + i * words_for(cols);
    __m256 sums[kVectors];
    for (__m256& sum : sums) sum = _mm256_setzero_ps();
    for (std::size_t w = 0; w < full; ++w)
      for (std::size_t v = 0; v < kVectors; ++v)
        sums[v] = add_where(sums[v], lane_mask(lane_bits(row[w], v)), _mm256_loadu_ps(x + w * kWordBits + v * kLanes));
    if (full < words_for(cols)) {
      for (std::size_t v = 0; v < kVectors; ++v) {
        const __m256i bits = lane_mask(lane_bits(row[full], v));  // the tail's bits are zero: nothing past it is read
        sums[v] = add_where(sums[v], bits, _mm256_maskload_ps(x + full * kWordBits + v * kLanes, bits));
      }
    }
    y[i] = add_lanes(sums);
  }
}

void column_sums(const std::uint64_t* words, std::size_t rows, std::size_t cols, std::size_t word_begin,
                 std::size_t word_end, const float* x, float* y) {
  for (std::size_t w = word_begin; w < word_end; ++w) {
    __m256 sums[kVectors];
    for (__m256& sum : sums) sum = _mm256_setzero_ps();
    for (std::size_t i = 0; i < rows; ++i) {
      const std::uint64_t word = words[i * words_for(cols) + w];
      const __m256 x_f32x8 = _mm256_set1_ps(x[i]);
      for (std::size_t v = 0; v < kVectors; ++v) sums[v] = add_where(sums[v], lane_mask(lane_bits(word, v)), x_f32x8);
    }
    for (std::size_t v = 0, j = w * kWordBits; v < kVectors && j < cols; ++v, j += kLanes)
      _mm256_maskstore_ps(y + j, first_lanes(cols - j), sums[v]);
  }
}

constexpr std::size_t kTileVectors = kTile / kLanes;

void fill_table(const float* x, const float* weights, float* table) {
  for (std::size_t g = 0; g < kGroups; ++g) {
    for (std::size_t v = 0; v < kTileVectors; ++v) {
      __m256 sums[16];
      sums[0] = _mm256_setzero_ps();
      for (std::size_t top = 0; top < 4; ++top) {
        const std::size_t j = g * 4 + top;
        const __m256 x_f32x8 = _mm256_mul_ps(_mm256_load_ps(x + j * kTile + v * kLanes), _mm256_set1_ps(weights[j]));
        for (std::size_t b = 0; b < std::size_t{1} << top; ++b)
          sums[(std::size_t{1} << top) + b] = _mm256_add_ps(sums[b], x_f32x8);
      }
      for (std::size_t b = 0; b < 16; ++b) _mm256_store_ps(table + (g * 16 + b) * kTile + v * kLanes, sums[b]);
    }
  }
}

// Adds the sums that groups [kFirst, kFirst + kCount) choose, neighbours first: short chains of additions.
template <std::size_t kFirst, std::size_t kCount>
inline __m256 add_groups(const float* table, const std::size_t choice[]) {
  if constexpr (kCount == 1) {
    return _mm256_load_ps(table + kFirst * 16 * kTile + choice[kFirst]);
  } else {
    return _mm256_add_ps(add_groups<kFirst, kCount / 2>(table, choice),
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
      const __m256 before = kFirst ? _mm256_setzero_ps() : _mm256_load_ps(out);
      _mm256_store_ps(out, _mm256_add_ps(before, add_groups<0, kGroups>(table + v * kLanes, choice)));
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

// kRows rows share the loads of x; lanes 0 to 3 and 4 to 7 of the sums are a vector each.
template <std::size_t kRows>
void dots_of(const double* x, const double* y, std::size_t stride, std::size_t cols, double* dots) {
  __m256d low[kRows], high[kRows];
  for (std::size_t r = 0; r < kRows; ++r) low[r] = high[r] = _mm256_setzero_pd();
  const std::size_t full = cols / 8 * 8;
  for (std::size_t j = 0; j < full; j += 8) {
    for (std::size_t r = 0; r < kRows; ++r) {
      const double* row = y + r * stride + j;
      low[r] = _mm256_add_pd(low[r], _mm256_mul_pd(_mm256_loadu_pd(x + j), _mm256_loadu_pd(row)));
      high[r] = _mm256_add_pd(high[r], _mm256_mul_pd(_mm256_loadu_pd(x + j + 4), _mm256_loadu_pd(row + 4)));
    }
  }
  for (std::size_t r = 0; r < kRows; ++r) {
    alignas(32) double lanes[8];
    _mm256_store_pd(lanes, low[r]);
    _mm256_store_pd(lanes + 4, high[r]);
    for (std::size_t j = full; j < cols; ++j) lanes[j - full] += x[j] * y[r * stride + j];
    for (std::size_t half = 4; half > 0; half /= 2)
      for (std::size_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    dots[r] = lanes[0];
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
  float* signs;  // (k), padded with +1
  std::uint64_t* words;
};

// Returns the largest gain.
float open_row(const FlipProblem& f, std::size_t i, float* scratch, Row& row) {
  const float moved = f.step * f.scale[i];
  row.linear = 2.0F * moved;
  row.curvature = moved * moved;
  row.threshold = kFlipThreshold * (row.curvature * f.max_diagonal);
  row.gains = scratch;
  row.signs = scratch + flip_scratch_floats(f.k) / 3;
  row.words = f.words + i * words_for(f.k);
  const float* correlations = f.correlations + i * f.k;
  const __m256 linear = _mm256_set1_ps(row.linear);
  const __m256 curvature = _mm256_set1_ps(row.curvature);
  const __m256 none = _mm256_set1_ps(-__builtin_inff());
  __m256 best = none;
  for (std::size_t j = 0; j < f.k; j += kLanes) {
    const __m256i lanes = first_lanes(f.k - j);
    const __m256i bits = lane_mask(lane_bits(row.words[j / kWordBits], j % kWordBits / kLanes));
    const __m256 sign = _mm256_blendv_ps(_mm256_set1_ps(1.0F), _mm256_set1_ps(-1.0F), _mm256_castsi256_ps(bits));
    const __m256 slope = _mm256_mul_ps(linear, _mm256_maskload_ps(correlations + j, lanes));
    const __m256 cost = _mm256_mul_ps(curvature, _mm256_maskload_ps(f.diagonal + j, lanes));
    __m256 gain = _mm256_sub_ps(_mm256_mul_ps(sign, slope), cost);
    gain = _mm256_blendv_ps(none, gain, _mm256_castsi256_ps(lanes));
    _mm256_store_ps(row.signs + j, sign);
    _mm256_store_ps(row.gains + j, gain);
    best = _mm256_max_ps(best, gain);
  }
  return max_lane(best);
}

inline __m256 moved_gain(const Row& row, std::size_t j, __m256 change, __m256 gram) {
  const __m256 signed_change = _mm256_mul_ps(_mm256_load_ps(row.signs + j), change);
  return _mm256_add_ps(_mm256_load_ps(row.gains + j), _mm256_mul_ps(signed_change, gram));
}

// Returns the largest gain after the flip of bit b. Bit b's own lane stays out of the maximum and is set last: its new
// gain, -gains[b], is negative and never the one that counts.
float apply_flip(const FlipProblem& f, const Row& row, std::size_t b) {
  const float* gram = f.gram + b * f.k;
  const float undo = -row.gains[b];
  row.gains[b] = -__builtin_inff();
  const __m256 change = _mm256_set1_ps(-row.signs[b] * (2.0F * row.curvature));
  __m256 even = _mm256_set1_ps(-__builtin_inff());
  __m256 odd = even;
  std::size_t j = 0;
  for (; j + 2 * kLanes <= f.k; j += 2 * kLanes) {
    const __m256 low = moved_gain(row, j, change, _mm256_loadu_ps(gram + j));
    const __m256 high = moved_gain(row, j + kLanes, change, _mm256_loadu_ps(gram + j + kLanes));
    _mm256_store_ps(row.gains + j, low);
    _mm256_store_ps(row.gains + j + kLanes, high);
    even = _mm256_max_ps(even, low);
    odd = _mm256_max_ps(odd, high);
  }
  for (; j < f.k; j += kLanes) {
    const __m256 gain = moved_gain(row, j, change, _mm256_maskload_ps(gram + j, first_lanes(f.k - j)));
    _mm256_store_ps(row.gains + j, gain);
    even = _mm256_max_ps(even, gain);
  }
  row.gains[b] = undo;
  row.signs[b] = -row.signs[b];
  row.words[b / kWordBits] ^= std::uint64_t{1} << (b % kWordBits);
  return max_lane(_mm256_max_ps(even, odd));
}

void close_row(const FlipProblem& f, const Row& row, std::size_t i) {
  float* correlations = f.correlations + i * f.k;
  const __m256 linear = _mm256_set1_ps(row.linear);
  const __m256 curvature = _mm256_set1_ps(row.curvature);
  for (std::size_t j = 0; j < f.k; j += kLanes) {
    const __m256i lanes = first_lanes(f.k - j);
    const __m256 cost = _mm256_mul_ps(curvature, _mm256_maskload_ps(f.diagonal + j, lanes));
    const __m256 slope = _mm256_add_ps(_mm256_load_ps(row.gains + j), cost);
    const __m256 correlation = _mm256_div_ps(_mm256_mul_ps(_mm256_load_ps(row.signs + j), slope), linear);
    _mm256_maskstore_ps(correlations + j, lanes, correlation);
  }
}

inline unsigned lanes_where(__m256 condition) { return static_cast<unsigned>(_mm256_movemask_ps(condition)); }

// The first bit of the largest gain; k if rounding left none.
std::size_t find_bit(const Row& row, std::size_t k, float best) {
  const __m256 best_f32x8 = _mm256_set1_ps(best);
  for (std::size_t j = 0; j < k; j += kLanes) {
    const unsigned found = lanes_where(_mm256_cmp_ps(_mm256_load_ps(row.gains + j), best_f32x8, _CMP_EQ_OQ));
    if (found != 0) return j + static_cast<std::size_t>(__builtin_ctz(found));
  }
  return k;
}

struct Vector {
  using Type = __m256;
  static constexpr std::size_t kLanes = diba::kLanes;
  static Type load(const float* x) { return _mm256_load_ps(x); }
  static void store(float* x, Type x_f32x8) { _mm256_store_ps(x, x_f32x8); }
  static Type set1(float x) { return _mm256_set1_ps(x); }
  static Type fused(Type a, Type b, Type c) { return _mm256_fmadd_ps(a, b, c); }
};

std::uint64_t above(const Row& /*row*/, const float* x, float limit) {
  const __m256 limit_f32x8 = _mm256_set1_ps(limit);
  std::uint64_t word = 0;
  for (std::size_t l = 0; l < kWordBits; l += kLanes) {
    const unsigned found = lanes_where(_mm256_cmp_ps(_mm256_load_ps(x + l), limit_f32x8, _CMP_GT_OQ));
    word |= static_cast<std::uint64_t>(found) << l;
  }
  return word;
}

float largest_in(const Row& /*row*/, const float* x, std::uint64_t word) {
  const __m256 none = _mm256_set1_ps(-__builtin_inff());
  __m256 best = none;
  for (std::size_t v = 0; v < kVectors; ++v) {
    const __m256 bits = _mm256_castsi256_ps(lane_mask(lane_bits(word, v)));
    best = _mm256_max_ps(best, _mm256_blendv_ps(none, _mm256_load_ps(x + v * kLanes), bits));
  }
  return max_lane(best);
}

}  // namespace

const Kernels kAvx2 = {"avx2",       pack_row,         unpack_row,       row_sums,
                       column_sums,  row_sums_tile,    dot_rows,         fused_tile<Vector, 6>,
                       invert_pivot, quantize_row,     integer_tile_256, sign_target,
                       sign_project, search_rows<Row>, &kLookupAvx2};

}  // namespace diba
