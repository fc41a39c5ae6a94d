#include "operators/matrix.hpp"

#include <utility>

#include "file/source.hpp"
#include "product/exact.hpp"
#include "product/packed_store.hpp"
#include "product/sparse_rows.hpp"
#include "runtime/dispatch.hpp"

namespace diba::ops {

std::vector<float> floats_of(const Node& node, std::size_t input, const char* what, std::size_t rows) {
  const Tensor floats = node.constant(input, what);
  if (floats.type != kFloat || floats.shape != Shape{static_cast<std::int64_t>(rows)})
    throw Error(what + (" has shape " + shown(floats.shape)) + "; it must be float32 of shape (" +
                std::to_string(rows) + ")");
  const auto* values = static_cast<const float*>(floats.data);
  return {values, values + rows};
}

std::vector<float> bias_of(const Node& node, std::size_t input, std::size_t rows) {
  return node.has_input(input) ? floats_of(node, input, "bias", rows) : std::vector<float>{};
}

std::shared_ptr<const Packed> shared_bits(const StoredFactors& stored) {
  return packed_store().get(stored.left(), stored.right(), stored.signs, active());
}

Matrix::Matrix(const Node& node) {
  const Tensor bytes = node.constant(1, "factors");
  if (bytes.type != kUint8 || bytes.shape.size() != 1)
    throw Error("factors must be the bytes of a diba file: uint8 of one dimension, not of shape " + shown(bytes.shape));
  const std::string precision = node.text("precision", "fast");
  if (precision != "fast" && precision != "exact")
    throw Error("precision is '" + precision + "'; it must be 'fast' or 'exact'");
  const std::unique_ptr<Source> source = open_memory(bytes.data, size_of(bytes.shape));
  if (is_binarized(*source, "factors")) {
    read_signs(*source, precision == "exact");
  } else {
    read_factors(bytes, *source, precision == "exact");
  }
  bias_ = bias_of(node, 2, rows_);
  give_back(bytes);
}

void Matrix::read_factors(const Tensor& bytes, Source& source, bool exact) {
  if (exact) {
    exact_ = std::make_unique<const Factorization>(Factorization::parse(bytes.data, size_of(bytes.shape), "factors"));
    rows_ = exact_->rows();
    cols_ = exact_->cols();
    return;
  }
  const StoredFactors stored = diba::read_factors(source, "factors");
  rows_ = stored.rows;
  cols_ = stored.cols;
  bits_ = shared_bits(stored);
  diagonals_ = bits_->diagonals({stored.d1.data(), stored.d2.data(), stored.d3.data()}, stored.left());
}

void Matrix::read_signs(Source& source, bool exact) {
  auto stored = std::make_unique<StoredBinarized>(read_binarized(source, "factors"));
  rows_ = stored->rows;
  cols_ = stored->cols;
  if (!exact) {
    bits_ = std::make_shared<const Packed>(stored->bits(), true, active());
    diagonals_.d1 = std::move(stored->alpha);
    stored->signs = {};
  }
  exceptions_ = std::move(stored);
}

void Matrix::multiply(const float* x, std::size_t count, float* y, const Executor& executor) const {
  if (bits_) {
    const float* bias = bias_.empty() ? nullptr : bias_.data();
    const SparseRows plus = exceptions_ ? exceptions_->sparse() : SparseRows{};
    bits_->multiply(diagonals_, x, count, bias, y, executor, exceptions_ ? &plus : nullptr);
    return;
  }
  const auto one = [&](std::size_t i) { multiply_exactly(x + i * cols_, y + i * rows_); };
  const Stage stage{count, one};
  executor.run(&stage, 1);
}

void Matrix::multiply_exactly(const float* x, float* y) const {
  if (exact_) {
    exact_->multiply(x, y, {Precision::kExact, bias_.empty() ? nullptr : bias_.data(), 1});
    return;
  }
  matvec(exceptions_->bits(), true, x, y, 1);
  for (std::size_t i = 0; i < rows_; ++i) y[i] = exceptions_->alpha[i] * y[i] + (bias_.empty() ? 0.0F : bias_[i]);
  add_sparse(exceptions_->sparse(), x, 1, y, 1);
}

}  // namespace diba::ops
