#include "operators/matrix.hpp"

#include <algorithm>

#include "file/source.hpp"
#include "product/packed_store.hpp"
#include "runtime/dispatch.hpp"

namespace diba::ops {
namespace {

std::vector<float> bias_of(const Node& node, std::size_t input, std::size_t rows) {
  if (!node.has_input(input)) return {};
  const Tensor bias = node.constant(input, "bias");
  if (bias.type != kFloat || bias.shape != Shape{static_cast<std::int64_t>(rows)})
    throw Error("bias has shape " + shown(bias.shape) + "; it must be float32 of shape (" + std::to_string(rows) + ")");
  const auto* values = static_cast<const float*>(bias.data);
  return {values, values + rows};
}

}  // namespace

std::shared_ptr<const Packed> shared_bits(const StoredFactors& stored) {
  return packed_store().get(stored.left(), stored.right(), stored.signs, active());
}

Matrix::Matrix(const Node& node, std::size_t factors, std::size_t bias) {
  const Tensor bytes = node.constant(factors, "factors");
  if (bytes.type != kUint8 || bytes.shape.size() != 1)
    throw Error("factors must be the bytes of a diba file: uint8 of one dimension, not of shape " + shown(bytes.shape));
  const std::string precision = node.text("precision", "fast");
  if (precision == "exact") {
    exact_.emplace(Factorization::parse(bytes.data, size_of(bytes.shape), "factors"));
  } else if (precision == "fast") {
    const StoredFactors stored = read_factors(*open_memory(bytes.data, size_of(bytes.shape)), "factors");
    bits_ = shared_bits(stored);
    diagonals_ = bits_->diagonals({stored.d1.data(), stored.d2.data(), stored.d3.data()}, stored.left());
  } else {
    throw Error("precision is '" + precision + "'; it must be 'fast' or 'exact'");
  }
  bias_ = bias_of(node, bias, rows());
  give_back(bytes);
}

void Matrix::multiply(const float* x, std::size_t count, float* y, const Executor& executor) const {
  const float* bias = bias_.empty() ? nullptr : bias_.data();
  if (bits_) {
    bits_->multiply(diagonals_, x, count, bias, y, executor);
    return;
  }
  const auto one = [&](std::size_t i) {
    exact_->multiply(x + i * cols(), y + i * rows(), {Precision::kExact, bias, 1});
  };
  const Stage stage{count, one};
  executor.run(&stage, 1);
}

}  // namespace diba::ops
