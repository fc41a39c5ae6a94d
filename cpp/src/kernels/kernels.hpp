// The kernels: functions of which each instruction set has its own, in one table (Kernels), with one contract.
//
// Numeric contract: every table returns the same bytes. Each sum therefore has one fixed order, which
// kernels/scalar.cpp spells out, products are rounded before they are added (only fused_tile fuses the two), and vector
// lanes only ever hold sums that the scalar code holds too.
// Memory contract: a kernel reads and writes only the elements named here, at any alignment of 4 bytes (floats) or
// 8 bytes (words), never past their end. Arguments do not overlap.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/lookup.hpp"
#include "layout/bit_matrix.hpp"

namespace diba {

// One side of the binary subproblem. Rows are independent: row i minimises |a_i - d_i b_i C|^2 over its bits b_i.
struct FlipProblem {
  const float* gram;      // (k, k) H = C C^T, symmetric
  const float* diagonal;  // (k) H_jj
  float max_diagonal;     // largest H_jj
  float* correlations;    // (rows, k) g_i = C r_i with residual r_i = a_i - d_i b_i C; kept up to date
  const float* scale;     // (rows) d_i
  std::uint64_t* words;   // (rows, words_for(k)) bits of b_i; kept up to date
  double* decrease;       // (rows) out: by how much |r_i|^2 fell
  std::size_t k;
  float step;  // change of an entry when its bit flips: 1 for 0/1, 2 for signs
  // Where no single flip helps, the best pair is tried, if max_off_diagonal is given, and so on until neither helps.
  const float* max_off_diagonal;  // (k) max |H_jl| over l != j; null: single flips only
  const std::uint64_t* sides;  // (words_for(k)) e_j = -1 where set, with e_j e_l H_jl >= 0 for all j, l: no two flips
                               // with e_j s_j = e_l s_l help each other. Null if there is no such e.
};

// One row of a sign factor, Z = diag(outer) S diag(inner), before the solve of an ADMM step (admm.hpp).
struct SignRow {
  std::size_t k;
  const float* signs;         // (k) row of S
  float outer;                // its u
  const float* inner;         // (k) v
  const float* ratio;         // (k) new units of the columns over the old ones
  const float* correlations;  // (k) row of A X
  const float* weights;       // (k) weights of the correlations in the value returned
  float penalty;
  float* state;   // (k) in: Y + U in the old units; out: the dual U in the new ones
  float* target;  // (k) out: A X + penalty (Z - U)
};

// Rows of whole numbers e(i, j) of few bits, read where they are stored:
//   8 bits: e = code(i, j) - 128;  4 bits: e = (code(i, j) - 8) * (step(i, j / group) - 128), two codes in a byte, the
//   first one in the low bits. Unused bits of a row are ignored.
struct CodeRows {
  const std::uint8_t* codes;  // rows of row_bytes() that begin code_stride bytes from one another
  const std::uint8_t* steps;  // rows of groups() that begin step_stride bytes from one another; null at 8 bits
  std::size_t code_stride, step_stride;
  std::size_t rows, cols;
  int bits;           // 8 or 4
  std::size_t group;  // codes that share a step: a power of two, at least 32

  [[gnu::always_inline]] std::size_t row_bytes() const { return bits == 8 ? cols : (cols + 1) / 2; }
  [[gnu::always_inline]] std::size_t groups() const { return bits == 8 ? 1 : (cols + group - 1) / group; }
};

// Rows of bits, `stride` words from one another; or of numbers of two bits, of which the high ones follow `plane` words
// after the low ones.
struct CountRows {
  const std::uint64_t* words;
  std::size_t count, stride;
  std::size_t plane = 0;
};

// A sparse matrix in compressed rows. Of row i there are the entries from starts[i] up to starts[i + 1].
struct SparseRows {
  const std::uint32_t* starts;  // (rows + 1), ascending from 0
  const void* columns;          // integers of column_bytes, below cols; ascending in each row
  const float* values;
  std::size_t rows, cols;
  std::size_t column_bytes;  // 1, 2 or 4
};

struct Kernels {
  const char* name;

