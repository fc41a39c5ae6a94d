#include "matrix.hpp"

#include <algorithm>

#include "file/source.hpp"
#include "runtime/dispatch.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace diba::ort {
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
  return std::make_shared<const Packed>(stored.left(), stored.right(), stored.signs, active());
}

void give_back(const Tensor& initializer) {
#if defined(__linux__) && defined(MADV_PAGEOUT)
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<std::uintptr_t>(initializer.data);
  const std::uintptr_t first = (begin + page - 1) / page * page;
  const std::uintptr_t last = (begin + size_of(initializer.shape)) / page * page;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_PAGEOUT);  // may be refused
#else
  static_cast<void>(initializer);
#endif
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

}  // namespace diba::ort
