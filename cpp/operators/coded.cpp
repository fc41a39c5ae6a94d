// diba::CodedLinear

#include "operators/coded.hpp"

#include <memory>
#include <string>

#include "layout/aligned.hpp"
#include "operators/numbers.hpp"

namespace diba::ops {

CodedTable::CodedTable(const Node& node, std::size_t table, const char* columns) : table_(table) {
  const Tensor codes = node.constant(table, "table"), scales = node.constant(table + 1, "scales");
  const std::int64_t bits = node.integer("bits", 8), cols = node.integer(columns), group = node.integer("group", 0);
  if (bits != 8 && bits != 4) throw Error("bits is " + std::to_string(bits) + "; it must be 8 or 4");
  if (cols < 1 || static_cast<std::size_t>(cols) > kCodeMaxCols)
    throw Error(columns + std::string(" is ") + std::to_string(cols) + "; it must be from 1 to " +
                std::to_string(kCodeMaxCols));
  const bool power = group >= 32 && (group & (group - 1)) == 0;
  if (bits == 4 ? !power : group != 0)
    throw Error("group is " + std::to_string(group) + "; it must be a power of two of at least 32 with 4 bits, and " +
                "absent with 8");
  rows_.cols = static_cast<std::size_t>(cols);
  rows_.bits = static_cast<int>(bits);
  rows_.group = bits == 4 ? static_cast<std::size_t>(group) : 32;
  rows_.code_stride = rows_.step_stride = rows_.row_bytes() + (bits == 4 ? rows_.groups() : 0);
  const auto width = static_cast<std::int64_t>(rows_.code_stride);
  if (codes.type != kUint8 || codes.shape.size() != 2 || codes.shape[0] < 1 || codes.shape[1] != width)
    throw Error("table has shape " + shown(codes.shape) + "; it must be uint8 of " + std::to_string(width) +
                " columns");
  if (scales.type != kFloat || scales.shape != Shape{codes.shape[0], 1})
    throw Error("scales has shape " + shown(scales.shape) + "; it must be float32 of shape " +
                shown({codes.shape[0], 1}));
  rows_.rows = static_cast<std::size_t>(codes.shape[0]);
}

CodeRows CodedTable::view(const Call& call) const {
  CodeRows view = rows_;
  view.codes = static_cast<const std::uint8_t*>(call.input(table_).data);
  view.steps = view.bits == 4 ? view.codes + view.row_bytes() : nullptr;
  return view;
}

namespace {

class CodedLinear : public Kernel {
 public:
  explicit CodedLinear(const Node& node) : table_(node, 1, "in_features"), biased_(node.has_input(3)) {
    if (!biased_) return;
    const Tensor bias = node.constant(3, "bias");
    const Shape wanted{static_cast<std::int64_t>(table_.rows())};
    if (bias.type != kFloat || bias.shape != wanted)
      throw Error("bias has shape " + shown(bias.shape) + "; it must be float32 of shape " + shown(wanted));
  }

  void compute(const Call& call) const override {
    const Tensor x = call.input(0);
    if (x.shape.empty() || x.shape.back() != static_cast<std::int64_t>(table_.cols()))
      throw Error("X has shape " + shown(x.shape) + "; its last dimension must be " + std::to_string(table_.cols()));
    Shape shape = x.shape;
    shape.back() = static_cast<std::int64_t>(table_.rows());
    void* y = call.output(0, shape);
    const std::size_t count = size_of(x.shape) / table_.cols();
    if (count == 0) return;
    const float* bias = biased_ ? static_cast<const float*>(call.input(3).data) : nullptr;
    const bool plain = x.type == kFloat;
    const std::size_t m = table_.rows(), n = table_.cols();
    const Aligned<float> scratch(plain ? 0 : count * (n + m));
    const float* from = plain ? static_cast<const float*>(x.data) : scratch.data();
    float* to = plain ? static_cast<float*>(y) : scratch.data() + count * n;
    if (!plain) to_float32(static_cast<const std::uint16_t*>(x.data), count * n, x.type, scratch.data());
    multiply_codes(table_.view(call), table_.scales(call), from, count, bias, to, call.executor());
    if (!plain) from_float32(to, count * m, x.type, static_cast<std::uint16_t*>(y));
  }

 private:
  CodedTable table_;
  bool biased_;
};

void infer(const Inference& inference) {
  ElementType type;
  Dimensions dimensions = inference.input(0, &type);
  const Shape rows = inference.integers("out_features");
  if (dimensions.empty() || rows.size() != 1) return;
  dimensions.back() = {rows[0], ""};
  inference.set_output(0, dimensions, type);
}

}  // namespace

Definition coded_linear(ElementType activations) {
  return {"CodedLinear",
          {{activations, kRequired}, {kUint8, kRequired}, {kFloat, kRequired}, {kFloat, kOptional}},
          {{activations, kRequired}},
          [](const Node& node) -> std::unique_ptr<Kernel> { return std::make_unique<CodedLinear>(node); },
          infer};
}

}  // namespace diba::ops