  // words(j) = x(j) > 0 for one row; x (cols), words (words_for(cols)) with zero tail.
  void (*pack_row)(const float* x, std::size_t cols, std::uint64_t* words);

  // x(j) = bit ? one : zero for one row.
  void (*unpack_row)(const std::uint64_t* words, std::size_t cols, float zero, float one, float* x);

  // y(i) = sum of x(j) over the set bits j of row i. words (rows, words_for(cols)), x (cols), y (rows).
  // Order: lane l of 64 sums columns l, l + 64, ...; the lanes are then added pairwise, l and l + 32, 16, ... 1.
  void (*row_sums)(const std::uint64_t* words, std::size_t rows, std::size_t cols, const float* x, float* y);

  // y(j) = sum of x(i) over the rows i whose bit j is set, in order of i, for the 64-column words
  // [word_begin, word_end). x (rows), y (cols).
  void (*column_sums)(const std::uint64_t* words, std::size_t rows, std::size_t cols, std::size_t word_begin,
                      std::size_t word_end, const float* x, float* y);

  // Y(i, c) = sum of weights(j) * X(j, c) over the set bits j of row i, for one tile of kTile columns c.
  // Order: the four columns of a group are added left to right, the 8 groups of half a word pairwise (neighbours
  // first), the half words in order of j.
  // x (padded_cols(cols), kTile) and weights (padded_cols(cols)), zero from `cols` on; y (rows, kTile); table: scratch
  // of table_floats() floats; all but the weights 64-byte aligned.
  void (*row_sums_tile)(const std::uint64_t* words, std::size_t rows, std::size_t cols, const float* x,
                        const float* weights, float* y, float* table);

  // Y(i, c) = sum of s(i, j) * q(j, c) * unit over j, s = 1 where bit j of row i is set, else -1, for one tile of kTile
  // columns c. x(j, c) * weights(j), rounded, is q(j, c) * unit to the nearest whole q, ties to even: in each word of
  // 64 columns j, and for each c, unit = their largest magnitude, at least kLeastRounded, / kMostRounded. Order: sums
  // of q in a word are exact, times unit they are added in order of the words. words: of row i, word w lies at w *
  // stride + i; x (cols, kTile), weights (cols); y (rows, kTile); table: scratch of sign_table_shorts(); x, y and table
  // 64-byte aligned.
  void (*sign_sums_tile)(const std::uint64_t* words, std::size_t stride, std::size_t rows, std::size_t cols,
                         const float* x, const float* weights, float* y, std::int16_t* table);

  // dots(r) = sum of x(j) * y(r, j) over j < cols, for r < rows <= 4; y has rows of `stride`.
  // Order: lane l of 8 sums columns l, l + 8, ...; the lanes are then added pairwise, l and l + 4, 2, 1.
  void (*dot_rows)(const double* x, const double* y, std::size_t stride, std::size_t rows, std::size_t cols,
                   double* dots);

  // Y(i, c) = fma(A(i, l), X(l, c), Y(i, c)) for l = 0, 1, ... in turn, for one tile of kTile columns c: the one place
  // where multiply-adds are fused, on every instruction set. a (rows) of `stride`, `inner` <= stride; x (inner, kTile)
  // and y (rows, kTile) 64-byte aligned.
  void (*fused_tile)(const float* a, std::size_t rows, std::size_t stride, std::size_t inner, const float* x, float* y);

  // Inverse in place of a symmetric positive definite block (kTile, kTile), row by row of pivots, without fused
  // operations.
  void (*invert_pivot)(float* block);

  // q(j) = x(j) / scale to the nearest integer, ties to even, with scale = max |x| / 127; zero from `cols` up to
  // padded_bytes(cols). Returns scale: 0 where x is all zero. x (cols), q (padded_bytes(cols)).
  float (*quantize_row)(const float* x, std::size_t cols, std::int8_t* q);

