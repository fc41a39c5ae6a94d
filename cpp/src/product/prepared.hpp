// A factorization in the layout that the lookup kernels read: made once, multiplied many times.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/kernels.hpp"
#include "kernels/lookup.hpp"
#include "layout/aligned.hpp"
#include "layout/bit_matrix.hpp"

namespace diba {

class Pages;

// D1 B1 D2 B2 D3, not owned.
struct Factors {
  const float* d1;  // (rows)
  BitView b1;       // (rows, k)
  const float* d2;  // (k)
  BitView b2;       // (k, cols)
  const float* d3;  // (cols)
  bool signs;       // entries -1/+1 instead of 0/1
};

// A bit matrix in tiles of 16 rows, kBlockTiles of them to a block (the last block may have fewer). A block lies in the
// order in which it is read: step after step, and in a step tile after tile. Rows past the last are zero.
class LookupMatrix {
 public:
  // Packs into `words`, bytes_for(bits) of them, 64-byte aligned and not owned.
  LookupMatrix(BitView bits, TileLayout layout, std::uint8_t* words);
  static std::size_t bytes_for(BitView bits) { return tiles_for(bits.rows) * steps_for(bits.cols) * kTileStep; }

  const std::size_t rows, cols;
  std::size_t blocks() const { return (tiles_for(rows) + kBlockTiles - 1) / kBlockTiles; }

  // Rows [first, first + rows of the block) times each of `columns` vectors.
  struct Block {
    const std::uint8_t* words;
    std::size_t tiles, first, rows;
  };
  Block block(std::size_t b) const;

  // y = B a, or S a with S = 2 B - 1, in float64 and in the order of the columns; a (cols), y (rows).
  void multiply_exactly(const double* a, bool signs, double* y) const;

 private:
  const TileLayout layout_;
  const std::uint8_t* words_;
};

// The diagonals of a factorization, copied, and what follows from them.
struct Diagonals {
  explicit Diagonals(const Factors& factors);

  std::vector<float> d1, d2, d3;
  std::vector<float> middle;  // of a 0/1 factorization: B1 D2 1, what a constant in the middle adds before d1
  std::vector<float> shift;   // D1 middle
};

// Both bit matrices of a factorization, packed for the lookup kernels. The diagonals come with every call: they change
// while a layer is trained, the bits do not.
class PreparedBits {
 public:
  // left (rows, inner), right (inner, cols)
  PreparedBits(BitView left, BitView right, bool signs, const Kernels& kernels);
  ~PreparedBits();

  std::size_t rows() const { return left_.rows; }
  std::size_t inner() const { return right_.rows; }
  std::size_t cols() const { return right_.cols; }
  std::size_t bytes() const { return packed_bytes_; }
  const Kernels& kernels() const { return kernels_; }

  // Y = X M^T + bias: each row x of X (count, cols) becomes the row M x + bias of Y (count, rows). Row-major; bias
  // (rows) or null. The same bytes for every instruction set, every count and number of threads. Of finite numbers y
  // is finite: where float32 overflows on the way, the vector is multiplied in float64, and what is beyond float32 in
  // the end is its largest number. A NaN or an infinity in x makes all of its y NaN.
  void multiply(const Diagonals& d, const float* x, std::size_t count, const float* bias, float* y, int threads) const;

  // Both products before they are scaled: u = B2 (d3 * x) of (count, inner) and B1 (d2 * u) of (count, rows), on the
  // caller's thread.
  void halves(const Diagonals& d, const float* x, std::size_t count, float* u, float* y) const;

 private:
  std::size_t columns_together() const;
  void multiply_all(const Diagonals& d, const float* x, std::size_t count, const float* bias, float* y,
                    int threads) const;
  void multiply_some(const Diagonals& d, const float* x, std::size_t count, const float* bias, float* y,
                     int threads) const;
  void halves_of_some(const Diagonals& d, const float* x, std::size_t count, float* u, float* y) const;
  // Vectors whose result is not finite, though x is, once more in float64.
  void mend(const Diagonals& d, const float* x, std::size_t count, const float* bias, float* y, int threads) const;

  const Kernels& kernels_;
  bool signs_;
  std::size_t packed_bytes_;
  std::unique_ptr<const Pages> packed_;  // B2, then B1, in the order in which they are read
  LookupMatrix right_, left_;
  AlignedFloats ones_;                          // scales of what is not to be scaled
  mutable std::atomic<bool> backwards_{false};  // order of blocks: every product turns round where the last one ended
};

// One bit matrix by itself.
class PreparedMatrix {
 public:
  PreparedMatrix(BitView bits, bool signs, const Kernels& kernels);
  ~PreparedMatrix();

  std::size_t rows() const { return matrix_.rows; }
  std::size_t cols() const { return matrix_.cols; }
  const Kernels& kernels() const { return kernels_; }

  // Y = X B^T; x (count, cols), y (count, rows); overflow as in PreparedBits::multiply.
  void multiply(const float* x, std::size_t count, float* y, int threads) const;

 private:
  const Kernels& kernels_;
  bool signs_;
  std::unique_ptr<const Pages> packed_;
  LookupMatrix matrix_;
  AlignedFloats ones_;
};

// A factorization that stays as it is: its bits and its diagonals.
class Prepared {
 public:
  // Everything is copied.
  Prepared(const Factors& factors, const Kernels& kernels)
      : bits_(factors.b1, factors.b2, factors.signs, kernels), diagonals_(factors) {}

  std::size_t rows() const { return bits_.rows(); }
  std::size_t inner() const { return bits_.inner(); }
  std::size_t cols() const { return bits_.cols(); }
  std::size_t bytes() const;  // of everything it holds
  const Kernels& kernels() const { return bits_.kernels(); }

  void multiply(const float* x, std::size_t count, const float* bias, float* y, int threads) const {
    bits_.multiply(diagonals_, x, count, bias, y, threads);
  }

 private:
  PreparedBits bits_;
  Diagonals diagonals_;
};

}  // namespace diba
