// The matrix of a node: the factors, or signs and exceptions, of an initializer, packed when the session is made.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "diba/diba.hpp"
#include "file/binarized.hpp"
#include "file/factors.hpp"
#include "operators/operators.hpp"
#include "product/packed.hpp"

namespace diba::ops {

class Matrix {
 public:
  // Inputs 1, `factors`, and, where there is one, 2, `bias` of the node. Throws Error.
  explicit Matrix(const Node& node);

  std::size_t rows() const { return rows_; }
  std::size_t cols() const { return cols_; }

  // Each row x of X (count, cols) becomes the row M x + bias of Y (count, rows).
  void multiply(const float* x, std::size_t count, float* y, const Executor& executor) const;

 private:
  void read_factors(const Tensor& bytes, Source& source, bool exact);
  void read_signs(Source& source, bool exact);
  // Row by row, as Factorization does.
  void multiply_exactly(const float* x, float* y) const;

  std::size_t rows_ = 0, cols_ = 0;
  std::shared_ptr<const Packed> bits_;  // null: exact
  Diagonals diagonals_;
  std::unique_ptr<const Factorization> exact_;         // null: fast, or signs and exceptions
  std::unique_ptr<const StoredBinarized> exceptions_;  // null: factors; the signs only where products are exact
  std::vector<float> bias_;
};

// Input `input` of a node, one float32 for each row; `what` names it in messages. Throws Error.
std::vector<float> floats_of(const Node& node, std::size_t input, const char* what, std::size_t rows);
// The same of a bias, which may be missing.
std::vector<float> bias_of(const Node& node, std::size_t input, std::size_t rows);

// The packed bits of some factors: the same for all nodes and sessions of the process that have equal bits.
std::shared_ptr<const Packed> shared_bits(const StoredFactors& stored);

// Bytes of an initializer that were read and will not be read again soon. Where they are those of a mapped file, they
// leave memory; who reads them all the same gets them from the file.
void give_back(const Tensor& initializer);

}  // namespace diba::ops
