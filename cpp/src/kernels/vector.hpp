// What the kernels of the instruction sets with vectors are written over. A kernel file defines its Vector, in the
// unnamed namespace, and then includes rows.hpp.
//
// Vector: Floats holds kLanes of float32, Doubles kDoubles of float64.
//   load, store                   at an address aligned to 64 bytes
//   load_any(x)                   at any address
//   load_first(x, count)          the first `count` > 0 lanes, the others zero; nothing past them is read
//   store_first(x, count, a)      the first `count` lanes; nothing past them is written
//   set1, add, sub, mul, div, max in each lane; fused(a, b, c) = a b + c, rounded once
//   sum(a)                        adds lanes l and l + n / 2, l + n / 4, ... l + 1
//   largest(a)                    the largest lane
//   Mask lanes(word, v)           lane l is chosen where bit v * kLanes + l of the word is set
//   select(mask, zero, one)       `one` in the lanes chosen, `zero` in the others
//   add_where(sum, mask, x)       sum + x in the lanes chosen, sum in the others
//   greater(a, b), equal(a, b)    bit l: whether it holds in lane l
//   Shorts                        2 kLanes of 16-bit integers: load and store (64-byte aligned), add, sub, no_shorts()
//   = 0 rounded(a, b)                 the whole numbers nearest to both, ties to even; low(s), high(s): both again
//   keep(a)                       where a tile has several: compilers neither reorder nor regroup the sums so far
//   kBitsSelect                   bits choose lanes without being widened to vectors
//   kColumnWords                  words whose column sums stay in registers
//   kFusedRows                    rows whose sums stay in registers in fused_tile
#pragma once

#include "kernels/common.hpp"

namespace diba {
namespace {

using Floats = Vector::Floats;
using Doubles = Vector::Doubles;
constexpr std::size_t kLanes = Vector::kLanes;
constexpr std::size_t kVectors = kWordBits / kLanes;  // vectors that one word of bits covers

// The bits of a row from column j on, as far as they lie in one word.
inline std::uint64_t bits_at(const std::uint64_t* words, std::size_t j) {
  return words[j / kWordBits] >> (j % kWordBits);
}

}  // namespace
}  // namespace diba
