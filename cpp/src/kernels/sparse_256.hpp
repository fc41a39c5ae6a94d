// Kernels::sparse_rows with 256-bit vectors. Loading eight numbers one by one takes half the time of an instruction
// that gathers them, whose uses of the load ports are as many.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "kernels/sparse_rows.hpp"

namespace diba {
namespace {

// Eight numbers of a place each; where they are short, in few loads: the load ports are what is scarce.
template <typename Column>
struct Places {
  std::uint64_t at[8];
  explicit Places(const Column* columns) {
    constexpr std::size_t kBits = 8 * sizeof(Column), kOfWord = 64 / kBits;
    for (std::size_t w = 0; w < 8 / kOfWord; ++w) {
      std::uint64_t word;
      std::memcpy(&word, columns + w * kOfWord, sizeof(word));
      for (std::size_t i = 0; i < kOfWord; ++i)
        at[w * kOfWord + i] = word >> i * kBits & (~std::uint64_t{0} >> (64 - kBits));
    }
  }
};

template <typename Column>
inline __m256 gathered_256(const float* x, const Column* of) {
  const Places<Column> places(of);
  const std::uint64_t* const columns = places.at;
  __m128 low = _mm_load_ss(x + columns[0]), high = _mm_load_ss(x + columns[4]);
  low = _mm_insert_ps(low, _mm_load_ss(x + columns[1]), 0x10);
  high = _mm_insert_ps(high, _mm_load_ss(x + columns[5]), 0x10);
  low = _mm_insert_ps(low, _mm_load_ss(x + columns[2]), 0x20);
  high = _mm_insert_ps(high, _mm_load_ss(x + columns[6]), 0x20);
  low = _mm_insert_ps(low, _mm_load_ss(x + columns[3]), 0x30);
  high = _mm_insert_ps(high, _mm_load_ss(x + columns[7]), 0x30);
  return _mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1);
}

// The products of entries t .. t + 7; only the first `count` are those of the row.
template <typename Column>
inline __m256 sparse_products(const SparseRows& rows, const float* x, const Column* columns, std::size_t t,
                              std::size_t count) {
  if (t + 8 <= rows.starts[rows.rows]) {  // what follows the row is there: it is multiplied too, and left out
    const __m256 all = _mm256_mul_ps(_mm256_loadu_ps(rows.values + t), gathered_256(x, columns + t));
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i first = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lanes);
    return _mm256_and_ps(all, _mm256_castsi256_ps(first));
  }
  alignas(32) float products[8] = {};
  for (std::size_t l = 0; l < count; ++l) products[l] = rows.values[t + l] * x[columns[t + l]];
  return _mm256_load_ps(products);
}

template <typename Column>
inline void sparse_rows_of(const SparseRows& rows, std::size_t begin, std::size_t end, const float* x,
                           const Column* columns, float* y) {
  for (std::size_t i = begin; i < end; ++i) {
    const std::size_t last = rows.starts[i + 1];
    std::size_t t = rows.starts[i];
    __m256 sums = _mm256_setzero_ps();
    for (; t + 8 <= last; t += 8)
      sums = _mm256_add_ps(sums, _mm256_mul_ps(_mm256_loadu_ps(rows.values + t), gathered_256(x, columns + t)));
    if (t < last) sums = _mm256_add_ps(sums, sparse_products(rows, x, columns, t, last - t));
    const __m128 lanes4 = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
    const __m128 lanes2 = _mm_add_ps(lanes4, _mm_movehl_ps(lanes4, lanes4));
    y[i - begin] += _mm_cvtss_f32(_mm_add_ss(lanes2, _mm_movehdup_ps(lanes2)));
  }
}

void sparse_rows_256(const SparseRows& rows, std::size_t begin, std::size_t end, const float* x, float* y) {
  with_columns(rows, [&](const auto* columns) { sparse_rows_of(rows, begin, end, x, columns, y); });
}

}  // namespace
}  // namespace diba
