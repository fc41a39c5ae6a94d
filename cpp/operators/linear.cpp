// diba::Linear and diba::BitLinear

#include <algorithm>
#include <cstring>

#include "layout/aligned.hpp"
#include "operators/bit_weights.hpp"
#include "operators/matrix.hpp"
#include "operators/numbers.hpp"
#include "operators/operators.hpp"

namespace diba::ops {
namespace {

// M: what multiplies, Matrix or BitWeights.
template <class M>
class Linear : public Kernel {
 public:
  explicit Linear(const Node& node) : matrix_(node), parts_(node.integers("out_features")) {
    std::int64_t total = 0;
    for (const std::int64_t part : parts_) {
      if (part < 1) throw Error("out_features has the entry " + std::to_string(part) + "; it must be at least 1");
      total += part;
    }
    if (total != static_cast<std::int64_t>(matrix_.rows())) {
      throw Error("out_features has the sum " + std::to_string(total) + "; it must be " +
                  std::to_string(matrix_.rows()) + ", the rows of the matrix");
    }
  }

  void compute(const Call& call) const override {
    const Tensor x = call.input(0);
    if (x.shape.empty() || x.shape.back() != static_cast<std::int64_t>(matrix_.cols()))
      throw Error("X has shape " + shown(x.shape) + "; its last dimension must be " + std::to_string(matrix_.cols()));
    const std::size_t count = size_of(x.shape) / matrix_.cols();
    std::vector<void*> outputs;
    Shape shape = x.shape;
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      shape.back() = parts_[i];
      outputs.push_back(call.output(i, shape));
    }
    if (count == 0) return;
    const bool plain = x.type == kFloat, whole = parts_.size() == 1;
    const std::size_t m = matrix_.rows(), n = matrix_.cols();
    // Whatever is not float32, or not one piece, goes through memory of its own.
    const Aligned<float> scratch((plain ? 0 : count * n) + (plain && whole ? 0 : count * m));
    const float* from = static_cast<const float*>(x.data);
    float* to = scratch.data();
    if (!plain) {
      to_float32(static_cast<const std::uint16_t*>(x.data), count * n, x.type, to);
      from = to;
      to += count * n;
    }
    if (plain && whole) to = static_cast<float*>(outputs[0]);
    matrix_.multiply(from, count, to, call.executor());
    if (!plain || !whole) divide(to, count, x.type, outputs);
  }

 private:
  // Y (count, rows) into the outputs, in their type.
  void divide(const float* y, std::size_t count, ElementType type, const std::vector<void*>& outputs) const {
    std::size_t first = 0;
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      const auto size = static_cast<std::size_t>(parts_[i]);
      for (std::size_t c = 0; c < count; ++c) {
        const float* row = y + c * matrix_.rows() + first;
        if (type == kFloat) {
          std::memcpy(static_cast<float*>(outputs[i]) + c * size, row, size * sizeof(float));
        } else {
          from_float32(row, size, type, static_cast<std::uint16_t*>(outputs[i]) + c * size);
        }
      }
      first += size;
    }
  }

  M matrix_;
  Shape parts_;
};

void infer(const Inference& inference) {
  ElementType type;
  Dimensions dimensions = inference.input(0, &type);
  if (dimensions.empty()) return;
  std::size_t i = 0;
  for (const std::int64_t part : inference.integers("out_features")) {
    dimensions.back() = {part, ""};
    inference.set_output(i++, dimensions, type);
  }
}

}  // namespace

Definition linear(ElementType activations) {
  return {"Linear",
          {{activations, kRequired}, {kUint8, kRequired}, {kFloat, kOptional}},
          {{activations, kVariadic}},
          [](const Node& node) -> std::unique_ptr<Kernel> { return std::make_unique<Linear<Matrix>>(node); },
          infer};
}

Definition bit_linear(ElementType activations) {
  return {"BitLinear",
          {{activations, kRequired}, {kUint8, kRequired}, {kFloat, kRequired}, {kFloat, kOptional}},
          {{activations, kVariadic}},
          [](const Node& node) -> std::unique_ptr<Kernel> { return std::make_unique<Linear<BitWeights>>(node); },
          infer};
}

}  // namespace diba::ops
