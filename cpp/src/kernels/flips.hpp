// The search of Kernels::flip_rows: which bits of a row to flip, one at a time or two together. Written once: what it
// compares, and in which order, is the same on every instruction set. Each kernel file defines the functions declared
// here.
#pragma once

#include "kernels/common.hpp"

namespace diba {
namespace {

// Flipping bit j changes b_ij by s_j = step or -step, and lowers |r_i|^2 by
//   gain_j = 2 s_j d g_j - (s_j d)^2 H_jj                                        (the exact one-bit test).
// A flip of bit b moves every correlation by -s_b d H_bj, so with sign_j = s_j / step
//   gain_j -= 2 (step d)^2 sign_j sign_b H_bj,  and gain_b changes its sign.
// One row is worked on in terms of its gains; its correlations are restored from them at the end.
struct Row {
  float linear;     // 2 step d
  float curvature;  // (step d)^2
  float threshold;
  float* gains;  // (k)
  float* signs;  // (k) +1 where the bit is 0, -1 where it is 1; unused by kernels that choose lanes by bits
  std::uint64_t* words;
};

// Defined by each kernel file. Gains and signs are 64-byte aligned and may be padded to whole words.
float fill_gains(const FlipProblem& f, const Row& row, const float* correlations);     // returns the largest gain
float apply_flip(const FlipProblem& f, const Row& row, std::size_t b);                 // the largest gain but that of b
std::size_t find_bit(const Row& row, std::size_t k, float best);                       // the first with that gain, or k
void restore_correlations(const FlipProblem& f, const Row& row, float* correlations);  // from the gains
std::uint64_t above(const float* x, float limit);      // bits of the 64 floats that are above the limit
float largest_in(const float* x, std::uint64_t word);  // the largest float whose bit is set; -infinity if none

struct Pair {
  float gain;
  std::size_t first;  // k if no pair gains enough
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

// +1 where the bit is 0, -1 where it is 1, without a branch, which no processor could predict.
inline float sign_of(const std::uint64_t* words, std::size_t j) {
  const auto bit = static_cast<int>((words[j / kWordBits] >> (j % kWordBits)) & 1U);
  return static_cast<float>(1 - 2 * bit);
}

// Bits of word w whose flip moves the row to one side (0) or to the other (1); all of them where no sides are known.
inline std::uint64_t bits_of_side(const FlipProblem& f, const std::uint64_t* words, std::size_t w, int side) {
  if (f.sides == nullptr) return ~std::uint64_t{0};
  const std::uint64_t first = words[w] ^ f.sides[w];
  return side == 0 ? first : ~first;
}

// The next block of the second side's bits above the limit, from word w on; w moves to where the block ends.
void gather_partners(const FlipProblem& f, const Row& row, const float* bounds, float limit, std::size_t& w,
                     Partners& partners) {
  std::size_t count = 0;
  for (; w < words_for(f.k) && count + kWordBits <= Partners::kMost; ++w) {
    std::uint64_t bits = above(bounds + w * kWordBits, limit) & bits_of_side(f, row.words, w, 1);
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
//   bound_j = gain_j + (step d)^2 max |H_jl| over l != j,
// so a bit whose bound is too low for the best partner can be left out. Where FlipProblem::sides are known, only pairs
// from both sides can gain more than their flips do alone, which leaves a few bits of each.
// bounds: scratch, padded to whole words.
Pair best_pair(const FlipProblem& f, const Row& row, float* bounds) {
  const std::size_t words = words_for(f.k);
  for (std::size_t j = 0; j < f.k; ++j) bounds[j] = row.gains[j] + row.curvature * f.max_off_diagonal[j];
  for (std::size_t j = f.k; j < words * kWordBits; ++j) bounds[j] = -__builtin_inff();
  float most[2] = {-__builtin_inff(), -__builtin_inff()};
  for (std::size_t w = 0; w < words; ++w) {
    for (int side = 0; side < 2; ++side) {
      const float bound = largest_in(bounds + w * kWordBits, bits_of_side(f, row.words, w, side));
      most[side] = bound > most[side] ? bound : most[side];
    }
  }
  Pair best = {row.threshold, f.k, f.k};
  Partners partners;
  for (std::size_t end = 0; end < words;) {
    gather_partners(f, row, bounds, best.gain - most[0], end, partners);
    for (std::size_t w = 0; w < words && partners.count > 0; ++w) {
      std::uint64_t bits = above(bounds + w * kWordBits, best.gain - most[1]) & bits_of_side(f, row.words, w, 0);
      for (; bits != 0; bits &= bits - 1)
        try_pairs(f, row, w * kWordBits + static_cast<std::size_t>(__builtin_ctzll(bits)), partners, best);
    }
  }
  return best;
}

// Kernels::flip_rows
std::uint64_t flip_rows(const FlipProblem& f, std::size_t begin, std::size_t end, float* scratch) {
  const std::size_t padded = flip_scratch_floats(f.k) / 3;
  std::uint64_t flips = 0;
  for (std::size_t i = begin; i < end; ++i) {
    const float moved = f.step * f.scale[i];
    const float curvature = moved * moved;
    const Row row{2.0F * moved, curvature,        kFlipThreshold * (curvature * f.max_diagonal),
                  scratch,      scratch + padded, f.words + i * words_for(f.k)};
    float best = fill_gains(f, row, f.correlations + i * f.k);
    double decrease = 0.0;
    std::uint64_t done = 0;
    const auto flip = [&](std::size_t b) {
      decrease += static_cast<double>(row.gains[b]);
      best = apply_flip(f, row, b);
      ++done;
    };
    while (done < max_flips(f.k)) {
      if (best > row.threshold) {
        const std::size_t b = find_bit(row, f.k, best);
        if (b == f.k) break;
        flip(b);
      } else {
        if (f.max_off_diagonal == nullptr) break;
        const Pair pair = best_pair(f, row, scratch + 2 * padded);
        if (pair.first == f.k) break;
        flip(pair.first);
        flip(pair.second);
      }
    }
    if (done > 0) restore_correlations(f, row, f.correlations + i * f.k);
    f.decrease[i] = decrease;
    flips += done;
  }
  return flips;
}

}  // namespace
}  // namespace diba
