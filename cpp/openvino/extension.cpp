// diba's operators in OpenVINO: a library of extensions for ov::Core::add_extension, which reads the same .onnx files.

#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include <map>
#include <memory>
#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/frontend/onnx/extension/conversion.hpp>
#include <openvino/op/constant.hpp>
#include <openvino/op/op.hpp>
#include <string>
#include <utility>
#include <vector>

#include "operators/operators.hpp"

namespace diba::ov_side {
namespace {

using ops::ElementType;
using ops::Error;
using ops::Shape;

ov::element::Type to_openvino(ElementType type) {
  switch (type) {
    case ops::kFloat16: return ov::element::f16;
    case ops::kBfloat16: return ov::element::bf16;
    default: return ov::element::f32;
  }
}

ElementType from_openvino(const ov::element::Type& type) {
  const std::map<ov::element::Type_t, ElementType> known = {
      {ov::element::f32, ops::kFloat}, {ov::element::f16, ops::kFloat16}, {ov::element::bf16, ops::kBfloat16},
      {ov::element::u8, ops::kUint8},  {ov::element::i32, ops::kInt32},   {ov::element::i64, ops::kInt64}};
  const auto found = known.find(type);
  return found == known.end() ? ops::kUndefined : found->second;
}

// The attributes of a node: integers, lists of them, and text.
struct Attributes {
  std::map<std::string, Shape> integers;
  std::string precision = "fast";

  Shape get(const char* name) const {
    const auto found = integers.find(name);
    return found == integers.end() ? Shape{} : found->second;
  }
};

class Node : public ops::Node {
 public:
  Node(const ov::Node& node, const Attributes& attributes) : node_(node), attributes_(attributes) {}

  Shape integers(const char* name) const override { return attributes_.get(name); }
  std::string text(const char* name, const std::string& otherwise) const override {
    return std::string(name) == "precision" ? attributes_.precision : otherwise;
  }
  bool has_input(std::size_t i) const override { return i < node_.get_input_size(); }
  ops::Tensor constant(std::size_t i, const char* what) const override {
    const auto* value = ov::as_type<const ov::op::v0::Constant>(node_.get_input_node_ptr(i));
    if (value == nullptr) throw Error(std::string("input ") + what + " must be an initializer of the model");
    const ov::Shape& shape = value->get_shape();
    return {Shape(shape.begin(), shape.end()), from_openvino(value->get_element_type()),
            const_cast<void*>(value->get_data_ptr())};
  }

 private:
  const ov::Node& node_;
  const Attributes& attributes_;
};

class Call : public ops::Call {
 public:
  Call(ov::TensorVector& outputs, const ov::TensorVector& inputs) : outputs_(outputs), inputs_(inputs) {}

  ops::Tensor input(std::size_t i) const override {
    const ov::Tensor& tensor = inputs_[i];
    const ov::Shape& shape = tensor.get_shape();
    return {Shape(shape.begin(), shape.end()), from_openvino(tensor.get_element_type()),
            const_cast<void*>(static_cast<const void*>(tensor.data()))};
  }
  void* output(std::size_t i, const Shape& shape) const override {
    outputs_[i].set_shape(ov::Shape(shape.begin(), shape.end()));
    return outputs_[i].data();
  }
  Executor executor() const override { return {tbb::this_task_arena::max_concurrency(), run, nullptr}; }

 private:
  static void run(void* /*pool*/, const Stage* stages, std::size_t stage_count, int threads) {
    for (std::size_t s = 0; s < stage_count; ++s) {
      const std::size_t pieces = ops::pieces_of(stages[s], threads);
      tbb::parallel_for(std::size_t{0}, pieces, [&](std::size_t p) { ops::run_piece(stages[s], p, pieces); });
    }
  }

  ov::TensorVector& outputs_;
  const ov::TensorVector& inputs_;
};

// One class for all operators: what it is, is in its definition.
class Operation : public ov::op::Op {
 public:
  OPENVINO_OP("Operation", "diba");

  Operation() = default;
  Operation(const ov::OutputVector& inputs, ops::Definition definition, Attributes attributes,
            std::shared_ptr<const ops::Kernel> kernel)
      : Op(inputs), definition_(std::move(definition)), attributes_(std::move(attributes)), kernel_(std::move(kernel)) {
    constructor_validate_and_infer_types();
  }

