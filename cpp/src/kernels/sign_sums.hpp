// Kernels::sign_sums_tile over the Vector of each instruction set with vectors.
#pragma once

#include "kernels/vector.hpp"

namespace diba {
namespace {

using Shorts = Vector::Shorts;  // two vectors of floats
constexpr std::size_t kShortVectors = kTile / (2 * kLanes);
constexpr std::size_t kWordGroups = kWordBits / 4;

// For the columns of two vectors: the unit of a word of x, and its rounded entries.
inline void round_word(const float* x, const float* weights, std::size_t cols, Shorts* q, Floats* unit) {
  Floats inverse[2];
  for (std::size_t half = 0; half < 2; ++half) {
    const Floats zero = Vector::set1(0.0F);
    Floats top = Vector::set1(kLeastRounded);
    for (std::size_t j = 0; j < cols; ++j) {
      const Floats entry = Vector::mul(Vector::load(x + j * kTile + half * kLanes), Vector::set1(weights[j]));
      top = Vector::max(top, Vector::max(entry, Vector::sub(zero, entry)));
    }
    const Floats most = Vector::set1(kMostRounded);
    inverse[half] = Vector::div(most, top);
    unit[half] = Vector::div(top, most);
  }
  for (std::size_t j = 0; j < cols; ++j) {
    const Floats weight = Vector::set1(weights[j]);
    const Floats low = Vector::mul(Vector::load(x + j * kTile), weight);
    const Floats high = Vector::mul(Vector::load(x + j * kTile + kLanes), weight);
    q[j] = Vector::rounded(Vector::mul(low, inverse[0]), Vector::mul(high, inverse[1]));
  }
  for (std::size_t j = cols; j < kWordBits; ++j) q[j] = Vector::no_shorts();
}

// table[g][b] = sum of +-q(j) over the four columns j of group g, + where their bit of b is set.
inline void fill_sign_table(const Shorts* q, std::int16_t* table) {
  for (std::size_t g = 0; g < kWordGroups; ++g) {
    Shorts sums[16];
    sums[0] = Vector::no_shorts();
    for (std::size_t j = 4 * g; j < 4 * g + 4; ++j) sums[0] = Vector::sub(sums[0], q[j]);
    for (std::size_t top = 0; top < 4; ++top) {
      const Shorts twice = Vector::add(q[4 * g + top], q[4 * g + top]);
      for (std::size_t b = 0; b < std::size_t{1} << top; ++b)
        sums[(std::size_t{1} << top) + b] = Vector::add(sums[b], twice);
    }
    for (std::size_t b = 0; b < 16; ++b) Vector::store(table + (g * 16 + b) * kTile, sums[b]);
  }
}

template <bool kFirst>
void add_word(const std::uint64_t* words, std::size_t rows, const Floats (*unit)[2], const std::int16_t* table,
              float* y) {
  for (std::size_t i = 0; i < rows; ++i) {
    const std::uint64_t word = words[i];
    // In bytes, so that a group costs no more than a shift and a mask.
    const auto of_group = [&](std::size_t g, std::size_t v) {
      const std::uint64_t choice = (g < 2 ? word << (6 - 4 * g) : word >> (4 * g - 6)) & 0x3C0U;
      return Vector::load(table + g * 16 * kTile + choice / 2 + 2 * kLanes * v);
    };
    Shorts sums[kShortVectors];
    for (std::size_t v = 0; v < kShortVectors; ++v) sums[v] = of_group(0, v);
    for (std::size_t g = 1; g < kWordGroups; ++g)
      for (std::size_t v = 0; v < kShortVectors; ++v) {
        sums[v] = Vector::add(sums[v], of_group(g, v));
        Vector::keep(sums[v]);  // in this order: a line of the table is read at once, and nothing is spilled
      }
    for (std::size_t v = 0; v < kShortVectors; ++v)
      for (std::size_t half = 0; half < 2; ++half) {
        float* to = y + i * kTile + 2 * kLanes * v + half * kLanes;
        const Floats sum = Vector::mul(half == 0 ? Vector::low(sums[v]) : Vector::high(sums[v]), unit[v][half]);
        Vector::store(to, kFirst ? sum : Vector::add(Vector::load(to), sum));
      }
  }
}

void sign_sums_tile(const std::uint64_t* words, std::size_t stride, std::size_t rows, std::size_t cols, const float* x,
                    const float* weights, float* y, std::int16_t* table) {
  for (std::size_t first = 0; first < cols; first += kWordBits, words += stride) {
    Floats unit[kShortVectors][2];
    for (std::size_t v = 0; v < kShortVectors; ++v) {
      Shorts q[kWordBits];
      round_word(x + first * kTile + 2 * kLanes * v, weights + first, smaller(kWordBits, cols - first), q, unit[v]);
      fill_sign_table(q, table + 2 * kLanes * v);
    }
    first == 0 ? add_word<true>(words, rows, unit, table, y) : add_word<false>(words, rows, unit, table, y);
  }
}

}  // namespace
}  // namespace diba
