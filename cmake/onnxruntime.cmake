# libdiba_onnxruntime: diba's operators, a library that onnxruntime loads. It is linked to no onnxruntime and needs no
# header of it; where the official header is found, its places are compared with those that are declared here.
add_library(diba_onnxruntime MODULE
  cpp/onnxruntime/convolution.cpp
  cpp/onnxruntime/embedding.cpp
  cpp/onnxruntime/give_back.cpp
  cpp/onnxruntime/linear.cpp
  cpp/onnxruntime/matrix.cpp
  cpp/onnxruntime/register.cpp
  cpp/onnxruntime/runtime.cpp
  cpp/src/product/factorization.cpp)
target_include_directories(diba_onnxruntime PRIVATE cpp/src)
target_compile_definitions(diba_onnxruntime PRIVATE DIBA_API=)  # two functions are exported
target_link_libraries(diba_onnxruntime PRIVATE diba_core diba_rules)
target_link_options(diba_onnxruntime PRIVATE LINKER:--exclude-libs,ALL LINKER:-z,defs
  LINKER:-z,nodelete)  # bits that it packed may outlive the sessions

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
