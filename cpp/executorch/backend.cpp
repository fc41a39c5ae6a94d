// diba's operators in ExecuTorch: a backend, to which diba.executorch.export delegates every compressed layer. A
// delegate is one operator; what it is, stands in its description (diba.executorch.lowering), its constants are named
// data.

#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/core/exec_aten/util/dim_order_util.h>
#include <executorch/runtime/core/exec_aten/util/tensor_util.h>
#include <executorch/runtime/kernel/thread_parallel_interface.h>
#include <executorch/runtime/platform/log.h>

#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "operators/operators.hpp"

namespace diba::et {
namespace {

namespace runtime = ::executorch::runtime;
using ::executorch::aten::ScalarType;
using ops::ElementType;
using ops::Error;
using ops::Shape;

ElementType from_executorch(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return ops::kFloat;
    case ScalarType::Half: return ops::kFloat16;
    case ScalarType::BFloat16: return ops::kBfloat16;
    case ScalarType::Byte: return ops::kUint8;
    case ScalarType::Int: return ops::kInt32;
    case ScalarType::Long: return ops::kInt64;
    default: return ops::kUndefined;
  }
}

// ---- the description of a delegate: a line "diba 1", then lines of a word and what it names

struct Constant {
  ElementType type;
  Shape shape;
  std::string key;
};

struct Description {
  std::string op, name;  // of the operator, and of the layer
  std::map<std::string, Shape> integers;
  std::map<std::string, std::string> texts;
  std::vector<Constant> constants;
};

Shape read_integers(std::istringstream& from) {
  Shape values;
  for (std::int64_t value; from >> value;) values.push_back(value);
  return values;
}

Constant read_constant(std::istringstream& from) {
  std::string type, key;
  from >> type >> key;
  Constant constant{type == "float32" ? ops::kFloat : ops::kUint8, read_integers(from), key};
  if (type != "float32" && type != "uint8") throw Error("constant " + key + " has type " + type);
  for (const std::int64_t size : constant.shape)
    if (size < 0) throw Error("constant " + key + " has shape " + ops::shown(constant.shape));
  return constant;
}

// Into `made`, whose name is known even where the rest cannot be read.
void describe(const void* data, std::size_t bytes, Description& made) {
  std::istringstream lines(std::string(static_cast<const char*>(data), bytes));
  std::string line;
  if (!std::getline(lines, line) || line != "diba 1")
    throw Error("the program was exported for another version of this library");
  while (std::getline(lines, line)) {
    std::istringstream words(line);
    std::string what, name;
    words >> what >> std::ws;
    if (what == "operator") {
      words >> made.op;
    } else if (what == "layer") {
      std::getline(words, made.name);
    } else if (what == "integers") {
      words >> name;
      made.integers[name] = read_integers(words);
    } else if (what == "text") {
      words >> name;
      words >> made.texts[name];
    } else if (what == "constant") {
      made.constants.push_back(read_constant(words));
    } else {
      throw Error("its description has the line '" + line + "'");
    }
  }
}

// ---- what the operators see

class Node : public ops::Node {
 public:
  Node(const Description& description, const std::vector<ops::Tensor>& constants)
      : description_(description), constants_(constants) {}

  Shape integers(const char* name) const override {
    const auto found = description_.integers.find(name);
    return found == description_.integers.end() ? Shape{} : found->second;
  }
  std::string text(const char* name, const std::string& otherwise) const override {
    const auto found = description_.texts.find(name);
    return found == description_.texts.end() ? otherwise : found->second;
  }
  bool has_input(std::size_t i) const override { return i <= constants_.size(); }
  ops::Tensor constant(std::size_t i, const char* what) const override {
    if (i < 1 || i > constants_.size()) throw Error(std::string("constant ") + what + " is missing");
    return constants_[i - 1];
  }

 private:
  const Description& description_;
  const std::vector<ops::Tensor>& constants_;
};

void run(void* /*pool*/, const Stage* stages, std::size_t stage_count, int threads) {
  for (std::size_t s = 0; s < stage_count; ++s) {
    const Stage& stage = stages[s];
    const std::size_t pieces = ops::pieces_of(stage, threads);
    const bool done = ::executorch::extension::parallel_for(
        0, static_cast<std::int64_t>(pieces), 1, [&](std::int64_t begin, std::int64_t end) {
          for (std::int64_t p = begin; p < end; ++p) ops::run_piece(stage, static_cast<std::size_t>(p), pieces);
        });
    if (!done) throw Error("the runtime's threads did not run it");
  }
}

class Call : public ops::Call {
 public:
  Call(const ::executorch::aten::Tensor& x, ::executorch::aten::Tensor& y, ElementType type,
       const std::vector<ops::Tensor>& constants)
      : x_(x), y_(y), type_(type), constants_(constants) {}

