// The best pair of flips of a row. Written once; the order of what it compares is the same on every instruction set.
#pragma once

#include "kernels/kernels.hpp"

namespace diba {
namespace {

struct Pair {
  float gain;
  std::size_t first;  // k if no pair pays
  std::size_t second;
};

// Bits that may take part in a pair, a block at a time so that any number fits.
struct Partners {
  static constexpr std::size_t kMost = 256;
  std::size_t count;
  std::size_t index[kMost];
  float gain[kMost];
  float sign[kMost];
};

// +1 where the bit is 0, -1 where it is 1
inline float sign_of(const std::uint64_t* words, std::size_t j) {
  return (words[j / kWordBits] >> (j % kWordBits)) & 1U ? -1.0F : 1.0F;
}

// Bits of word w whose flip moves the row to one side (0) or to the other (1); all of them where no sides are known.
inline std::uint64_t bits_of_side(const FlipProblem& f, const std::uint64_t* words, std::size_t w, int side) {
  if (f.sides == nullptr) return ~std::uint64_t{0};
  const std::uint64_t first = words[w] ^ f.sides[w];
  return side == 0 ? first : ~first;
}

// The next block of the second side's bits above the limit, from word w on; w moves to where the block ends.
template <typename Row>
void gather_partners(const FlipProblem& f, const Row& row, const float* bounds, float limit, std::size_t& w,
                     Partners& partners) {
  std::size_t count = 0;
  for (; w < words_for(f.k) && count + kWordBits <= Partners::kMost; ++w) {
    std::uint64_t bits = above(row, bounds + w * kWordBits, limit) & bits_of_side(f, row.words, w, 1);
    for (; bits != 0; bits &= bits - 1, ++count) {
      const std::size_t j = w * kWordBits + static_cast<std::size_t>(__builtin_ctzll(bits));
      partners.index[count] = j;
      partners.gain[count] = row.gains[j];
      partners.sign[count] = sign_of(row.words, j);
    }
  }
  partners.count = count;
}

// Improves `best` by the pairs of bit j with the partners: the gain of j and then of the partner after that flip.
template <typename Row>
void try_pairs(const FlipProblem& f, const Row& row, std::size_t j, const Partners& partners, Pair& best) {
  const float* gram = f.gram + j * f.k;
  const float change = -sign_of(row.words, j) * (2.0F * row.curvature);
  for (std::size_t p = 0; p < partners.count; ++p) {
    const std::size_t l = partners.index[p];
    const float gain = row.gains[j] + (partners.gain[p] + (partners.sign[p] * change) * gram[l]);
    if (gain > best.gain && l != j) best = {gain, j, l};
  }
}

// Two flips together gain
//   gain_jl = gain_j + gain_l - 2 (step d)^2 sign_j sign_l H_jl <= bound_j + bound_l,
//   bound_j = gain_j + (step d)^2 reach_j,   reach_j = max |H_jl| over l != j,
// so a bit whose bound is too low for the best partner needs no look. Where FlipProblem::sides are known, only pairs
// from both sides can gain more than their flips do alone, which leaves a few bits of each.
// An instruction set brings, for one word of bits and its 64 floats,
//   std::uint64_t above(row, x, limit)       bits of the floats above the limit
//   float largest_in(row, x, word)           largest float of the set bits; -infinity if none
// bounds: scratch, padded to whole words.
template <typename Row>
Pair best_pair(const FlipProblem& f, const Row& row, float* bounds) {
  const std::size_t words = words_for(f.k);
  for (std::size_t j = 0; j < f.k; ++j) bounds[j] = row.gains[j] + row.curvature * f.reach[j];
  for (std::size_t j = f.k; j < words * kWordBits; ++j) bounds[j] = -__builtin_inff();
  float most[2] = {-__builtin_inff(), -__builtin_inff()};
  for (std::size_t w = 0; w < words; ++w) {
    for (int side = 0; side < 2; ++side) {
      const float bound = largest_in(row, bounds + w * kWordBits, bits_of_side(f, row.words, w, side));
      most[side] = bound > most[side] ? bound : most[side];
    }
  }
  Pair best = {row.threshold, f.k, f.k};
  Partners partners;
  for (std::size_t end = 0; end < words;) {
    gather_partners(f, row, bounds, best.gain - most[0], end, partners);
    for (std::size_t w = 0; w < words && partners.count > 0; ++w) {
      std::uint64_t bits = above(row, bounds + w * kWordBits, best.gain - most[1]) & bits_of_side(f, row.words, w, 0);
      for (; bits != 0; bits &= bits - 1)
        try_pairs(f, row, w * kWordBits + static_cast<std::size_t>(__builtin_ctzll(bits)), partners, best);
    }
  }
  return best;
}

}  // namespace
}  // namespace diba
