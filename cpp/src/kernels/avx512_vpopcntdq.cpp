// What AVX-512 VPOPCNTDQ adds to avx512.cpp: the ones of eight words, counted in one instruction. Same numbers as
// scalar.cpp.

#include <immintrin.h>

#include "kernels/common.hpp"

#if !defined(__AVX512F__) || !defined(__AVX512VL__) || !defined(__AVX512VPOPCNTDQ__)
#error "avx512_vpopcntdq.cpp needs -mavx512f -mavx512vl -mavx512vpopcntdq"
#endif

namespace diba {
namespace {

constexpr std::size_t kVectors = 2;  // of lanes that a block counts in
constexpr std::size_t kBlockLanes = 8 * kVectors;
constexpr std::size_t kMostWords = 64;  // of a block: 16 KiB with two planes, so that they stay in a cache
static_assert(2 * kMostWords * kBlockLanes * sizeof(std::uint64_t) <= count_scratch_bytes(), "both planes fit scratch");

// Words of 16 rows, those of one place beside one another: (words, 16).
inline void spread_lanes(const std::uint64_t* from, std::size_t stride, std::size_t lanes, std::size_t words,
                         std::uint64_t* spread) {
  for (std::size_t l = 0; l < kBlockLanes; ++l)
    for (std::size_t w = 0; w < words; ++w) spread[w * kBlockLanes + l] = l < lanes ? from[l * stride + w] : 0;
}

inline __m512i load(const std::uint64_t* lanes) { return _mm512_load_si512(lanes); }
inline __m512i every(std::uint64_t word) { return _mm512_set1_epi64(static_cast<long long>(word)); }

// A block of sums: rows and 16 lanes.
template <std::size_t kRows>
struct Sums {
  __m512i u64x8[kRows][kVectors];
  Sums() {
    for (auto& of_row : u64x8)
      for (__m512i& sums : of_row) sums = _mm512_setzero_si512();
  }
  void add(std::size_t r, const __m512i* lanes, __m512i word) {
    for (std::size_t v = 0; v < kVectors; ++v)
      u64x8[r][v] = _mm512_add_epi64(u64x8[r][v], _mm512_popcnt_epi64(_mm512_and_si512(lanes[v], word)));
  }
  void add_twice(const Sums& other) {
    for (std::size_t r = 0; r < kRows; ++r)
      for (std::size_t v = 0; v < kVectors; ++v)
        u64x8[r][v] = _mm512_add_epi64(u64x8[r][v], _mm512_slli_epi64(other.u64x8[r][v], 1));
  }
  // y(r, l) += sums(r, l) << shift.
  void finish(int shift, std::int32_t* y, std::size_t stride) const {
    const __m128i by = _mm_cvtsi32_si128(shift);
    for (std::size_t r = 0; r < kRows; ++r)
      for (std::size_t v = 0; v < kVectors; ++v) {
        auto* const to = reinterpret_cast<__m256i*>(y + r * stride + 8 * v);
        const __m256i sums_i32x8 = _mm512_cvtepi64_epi32(_mm512_sll_epi64(u64x8[r][v], by));
        _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), sums_i32x8));
      }
  }
};

template <std::size_t kRows>
inline void one_bit(const std::uint64_t* spread, const std::uint64_t* rows, const CountRows& source, std::size_t words,
                    int shift, std::int32_t* y, std::size_t stride) {
  Sums<kRows> sums;
  for (std::size_t w = 0; w < words; ++w) {
    const __m512i lanes[] = {load(spread + w * kBlockLanes), load(spread + w * kBlockLanes + 8)};
    for (std::size_t r = 0; r < kRows; ++r) sums.add(r, lanes, every(rows[r * source.stride + w]));
  }
  sums.finish(shift, y, stride);
}

// Products of bits that are worth one, two (two of them) and four.
template <std::size_t kRows>
inline void two_bits(const std::uint64_t* spread, const std::uint64_t* rows, const CountRows& source, std::size_t words,
                     int shift, std::int32_t* y, std::size_t stride) {
  Sums<kRows> ones, twos, fours;
  for (std::size_t w = 0; w < words; ++w) {
    const std::uint64_t* const low = spread + w * kBlockLanes;
    const std::uint64_t* const high = low + words * kBlockLanes;
    const __m512i low_lanes[] = {load(low), load(low + 8)}, high_lanes[] = {load(high), load(high + 8)};
    for (std::size_t r = 0; r < kRows; ++r) {
      const std::uint64_t* const word = rows + r * source.stride + w;
      const __m512i low_word = every(*word), high_word = every(word[source.plane]);
      ones.add(r, low_lanes, low_word);
      twos.add(r, high_lanes, low_word);
      twos.add(r, low_lanes, high_word);
      fours.add(r, high_lanes, high_word);
    }
  }
  twos.add_twice(fours);
  ones.add_twice(twos);
  ones.finish(shift, y, stride);
}

using Block = void (*)(const std::uint64_t* spread, const std::uint64_t* rows, const CountRows& source,
                       std::size_t words, int shift, std::int32_t* y, std::size_t stride);

