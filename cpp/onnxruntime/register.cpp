// The doors of the library: RegisterCustomOps, which onnxruntime calls with the options of a session to be made, and
// DibaUsePackedStore.

#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "abi.hpp"
#include "operators/operators.hpp"
#include "product/packed_store.hpp"
#include "runtime.hpp"

namespace diba::ort {
namespace {

// What the sessions made from some options share.
struct Registration;

// The runtime knows an operator by its first member.
struct Operator {
  CustomOp base;
  ops::Definition definition;
  Registration* registration;
};

struct Registration {
  explicit Registration(const Table* table) : functions(table) {}
  const Functions functions;
  ThreadCount threads;
  std::vector<std::unique_ptr<const Operator>> operators;
};

// The kernel of a node, and what its calls need.
struct Prepared {
  Registration& registration;
  std::string where;
  std::unique_ptr<const ops::Kernel> kernel;
};

const Operator& of(const CustomOp* op) { return *reinterpret_cast<const Operator*>(op); }

// Calls fn; what it throws becomes a status of the runtime.
template <class F>
Status* guarded(const Functions& functions, const std::string& where, const F& fn) {
  try {
    fn();
    return nullptr;
  } catch (const std::exception& e) {
    return functions.CreateStatus(kFail, (where + ": " + e.what()).c_str());
  } catch (...) {
    return functions.CreateStatus(kFail, (where + ": unknown failure").c_str());
  }
}

Status* create(const CustomOp* op, const Table* /*table*/, const KernelInfo* info, void** kernel) {
  const Operator& self = of(op);
  const Node node(self.registration->functions, info);
  const std::string where = std::string("diba::") + self.definition.name + " '" + node.name() + "'";
  return guarded(self.registration->functions, where,
                 [&] { *kernel = new Prepared{*self.registration, where, self.definition.create(node)}; });
}

Status* compute(void* kernel, KernelContext* context) {
  const auto& prepared = *static_cast<const Prepared*>(kernel);
  const Functions& functions = prepared.registration.functions;
  return guarded(functions, prepared.where,
                 [&] { prepared.kernel->compute(Call(functions, context, prepared.registration.threads)); });
}

Status* infer(const CustomOp* op, ShapeContext* context) {
  const Operator& self = of(op);
  const Functions& functions = self.registration->functions;
  return guarded(functions, std::string("diba::") + self.definition.name,
                 [&] { self.definition.infer(Inference(functions, context)); });
}

CustomOp base() {
  CustomOp op{};
  op.version = kApiVersion;
  op.GetName = [](const CustomOp* o) { return of(o).definition.name; };
  op.GetExecutionProviderType = [](const CustomOp*) -> const char* { return nullptr; };  // the processor
  op.GetInputType = [](const CustomOp* o, std::size_t i) { return of(o).definition.inputs[i].type; };
  op.GetInputTypeCount = [](const CustomOp* o) { return of(o).definition.inputs.size(); };
  op.GetOutputType = [](const CustomOp* o, std::size_t i) { return of(o).definition.outputs[i].type; };
  op.GetOutputTypeCount = [](const CustomOp* o) { return of(o).definition.outputs.size(); };
  op.GetInputCharacteristic = [](const CustomOp* o, std::size_t i) { return of(o).definition.inputs[i].presence; };
  op.GetOutputCharacteristic = [](const CustomOp* o, std::size_t i) { return of(o).definition.outputs[i].presence; };
  op.GetInputMemoryType = [](const CustomOp*, std::size_t) { return 0; };
  op.GetVariadicInputMinArity = op.GetVariadicInputHomogeneity = [](const CustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = op.GetVariadicOutputHomogeneity = [](const CustomOp*) { return 1; };
  op.GetStartVersion = op.GetEndVersion = [](const CustomOp*) { return 1; };
  op.CreateKernelV2 = create;
  op.KernelComputeV2 = compute;
  op.KernelDestroy = [](void* kernel) { delete static_cast<Prepared*>(kernel); };
  op.InferOutputShapeFn = infer;
  return op;
}

Status* add_operators(SessionOptions* options, const Table* table) {
  // Sessions use it for as long as they live, of which nobody tells: it stays.
  auto* registration = new Registration(table);
  const Functions& f = registration->functions;
  return guarded(f, "diba", [&] {
    Domain* domain = nullptr;
    check(f, f.CreateCustomOpDomain("diba", &domain));
    for (ops::Definition& definition : ops::definitions()) {
      registration->operators.push_back(
          std::make_unique<const Operator>(Operator{base(), std::move(definition), registration}));
      check(f, f.CustomOpDomain_Add(domain, &registration->operators.back()->base));
    }
    check(f, f.AddCustomOpDomain(options, domain));
  });
}

}  // namespace
}  // namespace diba::ort

#define DIBA_EXPORTED extern "C" __attribute__((visibility("default")))

// The Python package calls it, so that both share what is packed.
DIBA_EXPORTED void DibaUsePackedStore(void* store, const char* build) {
  diba::use_packed_store(static_cast<diba::PackedStore*>(store), build);
}

DIBA_EXPORTED diba::ort::Status* RegisterCustomOps(diba::ort::SessionOptions* options, const diba::ort::ApiBase* base) {
  using namespace diba::ort;
  const Table* table = base->GetApi(kApiVersion);
  if (table != nullptr) return add_operators(options, table);
  // An older runtime refuses, but has the functions of its own first version.
  const Functions oldest(base->GetApi(1));
  const std::string problem = std::string("diba's operators need onnxruntime 1.17 or newer; this is ") +
                              base->GetVersionString() + ": upgrade it with 'python -m pip install -U onnxruntime'";
  return oldest.CreateStatus(kFail, problem.c_str());
}
