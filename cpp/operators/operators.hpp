// The operators that inference runtimes run: what they do, without a word of any runtime.
//
// A runtime shows a node of a model as a Node, a call of it as a Call, and shapes that it infers as an Inference;
// cpp/onnxruntime and cpp/openvino do.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/parallel.hpp"

namespace diba::ops {

// Anything that is wrong with a model or with the inputs of a call; the runtime shows what().
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// TensorProto.DataType of ONNX
enum ElementType : int {
  kUndefined = 0,
  kFloat = 1,
  kUint8 = 2,
  kInt32 = 6,
  kInt64 = 7,
  kFloat16 = 10,
  kBfloat16 = 16,
};

using Shape = std::vector<std::int64_t>;

inline std::string shown(const Shape& shape) {
  std::string text = "(";
  for (const std::int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + ")";
}

// The number of elements.
inline std::size_t size_of(const Shape& shape) {
  std::size_t size = 1;
  for (const std::int64_t n : shape) size *= static_cast<std::size_t>(n);
  return size;
}

struct Tensor {
  Shape shape;
  ElementType type;
  void* data;
};

// A stage cut into pieces for a runtime's own threads: more than threads, as not all of them may be free.
inline std::size_t pieces_of(const Stage& stage, int threads) {
  const std::size_t most = 2 * static_cast<std::size_t>(threads);
  return stage.count < most ? stage.count : most;
}
inline void run_piece(const Stage& stage, std::size_t piece, std::size_t pieces) {
  for (std::size_t i = stage.count * piece / pieces; i < stage.count * (piece + 1) / pieces; ++i) stage.fn(i);
}

// A node, when the model is loaded.
class Node {
 public:
  virtual ~Node() = default;
  // An attribute. Throws Error if there is none, or returns `otherwise`. Where a runtime does not tell a number from a
  // list, a number is a list of one.
  virtual std::int64_t integer(const char* attribute) const {
    const Shape values = integers(attribute);
    if (values.size() != 1) throw Error(std::string("attribute ") + attribute + " is missing");
    return values[0];
  }
  virtual std::int64_t integer(const char* attribute, std::int64_t otherwise) const {
    return integers(attribute).size() == 1 ? integer(attribute) : otherwise;
  }
  virtual Shape integers(const char* attribute) const = 0;
  virtual std::string text(const char* attribute, const std::string& otherwise) const = 0;
  virtual bool has_input(std::size_t i) const = 0;
  // An initializer of the model; it stays where it is. `what` names it in messages.
  virtual Tensor constant(std::size_t i, const char* what) const = 0;
};

// One call of a node.
class Call {
 public:
  virtual ~Call() = default;
  virtual Tensor input(std::size_t i) const = 0;
  virtual void* output(std::size_t i, const Shape& shape) const = 0;
  // The runtime's own threads.
  virtual Executor executor() const = 0;
};

// A dimension before the model runs: a number, or unknown (-1), perhaps with a name.
struct Dimension {
  std::int64_t value;
  std::string name;
};
using Dimensions = std::vector<Dimension>;

class Inference {
 public:
  virtual ~Inference() = default;
  virtual Dimensions input(std::size_t i, ElementType* type) const = 0;
  // Empty if there is no such attribute.
  virtual Shape integers(const char* attribute) const = 0;
  virtual void set_output(std::size_t i, const Dimensions& dimensions, ElementType type) const = 0;
};

// What a node is at run time. Any number of threads may run it at once.
class Kernel {
 public:
  Kernel() = default;
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;
  virtual ~Kernel() = default;
  virtual void compute(const Call& call) const = 0;
};

enum Presence : int { kRequired = 0, kOptional = 1, kVariadic = 2 };

struct Port {
  ElementType type;
  Presence presence;
};

struct Definition {
  const char* name;
  std::vector<Port> inputs, outputs;
  std::unique_ptr<Kernel> (*create)(const Node& node);
  void (*infer)(const Inference& inference);
};

// X (..., n), factors, bias (m) or none -> one or several Y (..., out_features[i]): rows of M x + bias.
Definition linear(ElementType activations);

// X (..., n), table, scales, bias (m) or none -> Y (..., m): rows of M x + bias, M in 8 or 4 bits (coded.hpp).
Definition coded_linear(ElementType activations);

// ids (...), table, scales or none -> Y (..., embedding_dim): rows of a factored, an 8-bit or a 4-bit table.
Definition embedding(ElementType ids);

// X (N, C, *pixels), factors, bias (m) or none -> Y (N, m, *positions).
Definition convolution(ElementType activations);

// The same of inputs and weights of one or two bits: X, planes, scales, bias or none (bit_weights.hpp).
Definition bit_linear(ElementType activations);
Definition bit_convolution(ElementType activations);

// Each for all types that it takes. A name may come more than once.
inline std::vector<Definition> definitions() {
  std::vector<Definition> all = {embedding(kInt64), embedding(kInt32)};
  for (const ElementType type : {kFloat, kFloat16, kBfloat16}) {
    all.push_back(linear(type));
    all.push_back(coded_linear(type));
    all.push_back(convolution(type));
    all.push_back(bit_linear(type));
    all.push_back(bit_convolution(type));
  }
  return all;
}

}  // namespace diba::ops
