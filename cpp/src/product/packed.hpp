// Fast products: bits packed once for the lookup kernels, multiplied many times.
//
// A Packed holds bits only. The diagonals come with every call, as they change while a layer is trained and the bits do
// not; so do the threads (Executor).
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/kernels.hpp"
#include "layout/arena.hpp"
#include "layout/bit_matrix.hpp"
#include "product/tiled_bits.hpp"
#include "runtime/made_once.hpp"
#include "runtime/parallel.hpp"

namespace diba {

// The diagonals of D1 B1 D2 B2 D3, not owned: (rows), (inner), (cols).
struct Scales {
  const float *d1, *d2, *d3;
};

// Copies of the diagonals, and what follows from them and from the bits. A bit matrix by itself has d1 or none: the
// others are empty.
struct Diagonals {
  std::size_t bytes() const {
    return sizeof(float) * (d1.size() + d2.size() + d3.size() + middle.size() + shift.size());
  }

  std::vector<float> d1, d2, d3;
  std::vector<float> middle;  // 0/1 factors: B1 D2 1, what a 1 added to every element of B2 D3 x adds before D1
  std::vector<float> shift;   // 0/1 factors: D1 middle
};

// Where gradients are written: x (count, cols) or null, d1 (rows), d2 (inner), d3 (cols).
struct Gradients {
  float *x, *d1, *d2, *d3;
};

class Packed {
 public:
  // The bits of D1 B1 D2 B2 D3: left (rows, inner), right (inner, cols).
  Packed(BitView left, BitView right, bool signs, const Kernels& kernels);
  // One matrix by itself.
  Packed(BitView bits, bool signs, const Kernels& kernels);
  ~Packed();

  std::size_t rows() const { return left_ ? left_->rows : right_.rows; }
  std::size_t inner() const { return right_.rows; }
  std::size_t cols() const { return right_.cols; }
  std::size_t bytes() const;  // the transpose among them, once there is one
  const Kernels& kernels() const { return kernels_; }
  // Whether it was packed for the instruction set of these kernels, by this library or by another in the process.
  bool runs_on(const Kernels& kernels) const;
  // Whether it was made of these bits.
  bool holds(BitView left, BitView right, bool signs) const;

  Diagonals diagonals(const Scales& scales) const;
  // The same, faster, for a caller that still has the bits packed as `left`.
  Diagonals diagonals(const Scales& scales, BitView left) const;

  // Row i of B1, or of the one matrix there is: its entries, 0 and 1 or -1 and 1.
  void left_row(std::size_t i, float* entries) const;

  // The transposed matrix, packed by the first call and kept.
  const Packed& transposed() const;

  // Y = X M^T + bias: each row x of X (count, cols) becomes the row M x + bias of Y (count, rows). Row-major; bias
  // (rows) or null. The same bytes for every instruction set, every count and number of threads. Of finite numbers y
  // is finite: where float32 overflows on the way, the vector is multiplied in float64, and what is beyond float32 in
  // the end is its largest number. A NaN or an infinity in x makes all of its y NaN.
  // plus, where it is not null: E (rows, cols), and M is that of the bits and diagonals with E added. E x is added
  // last.
  void multiply(const Diagonals& d, const float* x, std::size_t count, const float* bias, float* y,
                const Executor& executor, const SparseRows* plus = nullptr) const;

  // The gradients of sum(g * y) for g (count, rows), of two matrices. `d` and `turned` are the diagonals of this and of
  // transposed(). They need x, but nothing that the product computed: with u = B2 (d3 x), w = B1' (d1 g), z = B2' (d2
  // w),
  //   x: d3 z,  d1: sum of g * (B1 (d2 u)),  d2: sum of w * u,  d3: sum of z * x.
  // Sums run over 32 vectors at a time in float32 and over these sums in float64, in order: the same bytes for every
  // instruction set and number of threads.
  void gradients(const Diagonals& d, const Diagonals& turned, const float* x, const float* g, std::size_t count,
                 const Gradients& out, const Executor& executor) const;

 private:
  // What a product with bits is combined with.
  struct Pass {
    const float *d3, *d2;               // null: ones
    const float *scale, *shift, *bias;  // (rows), of y; null: ones, zeros, zeros
    const SparseRows* plus;             // added to y; null: nothing
  };

  Executor affordable(const Executor& executor, std::size_t count, const SparseRows* plus) const;
  std::size_t vectors_together(std::size_t count) const;
  // u: B2 (d3 x) of every vector, (count, inner); null in multiply_together: not wanted.
  void multiply_batches(const Pass& pass, const float* x, std::size_t count, float* u, float* y,
                        const Executor& executor) const;
  void multiply_together(const Pass& pass, const float* x, std::size_t count, float* u, float* y,
                         const Executor& executor) const;
  void repair(const Diagonals& d, const float* x, std::size_t count, const float* bias, const SparseRows* plus,
              float* y) const;
  void multiply_in_double(const Diagonals& d, const float* x, const float* bias, const SparseRows* plus,
                          float* y) const;
  void add_gradients(const Diagonals& d, const Diagonals& turned, const float* x, const float* g, std::size_t count,
                     float* gx, float* sums, const Executor& executor) const;

  const Kernels& kernels_;
  const bool signs_;
  const Arena arena_;  // B2, then B1, in the order in which they are read
  const TiledBits right_;
  const std::optional<TiledBits> left_;  // none: one matrix by itself
  mutable MadeOnce<Packed> transposed_;
};

// The diagonals of a layer in training: those of the last call are, as a rule, those of the next.
class LatestDiagonals {
 public:
  std::shared_ptr<const Diagonals> get(const Packed& bits, const Scales& scales) const;

 private:
  mutable Latest<Diagonals> last_;
};

}  // namespace diba
