#include "operators/bit_weights.hpp"

#include <cstring>
#include <string>

#include "layout/bit_matrix.hpp"
#include "operators/matrix.hpp"

namespace diba::ops {

BitWeights::BitWeights(const Node& node) : activation_bits_(static_cast<int>(node.integer("activation_bits"))) {
  if (activation_bits_ != 1 && activation_bits_ != 2)
    throw Error("activation_bits is " + std::to_string(activation_bits_) + "; it must be 1 or 2");
  const std::int64_t cols = node.integer("in_features");
  if (cols < 1 || static_cast<std::size_t>(cols) > kMostCountedCols)
    throw Error("in_features is " + std::to_string(cols) + "; it must be from 1 to " +
                std::to_string(kMostCountedCols));
  numbers_.cols = static_cast<std::size_t>(cols);
  take_planes(node.constant(1, "planes"));
  scales_ = floats_of(node, 2, "scales", rows());
  bias_ = bias_of(node, 3, rows());
}

// Into rows of whole words; what lies beyond the last column must be zero, as counts would take it in.
void BitWeights::take_planes(const Tensor& planes) {
  const std::size_t bytes = (cols() + 7) / 8, stride = words_for(cols());
  const bool fits = planes.type == kUint8 && planes.shape.size() == 3 && planes.shape[0] >= 1 && planes.shape[0] <= 2 &&
                    planes.shape[1] >= 1 && planes.shape[2] == static_cast<std::int64_t>(bytes);
  if (!fits)
    throw Error("planes has shape " + shown(planes.shape) + "; it must be uint8 of shape (1 or 2, rows, " +
                std::to_string(bytes) + ")");
  numbers_.bits = static_cast<int>(planes.shape[0]);
  numbers_.rows = static_cast<std::size_t>(planes.shape[1]);
  const std::size_t count = static_cast<std::size_t>(numbers_.bits) * rows();
  words_.assign(count * stride, 0);
  const auto* from = static_cast<const std::uint8_t*>(planes.data);
  const unsigned unused = cols() % 8 == 0 ? 0 : 0xFFU << cols() % 8 & 0xFFU;
  for (std::size_t i = 0; i < count; ++i) {
    if ((from[i * bytes + bytes - 1] & unused) != 0)
      throw Error("planes has ones beyond column " + std::to_string(cols()) + "; the file is damaged");
    std::memcpy(words_.data() + i * stride, from + i * bytes, bytes);
  }
  numbers_.words = words_.data();
  give_back(planes);
}

void BitWeights::multiply(const float* x, std::size_t count, float* y, const Executor& executor) const {
  bit_linear(numbers_, scales_.data(), bias_.empty() ? nullptr : bias_.data(), activation_bits_, x, count, y, executor);
}

}  // namespace diba::ops
