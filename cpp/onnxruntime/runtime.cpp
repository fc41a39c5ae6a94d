#include "runtime.hpp"

#include <algorithm>
#include <chrono>
#include <exception>
#include <memory>
#include <thread>

namespace diba::ort {
namespace {

struct ReleaseShape {
  const Functions& functions;
  void operator()(ShapeInfo* info) const { functions.ReleaseTensorTypeAndShapeInfo(info); }
};
using OwnedShape = std::unique_ptr<ShapeInfo, ReleaseShape>;

Shape dimensions(const Functions& f, const ShapeInfo* info) {
  std::size_t count = 0;
  check(f, f.GetDimensionsCount(info, &count));
  Shape shape(count);
  if (count > 0) check(f, f.GetDimensions(info, shape.data(), count));
  return shape;
}

Tensor tensor(const Functions& f, const Value* value) {
  ShapeInfo* raw = nullptr;
  check(f, f.GetTensorTypeAndShape(value, &raw));
  const OwnedShape info(raw, ReleaseShape{f});
  Tensor t{dimensions(f, raw), ops::kUndefined, nullptr};
  check(f, f.GetTensorElementType(raw, &t.type));
  check(f, f.GetTensorMutableData(const_cast<Value*>(value), &t.data));
  return t;
}

// The runtime answers a question for something that a node does not have with an error.
bool succeeded(const Functions& f, Status* status) {
  if (status == nullptr) return true;
  f.ReleaseStatus(status);
  return false;
}

}  // namespace

void check(const Functions& functions, Status* status) {
  if (status == nullptr) return;
  const std::string message = functions.GetErrorMessage(status);
  functions.ReleaseStatus(status);
  throw Error(message);
}

// ---- threads

int ThreadCount::get(const Functions& functions, KernelContext* context) {
  constexpr int kMostAttempts = 32;
  constexpr std::size_t kMost = 64;
  constexpr auto kPatience = std::chrono::microseconds(200);
  const int known = known_.load(std::memory_order_relaxed);
  const int attempt = attempts_.fetch_add(1, std::memory_order_relaxed);
  // A thread of a busy machine may come too late, so one answer of "alone" is not believed.
  if (attempt >= kMostAttempts || known > 1 || (attempt & (attempt - 1)) != 0) return std::max(known, 1);
  const std::size_t processors = std::min<std::size_t>(kMost, std::thread::hardware_concurrency());
  if (processors <= 1) return 1;
  struct Roll {
    std::size_t wanted;
    std::chrono::steady_clock::time_point end;
    std::atomic<std::size_t> present{0};
  } roll{processors, std::chrono::steady_clock::now() + kPatience, {}};
  // Whoever comes waits for the others: a thread that takes a second turn finds the time over.
  const auto come = [](void* data, std::size_t /*i*/) {
    auto* r = static_cast<Roll*>(data);
    if (std::chrono::steady_clock::now() >= r->end) return;
    ++r->present;
    while (r->present < r->wanted && std::chrono::steady_clock::now() < r->end) std::this_thread::yield();
  };
  check(functions, functions.KernelContext_ParallelFor(context, come, processors, 0, &roll));
  const int found = std::max(1, static_cast<int>(roll.present.load()));
  known_.store(std::max(known, found), std::memory_order_relaxed);
  return std::max(known, found);
}

void Call::run(void* call, const Stage* stages, std::size_t stage_count, int threads) {
  const auto* self = static_cast<const Call*>(call);
  struct Work {
    const Stage* stage;
    std::size_t pieces;
    std::atomic<bool> failed{false};
    std::exception_ptr failure;
  };
  const auto piece = [](void* data, std::size_t p) {
    auto* work = static_cast<Work*>(data);
    try {
      ops::run_piece(*work->stage, p, work->pieces);
    } catch (...) {
      if (!work->failed.exchange(true)) work->failure = std::current_exception();
    }
  };
  for (std::size_t s = 0; s < stage_count; ++s) {
    Work work{stages + s, ops::pieces_of(stages[s], threads), {}, {}};
    if (work.pieces <= 1) {
      ops::run_piece(stages[s], 0, 1);
      continue;
    }
    const Functions& f = self->functions_;
    check(f, f.KernelContext_ParallelFor(self->context_, piece, work.pieces, 0, &work));
    if (work.failed) std::rethrow_exception(work.failure);
  }
}

// ---- nodes

std::string Node::name() const {
  std::size_t size = 0;
  if (!succeeded(functions_, functions_.KernelInfo_GetNodeName(info_, nullptr, &size)) || size == 0) return "";
  std::string name(size, '\0');
  check(functions_, functions_.KernelInfo_GetNodeName(info_, name.data(), &size));
  name.resize(size - 1);
  return name;
}

std::int64_t Node::integer(const char* attribute) const {
  std::int64_t value = 0;
  check(functions_, functions_.KernelInfoGetAttribute_int64(info_, attribute, &value));
  return value;
}

std::int64_t Node::integer(const char* attribute, std::int64_t otherwise) const {
  std::int64_t value = 0;
  return succeeded(functions_, functions_.KernelInfoGetAttribute_int64(info_, attribute, &value)) ? value : otherwise;
}

Shape Node::integers(const char* attribute) const {
  std::size_t count = 0;
  if (!succeeded(functions_, functions_.KernelInfoGetAttributeArray_int64(info_, attribute, nullptr, &count)))
    throw Error(std::string("attribute ") + attribute + " is missing");
  Shape values(count);
  if (count > 0)
    check(functions_, functions_.KernelInfoGetAttributeArray_int64(info_, attribute, values.data(), &count));
  return values;
}

std::string Node::text(const char* attribute, const std::string& otherwise) const {
  std::size_t size = 0;
  if (!succeeded(functions_, functions_.KernelInfoGetAttribute_string(info_, attribute, nullptr, &size)))
    return otherwise;
  std::string value(size, '\0');
  check(functions_, functions_.KernelInfoGetAttribute_string(info_, attribute, value.data(), &size));
  value.resize(size - 1);
  return value;
}

bool Node::has_input(std::size_t i) const {
  std::size_t count = 0;
  check(functions_, functions_.KernelInfo_GetInputCount(info_, &count));
  return i < count;
}

Tensor Node::constant(std::size_t i, const char* what) const {
  int constant = 0;
  const Value* value = nullptr;
  if (!succeeded(functions_, functions_.KernelInfoGetConstantInput_tensor(info_, i, &constant, &value)) ||
      constant == 0 || value == nullptr)
    throw Error(std::string("input ") + what + " must be an initializer of the model");
  return tensor(functions_, value);
}

// ---- calls

Tensor Call::input(std::size_t i) const {
  const Value* value = nullptr;
  check(functions_, functions_.KernelContext_GetInput(context_, i, &value));
  return tensor(functions_, value);
}

void* Call::output(std::size_t i, const Shape& shape) const {
  Value* value = nullptr;
  check(functions_, functions_.KernelContext_GetOutput(context_, i, shape.data(), shape.size(), &value));
  if (value == nullptr) throw Error("an output of the node is missing");
  void* data = nullptr;
  check(functions_, functions_.GetTensorMutableData(value, &data));
  return data;
}

Executor Call::executor() const { return {threads_.get(functions_, context_), run, const_cast<Call*>(this)}; }

// ---- shapes

Dimensions Inference::input(std::size_t i, ElementType* type) const {
  ShapeInfo* info = nullptr;  // the context keeps it
  check(functions_, functions_.ShapeInferContext_GetInputTypeShape(context_, i, &info));
  check(functions_, functions_.GetTensorElementType(info, type));
  const Shape values = dimensions(functions_, info);
  std::vector<const char*> names(values.size());
  if (!values.empty()) check(functions_, functions_.GetSymbolicDimensions(info, names.data(), names.size()));
  Dimensions result;
  for (std::size_t d = 0; d < values.size(); ++d) result.push_back({values[d], names[d] == nullptr ? "" : names[d]});
  return result;
}

Shape Inference::integers(const char* attribute) const {
  const Attribute* found = nullptr;
  if (!succeeded(functions_, functions_.ShapeInferContext_GetAttribute(context_, attribute, &found)) ||
      found == nullptr)
    return {};
  std::size_t bytes = 0;
  std::int64_t one = 0;
  if (succeeded(functions_, functions_.ReadOpAttr(found, kInt, &one, sizeof one, &bytes))) return {one};
  // With too little room the runtime states how much it needs, as an error.
  succeeded(functions_, functions_.ReadOpAttr(found, kInts, nullptr, 0, &bytes));
  Shape values(bytes / sizeof(std::int64_t));
  if (!values.empty()) check(functions_, functions_.ReadOpAttr(found, kInts, values.data(), bytes, &bytes));
  return values;
}

void Inference::set_output(std::size_t i, const Dimensions& dims, ElementType type) const {
  if (std::any_of(dims.begin(), dims.end(), [](const ops::Dimension& d) { return d.value < 0 && d.name.empty(); }))
    return;
  ShapeInfo* raw = nullptr;
  check(functions_, functions_.CreateTensorTypeAndShapeInfo(&raw));
  const OwnedShape info(raw, ReleaseShape{functions_});
  Shape values;
  std::vector<const char*> names;
  for (const ops::Dimension& d : dims) {
    values.push_back(d.value);
    names.push_back(d.name.c_str());
  }
  check(functions_, functions_.SetTensorElementType(raw, type));
  check(functions_, functions_.SetDimensions(raw, values.data(), values.size()));
  if (!names.empty()) check(functions_, functions_.SetSymbolicDimensions(raw, names.data(), names.size()));
  check(functions_, functions_.ShapeInferContext_SetOutputTypeShape(context_, i, raw));
}

}  // namespace diba::ort
