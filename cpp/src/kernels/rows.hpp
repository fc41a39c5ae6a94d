// The kernels of the instruction sets with vectors, written once over a Vector (vector.hpp). Same bytes as scalar.cpp.
#pragma once

#include "kernels/dense_rows.hpp"
#include "kernels/gains.hpp"
#include "kernels/sign_sums.hpp"
#include "kernels/sparse_rows.hpp"

namespace diba {
namespace {

constexpr std::size_t kTileVectors = kTile / kLanes;

void pack_row(const float* x, std::size_t cols, std::uint64_t* words) {
  const Floats zero = Vector::set1(0.0F);
  for (std::size_t w = 0; w < words_for(cols); ++w) {
    std::uint64_t word = 0;
    const std::size_t end = smaller(kWordBits, cols - w * kWordBits);
    for (std::size_t l = 0; l < end; l += kLanes) {
      const unsigned bits = Vector::greater(Vector::load_first(x + w * kWordBits + l, end - l), zero);
      word |= static_cast<std::uint64_t>(bits) << l;
    }
    words[w] = word;
  }
}

void unpack_row(const std::uint64_t* words, std::size_t cols, float zero, float one, float* x) {
  const Floats zeros = Vector::set1(zero), ones = Vector::set1(one);
  for (std::size_t j = 0; j < cols; j += kLanes)
    Vector::store_first(x + j, cols - j, Vector::select(Vector::lanes(bits_at(words, j), 0), zeros, ones));
}

// Adds 64 lanes pairwise, l and l + 32, l + 16, ... l + 1. A lane that add_where leaves out may add +0, which changes
// nothing: no sum that starts at +0 is ever -0.
inline float add_lanes(Floats* sums) {
  for (std::size_t half = kVectors / 2; half > 0; half /= 2)
    for (std::size_t v = 0; v < half; ++v) sums[v] = Vector::add(sums[v], sums[v + half]);
  return Vector::sum(sums[0]);
}

void row_sums(const std::uint64_t* words, std::size_t rows, std::size_t cols, const float* x, float* y) {
  const std::size_t full = cols / kWordBits;
  for (std::size_t i = 0; i < rows; ++i) {
    const std::uint64_t* row = words + i * words_for(cols);
    Floats sums[kVectors];
    for (Floats& sum : sums) sum = Vector::set1(0.0F);
    for (std::size_t w = 0; w < full; ++w)
      for (std::size_t v = 0; v < kVectors; ++v) {
        const Floats of_word = Vector::load_any(x + w * kWordBits + v * kLanes);
        sums[v] = Vector::add_where(sums[v], Vector::lanes(row[w], v), of_word);
      }
    for (std::size_t v = 0, j = full * kWordBits; v < kVectors && j < cols; ++v, j += kLanes)
      sums[v] = Vector::add_where(sums[v], Vector::lanes(row[full], v), Vector::load_first(x + j, cols - j));
    y[i] = add_lanes(sums);
  }
}

// kWords neighbouring words at a time: their columns stay in registers while the rows go by.
template <std::size_t kWords>
void sum_columns(const std::uint64_t* words, std::size_t rows, std::size_t row_words, const float* x, float* y,
                 std::size_t count) {
  Floats sums[kWords * kVectors];
  for (Floats& sum : sums) sum = Vector::set1(0.0F);
  for (std::size_t i = 0; i < rows; ++i) {
    const Floats of_row = Vector::set1(x[i]);
    for (std::size_t v = 0; v < kWords * kVectors; ++v) {
      const std::uint64_t word = words[i * row_words + v / kVectors];
      sums[v] = Vector::add_where(sums[v], Vector::lanes(word, v % kVectors), of_row);
    }
  }
  for (std::size_t v = 0; v < kWords * kVectors && v * kLanes < count; ++v)
    Vector::store_first(y + v * kLanes, count - v * kLanes, sums[v]);
}

void column_sums(const std::uint64_t* words, std::size_t rows, std::size_t cols, std::size_t word_begin,
                 std::size_t word_end, const float* x, float* y) {
  constexpr std::size_t kWide = Vector::kColumnWords;
  std::size_t w = word_begin;
  for (; w + kWide <= word_end; w += kWide)
    sum_columns<kWide>(words + w, rows, words_for(cols), x, y + w * kWordBits, cols - w * kWordBits);
  for (; w < word_end; ++w)
    sum_columns<1>(words + w, rows, words_for(cols), x, y + w * kWordBits, cols - w * kWordBits);
}

void fill_table(const float* x, const float* weights, float* table) {
  for (std::size_t g = 0; g < kGroups; ++g) {
    for (std::size_t v = 0; v < kTileVectors; ++v) {
      Floats sums[16];
      sums[0] = Vector::set1(0.0F);
      for (std::size_t top = 0; top < 4; ++top) {
        const std::size_t j = g * 4 + top;
        const Floats weighted = Vector::mul(Vector::load(x + j * kTile + v * kLanes), Vector::set1(weights[j]));
        for (std::size_t b = 0; b < std::size_t{1} << top; ++b)
          sums[(std::size_t{1} << top) + b] = Vector::add(sums[b], weighted);
      }
      for (std::size_t b = 0; b < 16; ++b) Vector::store(table + (g * 16 + b) * kTile + v * kLanes, sums[b]);
    }
  }
}

// Adds the sums that groups [kFirst, kFirst + kCount) choose, neighbours first: short chains of additions.
template <std::size_t kFirst, std::size_t kCount>
inline Floats add_groups(const float* table, const std::size_t choice[]) {
  if constexpr (kCount == 1) {
    return Vector::load(table + kFirst * 16 * kTile + choice[kFirst]);
  } else {
    const Floats first = add_groups<kFirst, kCount / 2>(table, choice);
    return Vector::add(first, add_groups<kFirst + kCount / 2, kCount / 2>(table, choice));
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
      const Floats before = kFirst ? Vector::set1(0.0F) : Vector::load(out);
      Vector::store(out, Vector::add(before, add_groups<0, kGroups>(table + v * kLanes, choice)));
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

// kRows rows share the loads of x.
template <std::size_t kRows>
void dots_of(const double* x, const double* y, std::size_t stride, std::size_t cols, double* dots) {
  constexpr std::size_t kPart = Vector::kDoubles, kParts = 8 / kPart;  // vectors of the eight lanes
  Doubles sums[kRows][kParts];
  for (auto& row : sums)
    for (Doubles& part : row) part = Vector::set1(0.0);
  std::size_t j = 0;
  for (; j + 8 <= cols; j += 8)
    for (std::size_t r = 0; r < kRows; ++r)
      for (std::size_t v = 0; v < kParts; ++v) {
        const double* row = y + r * stride + j + v * kPart;
        sums[r][v] = Vector::add(sums[r][v], Vector::mul(Vector::load_any(x + j + v * kPart), Vector::load_any(row)));
      }
  for (std::size_t v = 0; v < kParts && j < cols; ++v, j += kPart)
    for (std::size_t r = 0; r < kRows; ++r) {
      const Doubles rest = Vector::load_first(y + r * stride + j, cols - j);
      sums[r][v] = Vector::add(sums[r][v], Vector::mul(Vector::load_first(x + j, cols - j), rest));
    }
  for (std::size_t r = 0; r < kRows; ++r) {
    for (std::size_t half = kParts / 2; half > 0; half /= 2)
      for (std::size_t v = 0; v < half; ++v) sums[r][v] = Vector::add(sums[r][v], sums[r][v + half]);
    dots[r] = Vector::sum(sums[r][0]);
  }
}

void dot_rows(const double* x, const double* y, std::size_t stride, std::size_t rows, std::size_t cols, double* dots) {
  if (rows == 4) {
    dots_of<4>(x, y, stride, cols, dots);
  } else {
    for (std::size_t r = 0; r < rows; ++r) dots_of<1>(x, y + r * stride, stride, cols, dots + r);
  }
}

// kRows rows and two vectors of a tile.
template <std::size_t kRows>
inline void fused_block(const float* a, std::size_t stride, std::size_t inner, const float* x, float* y) {
  Floats sums[kRows][2];
  for (std::size_t r = 0; r < kRows; ++r)
    for (std::size_t v = 0; v < 2; ++v) sums[r][v] = Vector::load(y + r * kTile + v * kLanes);
  for (std::size_t l = 0; l < inner; ++l) {
    const Floats x0 = Vector::load(x + l * kTile);
    const Floats x1 = Vector::load(x + l * kTile + kLanes);
    for (std::size_t r = 0; r < kRows; ++r) {
      const Floats a_all = Vector::set1(a[r * stride + l]);
      sums[r][0] = Vector::fused(a_all, x0, sums[r][0]);
      sums[r][1] = Vector::fused(a_all, x1, sums[r][1]);
    }
  }
  for (std::size_t r = 0; r < kRows; ++r)
    for (std::size_t v = 0; v < 2; ++v) Vector::store(y + r * kTile + v * kLanes, sums[r][v]);
}

void fused_tile(const float* a, std::size_t rows, std::size_t stride, std::size_t inner, const float* x, float* y) {
  constexpr std::size_t kBlock = Vector::kFusedRows;
  for (std::size_t c = 0; c < kTile; c += 2 * kLanes) {
    std::size_t i = 0;
    for (; i + kBlock <= rows; i += kBlock)
      fused_block<kBlock>(a + i * stride, stride, inner, x + c, y + i * kTile + c);
    for (; i + 4 <= rows; i += 4) fused_block<4>(a + i * stride, stride, inner, x + c, y + i * kTile + c);
    for (; i < rows; ++i) fused_block<1>(a + i * stride, stride, inner, x + c, y + i * kTile + c);
  }
}

// As many vectors as there are lanes share the values of a row.
template <typename Column>
void sparse_lanes(const SparseRows& rows, std::size_t begin, std::size_t end, const float* x, const Column* columns,
                  float* y) {
  for (std::size_t i = begin; i < end; ++i) {
    const std::size_t last = rows.starts[i + 1];
    Floats sums[kSparseLanes];
    for (Floats& sum : sums) sum = Vector::set1(0.0F);
    const auto add = [&](std::size_t t, std::size_t l) {
      const Floats column = Vector::load(x + columns[t + l] * kSparseTile);
      sums[l] = Vector::add(sums[l], Vector::mul(Vector::set1(rows.values[t + l]), column));
    };
    std::size_t t = rows.starts[i];
    for (; t + kSparseLanes <= last; t += kSparseLanes)
      for (std::size_t l = 0; l < kSparseLanes; ++l) add(t, l);
    for (std::size_t l = 0; l < kSparseLanes; ++l)
      if (t + l < last) add(t, l);
    for (std::size_t half = kSparseLanes / 2; half > 0; half /= 2)
      for (std::size_t l = 0; l < half; ++l) sums[l] = Vector::add(sums[l], sums[l + half]);
    Vector::store(y + (i - begin) * kSparseTile, sums[0]);
  }
}

void sparse_tile(const SparseRows& rows, std::size_t begin, std::size_t end, const float* x, float* y) {
  with_columns(rows, [&](const auto* columns) {
    for (std::size_t c = 0; c < kSparseTile; c += kLanes) sparse_lanes(rows, begin, end, x + c, columns, y + c);
  });
}

// The table of the instruction set.
using IntegerTile = decltype(Kernels::integer_tile);
using CodeSums = decltype(Kernels::code_sums);
using SparseSums = decltype(Kernels::sparse_rows);
constexpr Kernels kernels_named(const char* name, IntegerTile integer_tile, CodeSums code_sums, SparseSums sparse_sums,
                                const LookupKernels* lookup) {
  return {name,        pack_row,    unpack_row,   row_sums,     column_sums,  row_sums_tile, sign_sums_tile,
          dot_rows,    fused_tile,  invert_pivot, quantize_row, integer_tile, code_sums,     common_counts,
          sparse_sums, sparse_tile, sign_target,  sign_project, flip_rows,    lookup};
}

}  // namespace
}  // namespace diba
