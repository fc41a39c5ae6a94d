// The operators, each in a file of its own, and what makes one of them an OrtCustomOp.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "abi.hpp"
#include "runtime.hpp"

namespace diba::ort {

// What a node is at run time. Any number of threads may run it at once.
class Kernel {
 public:
  Kernel() = default;
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;
  virtual ~Kernel() = default;
  virtual void compute(const Call& call) const = 0;
};

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

// Activations of one of the types that the operators take.
constexpr std::array<ElementType, 3> kActivations = {kFloat, kFloat16, kBfloat16};

// X (..., n), factors, bias (m) or none -> one or several Y (..., out_features[i]): rows of M x + bias.
Definition linear(ElementType activations);

// ids (...), table, scales or none -> Y (..., embedding_dim): rows of a factored, an 8-bit or a 4-bit table.
Definition embedding(ElementType ids);

// X (N, C, *pixels), factors, bias (m) or none -> Y (N, m, *positions).
Definition convolution(ElementType activations);

}  // namespace diba::ort
