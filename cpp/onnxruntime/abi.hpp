// The part of onnxruntime's C interface that the operators use, declared here so that no header of it is needed.
//
// The interface is a table of functions that is only ever appended to (OrtApi), so a function is known by its place in
// it. The places, the version that brought each function and the fields of OrtCustomOp are facts of the published
// header, onnxruntime_c_api.h (MIT licence); abi_check.cpp compares them with it where a build finds it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "operators/operators.hpp"

namespace diba::ort {

// What the operators ask of the runtime: version 1.17 is the floor.
constexpr std::uint32_t kApiVersion = 17;

struct Status;          // OrtStatus; null: success
struct Value;           // OrtValue
struct KernelInfo;      // OrtKernelInfo
struct KernelContext;   // OrtKernelContext
struct ShapeInfo;       // OrtTensorTypeAndShapeInfo
struct ShapeContext;    // OrtShapeInferContext
struct Attribute;       // OrtOpAttr
struct Domain;          // OrtCustomOpDomain
struct SessionOptions;  // OrtSessionOptions
struct Table;           // OrtApi
struct CustomOp;

// OrtErrorCode
enum ErrorCode : int { kFail = 1, kInvalidArgument = 2, kRuntimeException = 6 };

using ops::ElementType;  // ONNXTensorElementDataType
using ops::Presence;     // OrtCustomOpInputOutputCharacteristic

// OrtOpAttrType
enum AttributeType : int { kInt = 1, kInts = 2 };

// name, place in the table, version that brought it, result, arguments
#define DIBA_ORT_FUNCTIONS(_)                                                                                          \
  _(CreateStatus, 0, 1, Status*, (ErrorCode, const char*))                                                             \
  _(GetErrorMessage, 2, 1, const char*, (const Status*))                                                               \
  _(CreateCustomOpDomain, 26, 1, Status*, (const char*, Domain**))                                                     \
  _(CustomOpDomain_Add, 27, 1, Status*, (Domain*, const CustomOp*))                                                    \
  _(AddCustomOpDomain, 28, 1, Status*, (SessionOptions*, Domain*))                                                     \
  _(GetTensorMutableData, 51, 1, Status*, (Value*, void**))                                                            \
  _(CreateTensorTypeAndShapeInfo, 57, 1, Status*, (ShapeInfo**))                                                       \
  _(SetTensorElementType, 58, 1, Status*, (ShapeInfo*, ElementType))                                                   \
  _(SetDimensions, 59, 1, Status*, (ShapeInfo*, const std::int64_t*, std::size_t))                                     \
  _(GetTensorElementType, 60, 1, Status*, (const ShapeInfo*, ElementType*))                                            \
  _(GetDimensionsCount, 61, 1, Status*, (const ShapeInfo*, std::size_t*))                                              \
  _(GetDimensions, 62, 1, Status*, (const ShapeInfo*, std::int64_t*, std::size_t))                                     \
  _(GetSymbolicDimensions, 63, 1, Status*, (const ShapeInfo*, const char**, std::size_t))                              \
  _(GetTensorTypeAndShape, 65, 1, Status*, (const Value*, ShapeInfo**))                                                \
  _(KernelInfoGetAttribute_int64, 86, 1, Status*, (const KernelInfo*, const char*, std::int64_t*))                     \
  _(KernelInfoGetAttribute_string, 87, 1, Status*, (const KernelInfo*, const char*, char*, std::size_t*))              \
  _(KernelContext_GetInputCount, 88, 1, Status*, (const KernelContext*, std::size_t*))                                 \
  _(KernelContext_GetInput, 90, 1, Status*, (const KernelContext*, std::size_t, const Value**))                        \
  _(KernelContext_GetOutput, 91, 1, Status*, (KernelContext*, std::size_t, const std::int64_t*, std::size_t, Value**)) \
  _(ReleaseStatus, 93, 1, void, (Status*))                                                                             \
  _(ReleaseTensorTypeAndShapeInfo, 99, 1, void, (ShapeInfo*))                                                          \
  _(ReleaseCustomOpDomain, 101, 1, void, (Domain*))                                                                    \
  _(KernelInfoGetAttributeArray_int64, 163, 8, Status*, (const KernelInfo*, const char*, std::int64_t*, std::size_t*)) \
  _(KernelInfo_GetInputCount, 230, 14, Status*, (const KernelInfo*, std::size_t*))                                     \
  _(KernelInfo_GetNodeName, 244, 15, Status*, (const KernelInfo*, char*, std::size_t*))                                \
  _(KernelInfoGetConstantInput_tensor, 249, 15, Status*, (const KernelInfo*, std::size_t, int*, const Value**))        \
  _(ShapeInferContext_GetInputCount, 267, 17, Status*, (const ShapeContext*, std::size_t*))                            \
  _(ShapeInferContext_GetInputTypeShape, 268, 17, Status*, (const ShapeContext*, std::size_t, ShapeInfo**))            \
  _(ShapeInferContext_GetAttribute, 269, 17, Status*, (const ShapeContext*, const char*, const Attribute**))           \
  _(ShapeInferContext_SetOutputTypeShape, 270, 17, Status*, (const ShapeContext*, std::size_t, const ShapeInfo*))      \
  _(SetSymbolicDimensions, 271, 17, Status*, (ShapeInfo*, const char**, std::size_t))                                  \
  _(ReadOpAttr, 272, 17, Status*, (const Attribute*, AttributeType, void*, std::size_t, std::size_t*))                 \
  _(KernelContext_ParallelFor, 274, 17, Status*,                                                                       \
    (const KernelContext*, void (*)(void*, std::size_t), std::size_t, std::size_t, void*))

// The functions of one runtime, taken out of its table.
struct Functions {
  explicit Functions(const Table* table) {
    const auto* entries = reinterpret_cast<void* const*>(table);
#define DIBA_ORT_TAKE(name, place, version, result, arguments) \
  static_assert((version) <= kApiVersion);                     \
  name = reinterpret_cast<result(*) arguments>(entries[place]);
    DIBA_ORT_FUNCTIONS(DIBA_ORT_TAKE)
#undef DIBA_ORT_TAKE
  }

#define DIBA_ORT_MEMBER(name, place, version, result, arguments) result(*name) arguments;
  DIBA_ORT_FUNCTIONS(DIBA_ORT_MEMBER)
#undef DIBA_ORT_MEMBER
};

// OrtApiBase
struct ApiBase {
  const Table* (*GetApi)(std::uint32_t version);  // null: the runtime is older
  const char* (*GetVersionString)();
};

// OrtCustomOp, as it is in version 1.18; the runtime reads the fields that `version` has.
struct CustomOp {
  std::uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const Table*, const KernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  ElementType (*GetInputType)(const CustomOp*, std::size_t);
  std::size_t (*GetInputTypeCount)(const CustomOp*);
  ElementType (*GetOutputType)(const CustomOp*, std::size_t);
  std::size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void*, KernelContext*);
  void (*KernelDestroy)(void*);
  Presence (*GetInputCharacteristic)(const CustomOp*, std::size_t);
  Presence (*GetOutputCharacteristic)(const CustomOp*, std::size_t);
  int (*GetInputMemoryType)(const CustomOp*, std::size_t);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  Status* (*CreateKernelV2)(const CustomOp*, const Table*, const KernelInfo*, void**);
  Status* (*KernelComputeV2)(void*, KernelContext*);
  Status* (*InferOutputShapeFn)(const CustomOp*, ShapeContext*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
  std::size_t (*GetMayInplace)(int**, int**);
  void (*ReleaseMayInplace)(int*, int*);
  std::size_t (*GetAliasMap)(int**, int**);
  void (*ReleaseAliasMap)(int*, int*);
};

}  // namespace diba::ort
