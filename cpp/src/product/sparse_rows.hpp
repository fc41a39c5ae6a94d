// Products with a sparse matrix, added to those with packed bits. Every sum has the order that kernels.hpp states,
// whatever the number of vectors and threads.
#pragma once

#include <cstddef>

#include "kernels/kernels.hpp"
#include "runtime/parallel.hpp"

namespace diba {

// Vectors as the kernels read them: kSparseTile of them side by side, and one by one where few are left.
class SparseVectors {
 public:
  // X (count, cols), row-major; scratch of floats_for() floats, 64-byte aligned.
  SparseVectors(const SparseRows& rows, const float* x, std::size_t count, float* scratch);
  static std::size_t floats_for(std::size_t cols, std::size_t count) { return tiles_for(count) * cols * kSparseTile; }

  std::size_t tiles() const { return tiles_for(count_); }
  // Before any product; tiles are independent.
  void fill(std::size_t tile) const;
  // Y(c, i) += the product of row i with vector c, for rows [begin, end), at most kMostRows. y (count, rows).
  void add(const Kernels& kernels, std::size_t begin, std::size_t end, float* y) const;

  static constexpr std::size_t kMostRows = 128;

 private:
  // From so many on, vectors are multiplied together faster.
  static constexpr std::size_t kFewest = 5;
  static std::size_t tiles_for(std::size_t count) {
    return count / kSparseTile + (count % kSparseTile >= kFewest ? 1 : 0);
  }

  const SparseRows& rows_;
  const float* x_;
  std::size_t count_;
  float* tiles_;
};

// Whether the rows are what kernels rely on: starts ascend from 0 to `entries`, and columns are below `cols`.
bool is_valid(const SparseRows& rows, std::size_t entries);

// Y += X E': each row x of X (count, cols) adds E x to a row of Y (count, rows). Row-major.
void add_sparse(const SparseRows& rows, const float* x, std::size_t count, float* y, const Executor& executor);

// The product of row i with x (cols), in float64, in order of the entries.
double sparse_sum(const SparseRows& rows, std::size_t i, const float* x);

}  // namespace diba
