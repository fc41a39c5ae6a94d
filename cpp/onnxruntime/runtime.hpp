// Nodes, calls and shapes as onnxruntime has them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "abi.hpp"
#include "operators/operators.hpp"

namespace diba::ort {

using ops::Dimensions;
using ops::Error;
using ops::Shape;
using ops::Tensor;

// Throws Error if the call did not succeed.
void check(const Functions& functions, Status* status);

// How many threads the runtime has for an operator. Its interface does not say, so some of the first calls find out, by
// asking for many and waiting a moment for those that come.
class ThreadCount {
 public:
  int get(const Functions& functions, KernelContext* context);

 private:
  std::atomic<int> known_{0};
  std::atomic<int> attempts_{0};
};

class Node : public ops::Node {
 public:
  Node(const Functions& functions, const KernelInfo* info) : functions_(functions), info_(info) {}

  std::string name() const;
  std::int64_t integer(const char* attribute) const override;
  std::int64_t integer(const char* attribute, std::int64_t otherwise) const override;
  Shape integers(const char* attribute) const override;
  std::string text(const char* attribute, const std::string& otherwise) const override;
  bool has_input(std::size_t i) const override;
  Tensor constant(std::size_t i, const char* what) const override;

 private:
  const Functions& functions_;
  const KernelInfo* info_;
};

class Call : public ops::Call {
 public:
  Call(const Functions& functions, KernelContext* context, ThreadCount& threads)
      : functions_(functions), context_(context), threads_(threads) {}

  Tensor input(std::size_t i) const override;
  void* output(std::size_t i, const Shape& shape) const override;
  Executor executor() const override;

 private:
  static void run(void* call, const Stage* stages, std::size_t stage_count, int threads);

  const Functions& functions_;
  KernelContext* context_;
  ThreadCount& threads_;
};

class Inference : public ops::Inference {
 public:
  Inference(const Functions& functions, ShapeContext* context) : functions_(functions), context_(context) {}

  Dimensions input(std::size_t i, ElementType* type) const override;
  Shape integers(const char* attribute) const override;
  // Nothing where a dimension is neither known nor named: the runtime has no word for it.
  void set_output(std::size_t i, const Dimensions& dimensions, ElementType type) const override;

 private:
  const Functions& functions_;
  ShapeContext* context_;
};

}  // namespace diba::ort
