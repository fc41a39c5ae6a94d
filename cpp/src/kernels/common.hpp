// What the kernel files share. Everything here has internal linkage, so each file compiles its own copy with its own
// flags and no copy can reach the linker.
#pragma once

#include "kernels/kernels.hpp"
#include "kernels/pairs.hpp"

namespace diba {
namespace {

inline std::size_t smaller(std::size_t a, std::size_t b) { return a < b ? a : b; }

// Half `h` of the bits of a row: columns 32 h .. 32 h + 31.
inline std::uint32_t half_word(const std::uint64_t* row, std::size_t h) {
  return static_cast<std::uint32_t>(row[h / 2] >> (kHalfBits * (h % 2)));
}

// The search of one row, in terms of the gains of its flips, for Kernels::flip_rows. An instruction set brings
//   float open_row(f, i, scratch, row)       gains of row i; returns the largest
//   float apply_flip(f, row, b)              flips bit b, moves all gains; returns the largest
//   std::size_t find_bit(row, k, best)       first bit whose gain is `best`
//   void close_row(f, row, i)                correlations from gains
// and what best_pair asks for.
template <typename Row>
std::uint64_t search_rows(const FlipProblem& f, std::size_t begin, std::size_t end, float* scratch) {
  std::uint64_t flips = 0;
  for (std::size_t i = begin; i < end; ++i) {
    Row row;
    float best = open_row(f, i, scratch, row);
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
        if (f.reach == nullptr) break;
        const Pair pair = best_pair(f, row, scratch + flip_scratch_floats(f.k) / 3 * 2);
        if (pair.first == f.k) break;
        flip(pair.first);
        flip(pair.second);
      }
    }
    if (done > 0) close_row(f, row, i);
    f.decrease[i] = decrease;
    flips += done;
  }
  return flips;
}

}  // namespace
}  // namespace diba
