// The matrix of a node: the factors of an initializer, packed when the session is made.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "diba/diba.hpp"
#include "file/factors.hpp"
#include "operators/operators.hpp"
#include "product/packed.hpp"

namespace diba::ops {

class Matrix {
 public:
  // Inputs `factors` and, where there is one, `bias` of the node. Throws Error.
  Matrix(const Node& node, std::size_t factors, std::size_t bias);

  std::size_t rows() const { return bits_ ? bits_->rows() : exact_->rows(); }
  std::size_t cols() const { return bits_ ? bits_->cols() : exact_->cols(); }

  // Each row x of X (count, cols) becomes the row M x + bias of Y (count, rows).
  void multiply(const float* x, std::size_t count, float* y, const Executor& executor) const;

 private:
  std::shared_ptr<const Packed> bits_;  // null: exact
  Diagonals diagonals_;
  std::optional<Factorization> exact_;
  std::vector<float> bias_;
};

// The packed bits of some factors: the same for all nodes and sessions of the process that have equal bits.
std::shared_ptr<const Packed> shared_bits(const StoredFactors& stored);

// Bytes of an initializer that were read and will not be read again soon. Where they are those of a mapped file, they
// leave memory; who reads them all the same gets them from the file.
void give_back(const Tensor& initializer);

}  // namespace diba::ops