  // Y(i, c) = sum of A(i, j) * X(j, c) over j < 4 * groups, exactly, for one tile of kTile columns c. No entry is -128.
  // a (rows) of `stride` bytes, any alignment; x (groups, kTile, 4): four rows of X beside one another in each column;
  // y (rows, kTile); x and y 64-byte aligned.
  void (*integer_tile)(const std::int8_t* a, std::size_t rows, std::size_t stride, std::size_t groups,
                       const std::int8_t* x, std::int32_t* y);

  // sums(c, i - begin) = sum of e(i, j) * x(c, j) over j, for rows i from `begin` up to `end` and c < count vectors; no
  // sum exceeds 32 bits. x: vectors as CodeVector describes them, 64-byte aligned; sums has rows of `stride`.
  void (*code_sums)(const CodeRows& rows, std::size_t begin, std::size_t end, const std::int16_t* x, std::size_t count,
                    std::int32_t* sums, std::size_t stride);

  // y(r, l) += the number of ones that row r of `rows` and row l of `lanes` have in common in the first `words` words,
  // times 2^shift; modulo 2^32. With numbers of two bits on both sides, the sum of their products. At most
  // kCountLanes lanes; y has rows of `stride`. scratch: count_scratch_bytes(), 64-byte aligned.
  void (*common_counts)(const CountRows& lanes, const CountRows& rows, std::size_t words, int shift, std::int32_t* y,
                        std::size_t stride, std::uint8_t* scratch);

  // y(i - begin) += sum of values(t) * x(columns(t)) over the entries t of row i, for rows [begin, end). x (cols).
  // Order: lane l of kSparseLanes sums every eighth entry of the row, from the l-th on; the lanes are then added
  // pairwise, l and l + 4, 2, 1.
  void (*sparse_rows)(const SparseRows& rows, std::size_t begin, std::size_t end, const float* x, float* y);

  // Y(i - begin, c) = the same sum, by itself, for one tile of kSparseTile vectors c. x (cols, kSparseTile), y (end -
  // begin, kSparseTile), 64-byte aligned.
  void (*sparse_tile)(const SparseRows& rows, std::size_t begin, std::size_t end, const float* x, float* y);

  // Fills row.target and row.state (SignRow); returns the sum of correlations * weights * signs.
  // Order: lane l of 16 sums columns l, l + 16, ...; the lanes are then added pairwise, l and l + 8, 4, 2, 1.
  float (*sign_target)(const SignRow& row);

  // state += solved; returns u = sum of |state| * inner, in the order of sign_target; sums(j) += u * |state(j)|.
  // All (k).
  float (*sign_project)(const float* solved, const float* inner, std::size_t k, float* state, float* sums);

  // Flips bits of rows [begin, end) until no single flip (or pair) lowers the objective of its row (FlipProblem), and
  // returns the number of flips. scratch: flip_scratch_floats(k) floats, 64-byte aligned.
  std::uint64_t (*flip_rows)(const FlipProblem& problem, std::size_t begin, std::size_t end, float* scratch);

