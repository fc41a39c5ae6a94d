# The operators of inference runtimes, without any runtime.
add_library(diba_operators STATIC
  cpp/operators/bit_weights.cpp
  cpp/operators/coded.cpp
  cpp/operators/convolution.cpp
  cpp/operators/embedding.cpp
  cpp/operators/give_back.cpp
  cpp/operators/linear.cpp
  cpp/operators/matrix.cpp
  cpp/src/product/factorization.cpp)
target_include_directories(diba_operators PUBLIC cpp)
target_compile_definitions(diba_operators PUBLIC DIBA_API=)
target_link_libraries(diba_operators PUBLIC diba_core PRIVATE diba_rules)

# libdiba_onnxruntime: diba's operators, a library that onnxruntime loads. It is linked to no onnxruntime and needs no
# header of it; where the official header is found, its places are compared with those that are declared here.
add_library(diba_onnxruntime MODULE cpp/onnxruntime/register.cpp cpp/onnxruntime/runtime.cpp)
target_link_libraries(diba_onnxruntime PRIVATE diba_operators diba_rules)
target_link_options(diba_onnxruntime PRIVATE LINKER:-z,defs
  LINKER:-z,nodelete)  # bits that it packed may outlive the sessions
include(CheckLinkerFlag)
check_linker_flag(CXX LINKER:--exclude-libs,ALL DIBA_LINKER_HAS_EXCLUDE_LIBS)  # zig's has not
if(DIBA_LINKER_HAS_EXCLUDE_LIBS)
  target_link_options(diba_onnxruntime PRIVATE LINKER:--exclude-libs,ALL)
endif()

find_path(DIBA_ONNXRUNTIME_HEADER onnxruntime_c_api.h PATH_SUFFIXES onnxruntime onnxruntime/core/session)
if(DIBA_ONNXRUNTIME_HEADER)
  target_sources(diba_onnxruntime PRIVATE cpp/onnxruntime/abi_check.cpp)
  set_source_files_properties(cpp/onnxruntime/abi_check.cpp PROPERTIES
    INCLUDE_DIRECTORIES ${DIBA_ONNXRUNTIME_HEADER} COMPILE_OPTIONS -w)
endif()

if(DIBA_BUILD_PYTHON)
  install(TARGETS diba_onnxruntime LIBRARY DESTINATION diba/lib)
else()
  include(GNUInstallDirs)
  install(TARGETS diba_onnxruntime LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()

# libdiba_openvino: the same operators for OpenVINO, where its SDK is (its wheel has one). Never part of a wheel.
if(NOT DIBA_BUILD_PYTHON)
  find_package(OpenVINO QUIET COMPONENTS Runtime ONNX)
endif()
if(OpenVINO_FOUND)
  find_package(TBB QUIET)
  add_library(diba_openvino MODULE cpp/openvino/extension.cpp)
  target_link_libraries(diba_openvino PRIVATE diba_operators openvino::runtime openvino::frontend::onnx diba_rules)
  target_link_options(diba_openvino PRIVATE LINKER:--exclude-libs,libdiba_core.a LINKER:-z,nodelete)
  install(TARGETS diba_openvino LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()

# libdiba_executorch: the same operators as a backend of ExecuTorch, where its package is (its wheel has one). Never part
# of a wheel of diba.
if(NOT DIBA_BUILD_PYTHON AND executorch_DIR)
  find_package(executorch CONFIG REQUIRED COMPONENTS runtime threadpool)
  add_library(diba_executorch MODULE cpp/executorch/backend.cpp)
  target_link_libraries(diba_executorch PRIVATE diba_operators executorch::runtime executorch::threadpool diba_rules)
  target_compile_definitions(diba_executorch PRIVATE ET_USE_THREADPOOL)
  target_link_options(diba_executorch PRIVATE LINKER:--exclude-libs,libdiba_core.a LINKER:-z,nodelete)
  install(TARGETS diba_executorch LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()
