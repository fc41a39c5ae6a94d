// Kernels of the fast products: sums of activations are looked up in tables, for four bits of a row at a time.
//
// A vector a is cut into groups of four neighbouring elements. Four bits choose some of the four: a group has 16 sums,
// and a table of one byte, an entry, for each. An entry is the sum in units of unit * weight, with one unit for the
// vector and one weight for the group, plus a shift that makes the group's smallest sum non-negative. Then, for a row b
// of bits,
//   sum of weight * entry over the groups  =  zero + (sum of a over the set bits) / unit
// up to the rounding of the tables, where zero is the sum of weight * shift over the groups.
//
// Entries and weights are integers, whose sums are exact in any order: every instruction set returns the same bytes.
// Making the tables and scaling the sums takes float32 operations, each rounded by itself and so the same everywhere.
#pragma once

#include <cstddef>
#include <cstdint>

namespace diba {

inline constexpr std::size_t kStep = 32;          // columns of one step: eight groups
inline constexpr std::size_t kStepEntries = 128;  // their tables, in bytes
inline constexpr std::size_t kOddEntries = 64;    // from the tables of a step's even groups to those of its odd groups
inline constexpr std::size_t kStepWeights = 8;    // their weights, in bytes
inline constexpr std::size_t kTileRows = 16;      // the bit matrix is cut into tiles of so many rows
inline constexpr std::size_t kTileStep = 64;      // bytes of one step of a tile: 16 rows of 32 bits
inline constexpr std::size_t kBlockTiles = 8;     // tiles whose bits lie together (product/tiled_bits.hpp)

// Bounds that keep the sums in 32 bits: entries <= 255, weights <= kLargestWeight.
inline constexpr std::int32_t kLargestWeight = 16;
inline constexpr float kEntryRange = 254.0F;  // largest entry of a group whose weight is exact; rounding may add 1
inline constexpr int kFineShift = 7;
inline constexpr std::int32_t kFineSteps = 1
                                           << kFineShift;  // unit * weight over this is what activations are rounded to
inline constexpr float kSmallestRange = 0x1p-100F;
inline constexpr std::size_t kLookupMaxCols = std::size_t{1} << 20;

// Into the second-level cache: fetched to the first one, bits that will be read once push out the tables.
[[gnu::always_inline]] inline void fetch_line(const std::uint8_t* bytes) { __builtin_prefetch(bytes, 0, 2); }

[[gnu::always_inline]] constexpr std::size_t steps_for(std::size_t cols) { return (cols + kStep - 1) / kStep; }
// Scratch of LookupKernels::tabulate: all columns, and a number for each group, of whole pairs of steps.
inline constexpr std::size_t kScratchSteps = 2;
[[gnu::always_inline]] constexpr std::size_t scratch_steps(std::size_t steps) {
  return (steps + kScratchSteps - 1) / kScratchSteps * kScratchSteps;
}
[[gnu::always_inline]] constexpr std::size_t scratch_floats(std::size_t cols) {
  return scratch_steps(steps_for(cols)) * (kStep + kStepWeights);
}
[[gnu::always_inline]] constexpr std::size_t tiles_for(std::size_t rows) { return (rows + kTileRows - 1) / kTileRows; }

// How a tile's step lies in memory, and the steps of the tiles of a block one after another. A half-word holds the 32
// columns of a row, lowest bit first. Both are the orders in which they are read.
enum class TileLayout {
  kHalfWords,  // the half-words of the 16 rows; one step of all tiles, the next step of all tiles, ...
  kBytes,      // the first bytes of the 16 half-words, their second bytes, ...; kStepsTogether steps of the first tile,
               // the same of the second tile, ..., the next steps of the first tile, ...; at the end fewer steps
};
inline constexpr std::size_t kStepsTogether = 4;

// Where step s of tile t begins in a block of `steps` steps; `stride`: bytes of one step of all tiles.
[[gnu::always_inline]] constexpr std::size_t step_at(TileLayout layout, std::size_t t, std::size_t s, std::size_t steps,
                                                     std::size_t stride) {
  if (layout == TileLayout::kHalfWords) return s * stride + t * kTileStep;
  const std::size_t first = s / kStepsTogether * kStepsTogether;
  const std::size_t together = steps - first < kStepsTogether ? steps - first : kStepsTogether;
  return first * stride + (t * together + s - first) * kTileStep;
}

// A vector as tables. Byte j of a half-word chooses an entry of group 2 j by its low four bits and one of group 2 j + 1
// by its high four bits.
struct LookupTables {
  std::uint8_t* entries;  // (steps, 2, 4, 16): [h][j] is the table of the step's group 2 j + h; 64-byte aligned
  std::uint8_t* weights;  // (steps, 2, 4), 1 to kLargestWeight; 8-byte aligned
  float unit;             // NaN where an activation or a group's sum is not finite: all results are NaN then
  std::int32_t zero;
  float total;  // the sum of a, rounded as the tables are; infinite where it is beyond float32
};

// How the sum s of row i becomes its result:
//   y(i) = scale(i) * (gain * (s - zero) - offset) + level * shift(i) + bias(i),  left to right, no fused operations.
struct LookupFinish {
  const float* scale;
  const float* shift;  // null: no such term
  const float* bias;   // null: no such term
  float gain, offset, level;
  std::int32_t zero;
};

struct LookupKernels {
  const char* name;
  TileLayout layout;

  // Fills `out` for a(j) = x(j) * d(j), or x(j) if d is null; zero from `cols` on. x, d (cols);
  // scaled: scratch of scratch_floats(cols), 64-byte aligned. With R_g = (|a_0| + |a_1|) + (|a_2| + |a_3|)
  // and R = max(kSmallestRange, max R_g), in float32:
  //   unit = R / (254 * 16),  weight_g = min(16, max(1, ceil(R_g * (16 / R)))),
  //   q_j = a_j * ((128 / unit) / weight_g) to the nearest integer, ties to even,
  //   z_g = ceil(-(sum of the negative q of the group) / 128),
  //   entry_g(b) = (128 z_g + sum of the q chosen by b + 64) >> 7,
  //   zero = sum of weight_g z_g,  total = float(sum of weight_g q_j) * (unit / 128).
  void (*tabulate)(const float* x, const float* d, std::size_t cols, float* scaled, LookupTables* out);

  // sums(c, i) = sum of weight * entry over the groups of row i, for `tiles` tiles of 16 rows and the tables of
  // `columns` vectors x. words: a block (step_at), 64-byte aligned;
  // sums has rows of `sums_stride`, 64-byte aligned, a multiple of 16. With one vector, memory is fetched so many bytes
  // before it is read; 0: the processor decides alone.
  void (*look_up)(const std::uint8_t* words, std::size_t stride, std::size_t tiles, std::size_t steps,
                  const LookupTables* x, std::size_t columns, std::int32_t* sums, std::size_t sums_stride,
                  std::size_t fetch_bytes);

  // y for rows [0, rows); sums, y and the vectors of f all begin at the same row, at any alignment.
  void (*finish)(const std::int32_t* sums, std::size_t rows, const LookupFinish& f, float* y);
};

extern const LookupKernels kLookupScalar;
extern const LookupKernels kLookupAvx2;
extern const LookupKernels kLookupAvx512;
extern const LookupKernels kLookupAvx512Vbmi;
extern const LookupKernels kLookupNeon;

// LookupKernels::tabulate of both AVX-512 tables.
void tabulate_avx512(const float* x, const float* d, std::size_t cols, float* scaled, LookupTables* out);

}  // namespace diba