// y has room for `lanes` <= 16 in each row.
template <std::size_t kRows, Block kCount>
inline void count_block(const std::uint64_t* spread, std::size_t lanes, const std::uint64_t* rows,
                        const CountRows& source, std::size_t words, int shift, std::int32_t* y, std::size_t stride) {
  if (lanes == kBlockLanes) {
    kCount(spread, rows, source, words, shift, y, stride);
    return;
  }
  std::int32_t sums[kRows * kBlockLanes] = {};
  kCount(spread, rows, source, words, shift, sums, kBlockLanes);
  for (std::size_t r = 0; r < kRows; ++r)
    for (std::size_t l = 0; l < lanes; ++l) y[r * stride + l] += sums[r * kBlockLanes + l];
}

template <std::size_t kRows, Block kWhole, Block kRest>
inline void count_rows(const std::uint64_t* spread, std::size_t lanes, const std::uint64_t* row, const CountRows& rows,
                       std::size_t words, int shift, std::int32_t* y, std::size_t stride) {
  std::size_t r = 0;
  for (; r + kRows <= rows.count; r += kRows)
    count_block<kRows, kWhole>(spread, lanes, row + r * rows.stride, rows, words, shift, y + r * stride, stride);
  for (; r < rows.count; ++r)
    count_block<1, kRest>(spread, lanes, row + r * rows.stride, rows, words, shift, y + r * stride, stride);
}

// ---- few rows: what there is to count is less than the work of spreading 64 others

constexpr std::size_t kFewRows = 4;

inline __m512i common_words(const std::uint64_t* a, const std::uint64_t* b) {
  return _mm512_popcnt_epi64(_mm512_and_si512(_mm512_loadu_si512(a), _mm512_loadu_si512(b)));
}

// Words of one row by those of several lanes.
template <std::size_t kLanesAtOnce>
inline void count_pairs(const std::uint64_t* lane, std::size_t lane_stride, const std::uint64_t* row, std::size_t words,
                        int shift, std::int32_t* y) {
  __m512i sums_u64x8[kLanesAtOnce];
  for (__m512i& sums : sums_u64x8) sums = _mm512_setzero_si512();
  std::size_t w = 0;
  for (; w + 8 <= words; w += 8)
    for (std::size_t l = 0; l < kLanesAtOnce; ++l)
      sums_u64x8[l] = _mm512_add_epi64(sums_u64x8[l], common_words(lane + l * lane_stride + w, row + w));
  for (std::size_t l = 0; l < kLanesAtOnce; ++l) {
    auto ones = static_cast<std::int32_t>(_mm512_reduce_add_epi64(sums_u64x8[l]));
    for (std::size_t last = w; last < words; ++last)
      ones += __builtin_popcountll(lane[l * lane_stride + last] & row[last]);
    y[l] += ones << shift;
  }
}

inline void count_few(const CountRows& lanes, const CountRows& rows, std::size_t words, int shift, std::int32_t* y,
                      std::size_t stride) {
  const int planes = lanes.plane == 0 ? 1 : 2;
  for (std::size_t r = 0; r < rows.count; ++r)
    for (int p = 0; p < planes; ++p)
      for (int q = 0; q < planes; ++q) {
        const std::uint64_t* const row = rows.words + r * rows.stride + (q != 0 ? rows.plane : 0);
        const std::uint64_t* const lane = lanes.words + (p != 0 ? lanes.plane : 0);
        std::int32_t* const to = y + r * stride;
        std::size_t l = 0;
        for (; l + 4 <= lanes.count; l += 4)
          count_pairs<4>(lane + l * lanes.stride, lanes.stride, row, words, shift + p + q, to + l);
        for (; l < lanes.count; ++l)
          count_pairs<1>(lane + l * lanes.stride, lanes.stride, row, words, shift + p + q, to + l);
      }
}

}  // namespace

void common_counts_vpopcntdq(const CountRows& lanes, const CountRows& rows, std::size_t words, int shift,
                             std::int32_t* y, std::size_t stride, std::uint8_t* scratch) {
  if (rows.count <= kFewRows) {
    count_few(lanes, rows, words, shift, y, stride);
    return;
  }
  auto* const spread = reinterpret_cast<std::uint64_t*>(scratch);
  for (std::size_t l = 0; l < lanes.count; l += kBlockLanes) {
    const std::size_t here = smaller(kBlockLanes, lanes.count - l);
    for (std::size_t w = 0; w < words; w += kMostWords) {
      const std::size_t some = smaller(kMostWords, words - w);
      const std::uint64_t* const from = lanes.words + l * lanes.stride + w;
      spread_lanes(from, lanes.stride, here, some, spread);
      if (lanes.plane == 0) {
        count_rows<4, one_bit<4>, one_bit<1>>(spread, here, rows.words + w, rows, some, shift, y + l, stride);
      } else {
        spread_lanes(from + lanes.plane, lanes.stride, here, some, spread + some * kBlockLanes);
        count_rows<2, two_bits<2>, two_bits<1>>(spread, here, rows.words + w, rows, some, shift, y + l, stride);
      }
    }
  }
}

}  // namespace diba