  ops::Tensor input(std::size_t i) const override {
    if (i > 0) return constants_[i - 1];
    return {Shape(x_.sizes().begin(), x_.sizes().end()), from_executorch(x_.scalar_type()),
            const_cast<void*>(x_.const_data_ptr())};
  }
  void* output(std::size_t /*i*/, const Shape& shape) const override {
    const std::vector<::executorch::aten::SizesType> sizes(shape.begin(), shape.end());
    if (runtime::resize_tensor(y_, {sizes.data(), sizes.size()}) != runtime::Error::Ok)
      throw Error("the result has shape " + ops::shown(shape) + ", which is more than the program was exported for");
    if (from_executorch(y_.scalar_type()) != type_) throw Error("the result has another type than the program's");
    return y_.mutable_data_ptr();
  }
  Executor executor() const override {
    return {static_cast<int>(::executorch::extension::get_thread_count()), run, nullptr};
  }

 private:
  const ::executorch::aten::Tensor& x_;
  ::executorch::aten::Tensor& y_;
  ElementType type_;
  const std::vector<ops::Tensor>& constants_;
};

// ---- a delegate while a program is loaded

struct Prepared {
  Description description;
  std::vector<runtime::FreeableBuffer> buffers;
  std::vector<ops::Tensor> constants;
  std::vector<std::pair<ElementType, ElementType>> types;  // of the input, and of the output for it
  std::unique_ptr<const ops::Kernel> kernel;

  std::string where() const { return "diba::" + description.op + " '" + description.name + "'"; }
};

void read_constants(Prepared& prepared, const runtime::NamedDataMap* data) {
  for (const Constant& constant : prepared.description.constants) {
    if (data == nullptr) throw Error("the runtime has no named data");
    auto found = data->get_data(constant.key);
    if (!found.ok()) throw Error("the program has no data named " + constant.key);
    const std::size_t bytes = ops::size_of(constant.shape) * (constant.type == ops::kFloat ? sizeof(float) : 1);
    if (found->size() != bytes)
      throw Error("data " + constant.key + " has " + std::to_string(found->size()) + " bytes; it must have " +
                  std::to_string(bytes));
    if (reinterpret_cast<std::uintptr_t>(found->data()) % alignof(float) != 0)
      throw Error("data " + constant.key + " does not begin at a multiple of 4 bytes in memory");
    prepared.constants.push_back({constant.shape, constant.type, const_cast<void*>(found->data())});
    prepared.buffers.push_back(std::move(*found));
  }
}

void make_kernel(Prepared& prepared) {
  for (const ops::Definition& definition : ops::definitions()) {
    if (definition.name != prepared.description.op) continue;
    prepared.types.emplace_back(definition.inputs[0].type, definition.outputs[0].type);
    if (prepared.kernel == nullptr) prepared.kernel = definition.create(Node(prepared.description, prepared.constants));
  }
  if (prepared.kernel == nullptr) throw Error("this library has no such operator");
}

void compute(const Prepared& prepared, runtime::Span<runtime::EValue*> args) {
  std::vector<::executorch::aten::Tensor*> tensors;  // the others are sizes
  for (runtime::EValue* arg : args)
    if (arg->isTensor()) tensors.push_back(&arg->toTensor());
  if (tensors.size() != 2) throw Error("it has " + std::to_string(tensors.size()) + " tensors; it must have 2");
  const ::executorch::aten::Tensor& x = *tensors[0];
  if (!runtime::is_contiguous_dim_order(x.dim_order().data(), x.dim_order().size()))
    throw Error("the order of its input's dimensions in memory is not theirs");
  for (const auto& [from, to] : prepared.types)
    if (from == from_executorch(x.scalar_type()))
      return prepared.kernel->compute(Call(x, *tensors[1], to, prepared.constants));
  throw Error("its input has a type that it does not take");
}

// Calls fn; what it throws is shown in the runtime's log.
template <class F>
runtime::Error guarded(const Prepared& prepared, runtime::Error error, const F& fn) {
  try {
    fn();
    return runtime::Error::Ok;
  } catch (const std::exception& e) {
    ET_LOG(Error, "%s: %s", prepared.where().c_str(), e.what());
  }
  return error;
}

class Backend final : public runtime::BackendInterface {
 public:
  bool is_available() const override { return true; }

  runtime::Result<runtime::DelegateHandle*> init(runtime::BackendInitContext& context,
                                                 runtime::FreeableBuffer* processed,
                                                 runtime::ArrayRef<runtime::CompileSpec> /*specs*/) const override {
    auto prepared = std::make_unique<Prepared>();
    const runtime::Error error = guarded(*prepared, runtime::Error::DelegateInvalidCompatibility, [&] {
      describe(processed->data(), processed->size(), prepared->description);
      read_constants(*prepared, context.get_named_data_map());
      make_kernel(*prepared);
    });
    processed->Free();
    if (error != runtime::Error::Ok) return error;
    return prepared.release();
  }

  runtime::Error execute(runtime::BackendExecutionContext& /*context*/, runtime::DelegateHandle* handle,
                         runtime::Span<runtime::EValue*> args) const override {
    const auto& prepared = *static_cast<const Prepared*>(handle);
    return guarded(prepared, runtime::Error::InvalidArgument, [&] { compute(prepared, args); });
  }

  void destroy(runtime::DelegateHandle* handle) const override { delete static_cast<Prepared*>(handle); }
};

Backend backend;
[[maybe_unused]] const runtime::Error registered = runtime::register_backend({"DibaBackend", &backend});

}  // namespace
}  // namespace diba::et