  const LookupKernels* lookup;  // the kernels of the fast products
};

// row_sums_tile works on half a word of bits at a time: 8 groups of four bits, 16 sums each. Its table of 16 KiB leaves
// room for other data in a first-level cache of 32 KiB.
inline constexpr std::size_t kTile = 32;
inline constexpr std::size_t kGroups = 8;
inline constexpr std::size_t kHalfBits = 4 * kGroups;
[[gnu::always_inline]] constexpr std::size_t table_floats() { return kGroups * 16 * kTile; }
[[gnu::always_inline]] constexpr std::size_t padded_cols(std::size_t cols) {
  return (cols + kHalfBits - 1) / kHalfBits * kHalfBits;
}

// common_counts takes so many words at a time: it spreads these of 64 rows, and of four others, to a byte for every
// four bits.
inline constexpr std::size_t kCountLanes = 64;
inline constexpr std::size_t kCountWords = 16;
[[gnu::always_inline]] constexpr std::size_t count_scratch_bytes() { return 16 * kCountWords * (kCountLanes + 4); }

// Of sparse_rows and sparse_tile; the tile is a vector of the widest lanes there are.
inline constexpr std::size_t kSparseLanes = 8;
inline constexpr std::size_t kSparseTile = 16;

// Of sign_sums_tile: 64 whole numbers up to kMostRounded add up in 16 bits.
inline constexpr float kMostRounded = 511.0F;
inline constexpr float kLeastRounded = 0x1p-100F;
[[gnu::always_inline]] constexpr std::size_t sign_table_shorts() { return kWordBits / 4 * 16 * kTile; }

// Rows of 8-bit integers are padded to whole vectors.
[[gnu::always_inline]] constexpr std::size_t padded_bytes(std::size_t cols) { return (cols + 63) / 64 * 64; }

// flip_rows keeps for one row the gains, the sign of each bit and bounds of pairs, each padded to whole words.
[[gnu::always_inline]] constexpr std::size_t flip_scratch_floats(std::size_t k) { return 3 * kWordBits * words_for(k); }

// A flip must lower the objective by more than this share of the row's largest curvature step^2 d^2 H_jj: below it
// lies the rounding of float32 correlations.
inline constexpr float kFlipThreshold = 0x1p-20F;

// The largest number of flips of a row, in case rounding makes bits flip to and fro; other rows end long before.
[[gnu::always_inline]] constexpr std::uint64_t max_flips(std::size_t k) {
  return 64 * static_cast<std::uint64_t>(k) + 64;
}

extern const Kernels kScalar;
extern const Kernels kAvx2;
extern const Kernels kAvx512;
extern const Kernels kNeon;

// A vector of 16-bit numbers x(j) for code_sums. At 8 bits they lie in order; at 4 bits, where |x(j)| <= kCodeMost,
// each as two bytes, x = 256 high + low: for 64 columns the high bytes of the even columns, then of the odd ones, and
// the low bytes likewise. All are zero from `cols` up to a multiple of 64. Then come 32-bit numbers modulo 2^32, one
// for each group and zeros up to a multiple of 8: the sum of x(j) over the group, times the code that stands for zero.
inline constexpr std::size_t kCodeStep = 64;
inline constexpr std::int32_t kCodeMost = 127 * 256;
struct CodeVector {
  [[gnu::always_inline]] static std::size_t padded(std::size_t cols) {
    return (cols + kCodeStep - 1) / kCodeStep * kCodeStep;
  }
  [[gnu::always_inline]] static std::size_t offsets(const CodeRows& rows) { return (rows.groups() + 7) / 8 * 8; }
  // In 16-bit numbers; a multiple of 64 bytes.
  [[gnu::always_inline]] static std::size_t length(const CodeRows& rows) {
    return padded(rows.cols) + padded(2 * offsets(rows));
  }
};

// Members of tables that dispatch.cpp makes from kAvx512: those of "avx512vnni" and "avx512vbmi", and of "amx".
void integer_tile_vnni(const std::int8_t* a, std::size_t rows, std::size_t stride, std::size_t groups,
                       const std::int8_t* x, std::int32_t* y);
void integer_tile_amx(const std::int8_t* a, std::size_t rows, std::size_t stride, std::size_t groups,
                      const std::int8_t* x, std::int32_t* y);
void common_counts_vpopcntdq(const CountRows& lanes, const CountRows& rows, std::size_t words, int shift,
                             std::int32_t* y, std::size_t stride, std::uint8_t* scratch);
void code_sums_vnni(const CodeRows& rows, std::size_t begin, std::size_t end, const std::int16_t* x, std::size_t count,
                    std::int32_t* sums, std::size_t stride);

}  // namespace diba