  void validate_and_infer_types() override;

  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return std::make_shared<Operation>(inputs, definition_, attributes_, kernel_);
  }
  bool visit_attributes(ov::AttributeVisitor& visitor) override {
    for (auto& [name, values] : attributes_.integers) visitor.on_attribute(name, values);
    visitor.on_attribute("precision", attributes_.precision);
    return true;
  }
  bool has_evaluate() const override { return true; }
  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    try {
      kernel_->compute(Call(outputs, inputs));
    } catch (const std::exception& e) {
      OPENVINO_THROW("diba::", definition_.name, " '", get_friendly_name(), "': ", e.what());
    }
    return true;
  }

  const Attributes& attributes() const { return attributes_; }

 private:
  ops::Definition definition_{};
  Attributes attributes_;
  std::shared_ptr<const ops::Kernel> kernel_;  // the copies of a node share it
};

class Inference : public ops::Inference {
 public:
  explicit Inference(Operation& operation) : operation_(operation) {}

  ops::Dimensions input(std::size_t i, ElementType* type) const override {
    *type = from_openvino(operation_.get_input_element_type(i));
    const ov::PartialShape& shape = operation_.get_input_partial_shape(i);
    ops::Dimensions dimensions;
    if (shape.rank().is_dynamic()) return dimensions;
    for (const ov::Dimension& d : shape) dimensions.push_back({d.is_static() ? d.get_length() : -1, ""});
    return dimensions;
  }
  Shape integers(const char* name) const override { return operation_.attributes().get(name); }
  void set_output(std::size_t i, const ops::Dimensions& dimensions, ElementType type) const override {
    std::vector<ov::Dimension> shape;
    for (const ops::Dimension& d : dimensions) shape.push_back(d.value < 0 ? ov::Dimension() : ov::Dimension(d.value));
    operation_.set_output_type(i, to_openvino(type), ov::PartialShape(shape));
  }

 private:
  Operation& operation_;
};

void Operation::validate_and_infer_types() {
  try {
    if (kernel_ == nullptr) kernel_ = definition_.create(ov_side::Node(*this, attributes_));
    const std::size_t parts = attributes_.get("out_features").size();
    for (std::size_t i = 0; i < std::max<std::size_t>(parts, 1); ++i)
      set_output_type(i, to_openvino(from_openvino(get_input_element_type(0))), ov::PartialShape::dynamic());
    definition_.infer(Inference(*this));
  } catch (const std::exception& e) {
    OPENVINO_THROW("diba::", definition_.name, " '", get_friendly_name(), "': ", e.what());
  }
}

// A node of an ONNX file.
ov::OutputVector convert(const ov::frontend::NodeContext& context, const std::string& name) {
  Attributes attributes;
  for (const char* list : {"out_features", "kernel_shape", "strides", "pads", "dilations"}) {
    const auto values = context.get_attribute<std::vector<std::int64_t>>(list, {});
    if (!values.empty()) attributes.integers[list] = values;
  }
  for (const char* number : {"embedding_dim", "bits", "out_channels", "in_features", "group", "activation_bits"}) {
    const auto value = context.get_attribute<std::int64_t>(number, -1);
    if (value >= 0) attributes.integers[number] = {value};
  }
  attributes.precision = context.get_attribute<std::string>("precision", "fast");
  ov::OutputVector inputs;
  for (int i = 0; i < static_cast<int>(context.get_input_size()); ++i) inputs.push_back(context.get_input(i));
  const ElementType type = from_openvino(inputs.at(0).get_element_type());
  for (const ops::Definition& definition : ops::definitions())
    if (definition.name == name && definition.inputs[0].type == type)
      return std::make_shared<Operation>(inputs, definition, attributes, nullptr)->outputs();
  OPENVINO_THROW("diba::", name, ": its first input cannot be ", inputs[0].get_element_type());
}

std::vector<ov::Extension::Ptr> extensions() {
  std::vector<ov::Extension::Ptr> all;
  for (const std::string name : {"Linear", "CodedLinear", "BitLinear", "Embedding", "Conv", "BitConv"})
    all.push_back(std::make_shared<ov::frontend::onnx::ConversionExtension>(
        name, "diba", [name](const ov::frontend::NodeContext& context) { return convert(context, name); }));
  return all;
}

}  // namespace
}  // namespace diba::ov_side

OPENVINO_CREATE_EXTENSIONS(diba::ov_side::extensions())
