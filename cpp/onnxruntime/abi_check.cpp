// Compares abi.hpp with onnxruntime's own header, at compile time. Part of the build only where that header is found.

#include <onnxruntime_c_api.h>

#include "abi.hpp"

namespace diba::ort {

#define DIBA_ORT_PLACE(name, place, version, result, arguments) \
  static_assert(offsetof(OrtApi, name) == (place) * sizeof(void*), #name);
DIBA_ORT_FUNCTIONS(DIBA_ORT_PLACE)
#undef DIBA_ORT_PLACE

#define DIBA_ORT_FIELD(name) static_assert(offsetof(OrtCustomOp, name) == offsetof(CustomOp, name), #name)
DIBA_ORT_FIELD(version);
DIBA_ORT_FIELD(CreateKernel);
DIBA_ORT_FIELD(GetName);
DIBA_ORT_FIELD(GetExecutionProviderType);
DIBA_ORT_FIELD(GetInputType);
DIBA_ORT_FIELD(GetInputTypeCount);
DIBA_ORT_FIELD(GetOutputType);
DIBA_ORT_FIELD(GetOutputTypeCount);
DIBA_ORT_FIELD(KernelCompute);
DIBA_ORT_FIELD(KernelDestroy);
DIBA_ORT_FIELD(GetInputCharacteristic);
DIBA_ORT_FIELD(GetOutputCharacteristic);
DIBA_ORT_FIELD(GetInputMemoryType);
DIBA_ORT_FIELD(GetVariadicInputMinArity);
DIBA_ORT_FIELD(GetVariadicInputHomogeneity);
DIBA_ORT_FIELD(GetVariadicOutputMinArity);
DIBA_ORT_FIELD(GetVariadicOutputHomogeneity);
DIBA_ORT_FIELD(CreateKernelV2);
DIBA_ORT_FIELD(KernelComputeV2);
DIBA_ORT_FIELD(InferOutputShapeFn);
DIBA_ORT_FIELD(GetStartVersion);
DIBA_ORT_FIELD(GetEndVersion);
DIBA_ORT_FIELD(GetMayInplace);
DIBA_ORT_FIELD(ReleaseMayInplace);
DIBA_ORT_FIELD(GetAliasMap);
DIBA_ORT_FIELD(ReleaseAliasMap);
#undef DIBA_ORT_FIELD

static_assert(offsetof(OrtApiBase, GetApi) == offsetof(ApiBase, GetApi));
static_assert(offsetof(OrtApiBase, GetVersionString) == offsetof(ApiBase, GetVersionString));

static_assert(ORT_FAIL == int{kFail} && ORT_INVALID_ARGUMENT == int{kInvalidArgument});
static_assert(ORT_RUNTIME_EXCEPTION == int{kRuntimeException});
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED == int{ops::kUndefined});
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT == int{ops::kFloat});
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 == int{ops::kUint8});
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 == int{ops::kInt32});
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 == int{ops::kInt64});
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 == int{ops::kFloat16});
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 == int{ops::kBfloat16});
static_assert(INPUT_OUTPUT_REQUIRED == int{ops::kRequired} && INPUT_OUTPUT_OPTIONAL == int{ops::kOptional});
static_assert(INPUT_OUTPUT_VARIADIC == int{ops::kVariadic});
static_assert(ORT_OP_ATTR_INT == int{kInt} && ORT_OP_ATTR_INTS == int{kInts});

}  // namespace diba::ort
