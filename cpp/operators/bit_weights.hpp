// Weights of one or two bits, of a node whose inputs are rounded to as few: product/bit_counts.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "operators/operators.hpp"
#include "product/bit_counts.hpp"

namespace diba::ops {

class BitWeights {
 public:
  // Inputs 1, `planes`: uint8 (bits, rows, ceil(cols / 8)), low bits first; 2, `scales`: float32 (rows); and, where
  // there is one, 3, `bias`. Attributes in_features and activation_bits. Throws Error.
  explicit BitWeights(const Node& node);
  BitWeights(const BitWeights&) = delete;  // numbers_ points into words_
  BitWeights& operator=(const BitWeights&) = delete;

  std::size_t rows() const { return numbers_.rows; }
  std::size_t cols() const { return numbers_.cols; }

  // As Matrix does, with each row of X rounded.
  void multiply(const float* x, std::size_t count, float* y, const Executor& executor) const;

 private:
  void take_planes(const Tensor& planes);

  int activation_bits_;
  BitNumbers numbers_{};
  std::vector<std::uint64_t> words_;
  std::vector<float> scales_, bias_;
};

}  // namespace diba::ops
