// What an operator sees of onnxruntime: its node when a session is made, its tensors and threads when it runs.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "abi.hpp"
#include "runtime/parallel.hpp"

namespace diba::ort {

// Anything that is wrong with a model or with the inputs of a call; the runtime shows what().
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

using Shape = std::vector<std::int64_t>;

std::string shown(const Shape& shape);

// The number of elements.
std::size_t size_of(const Shape& shape);

// Throws Error if the call did not succeed.
void check(const Functions& functions, Status* status);

struct Tensor {
  Shape shape;
  ElementType type;
  void* data;
};

// How many threads the runtime has for an operator. Its interface does not say, so some of the first calls find out, by
// asking for many and waiting a moment for those that come.
class ThreadCount {
 public:
  int get(const Functions& functions, KernelContext* context);

 private:
  static constexpr int kUnknown = 0;
  std::atomic<int> known_{kUnknown};
  std::atomic<int> attempts_{0};
};

// A node of a model, while a session is made.
class Node {
 public:
  Node(const Functions& functions, const KernelInfo* info) : functions_(functions), info_(info) {}

  std::string name() const;
  std::int64_t integer(const char* attribute) const;
  std::int64_t integer(const char* attribute, std::int64_t otherwise) const;
  Shape integers(const char* attribute) const;
  std::string text(const char* attribute, const std::string& otherwise) const;
  bool has_input(std::size_t i) const;
  // An initializer of the model. `what` names it in messages.
  Tensor constant(std::size_t i, const char* what) const;

 private:
  const Functions& functions_;
  const KernelInfo* info_;
};

// One call.
class Call {
 public:
  Call(const Functions& functions, KernelContext* context, ThreadCount& threads)
      : functions_(functions), context_(context), threads_(threads) {}

  Tensor input(std::size_t i) const;
  void* output(std::size_t i, const Shape& shape) const;
  // The runtime's own threads.
  Executor executor() const;

 private:
  static void run(void* call, const Stage* stages, std::size_t stage_count, int threads);

  const Functions& functions_;
  KernelContext* context_;
  ThreadCount& threads_;
};

// Shapes as the runtime infers them before it runs: a dimension is a number, or has a name.
class Inference {
 public:
  struct Dimension {
    std::int64_t value;  // -1: unknown
    std::string name;
  };
  using Dimensions = std::vector<Dimension>;
  // Whether each has a value or a name: the runtime takes no others for an output.
  static bool complete(const Dimensions& dimensions);

  Inference(const Functions& functions, ShapeContext* context) : functions_(functions), context_(context) {}

  Dimensions input(std::size_t i, ElementType* type) const;
  Shape integers(const char* attribute) const;
  void set_output(std::size_t i, const Dimensions& dimensions, ElementType type) const;

 private:
  const Functions& functions_;
  ShapeContext* context_;
};

}  // namespace diba::ort
