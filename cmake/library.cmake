# libdiba: the core behind one public header, cpp/include/diba/diba.hpp. Part of builds without Python only, so that a
# wheel never holds it.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/diba)

add_library(diba
  cpp/src/product/factorization.cpp
  $<TARGET_OBJECTS:diba_core>)
add_library(diba::diba ALIAS diba)
target_compile_features(diba PUBLIC cxx_std_17)
target_include_directories(diba PRIVATE cpp/src PUBLIC
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/cpp/include>
  $<BUILD_INTERFACE:${generated}/include>
  $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
target_link_libraries(diba PRIVATE Threads::Threads $<BUILD_INTERFACE:diba_rules>)
# Before 1.0 a minor version may change the interface.
set_target_properties(diba PROPERTIES
  VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})

if(BUILD_SHARED_LIBS AND CMAKE_SYSTEM_NAME STREQUAL "Linux")
  target_link_options(diba PRIVATE LINKER:-z,nodelete)  # its workers outlive a dlclose
endif()

install(FILES cpp/include/diba/diba.hpp ${generated}/include/diba/version.hpp
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/diba)
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(TARGETS diba EXPORT diba
  RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR}
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})

# ---- find_package(diba)
configure_package_config_file(cmake/diba-config.cmake.in ${generated}/diba-config.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${generated}/diba-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${generated}/diba-config.cmake ${generated}/diba-config-version.cmake DESTINATION ${package_dir})
install(EXPORT diba NAMESPACE diba:: FILE diba-targets.cmake DESTINATION ${package_dir})

# ---- pkg-config: paths count from the file itself, so the installation may be moved
if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}" OR IS_ABSOLUTE "${CMAKE_INSTALL_INCLUDEDIR}")
  set(DIBA_PC_PREFIX ${CMAKE_INSTALL_PREFIX})
  set(DIBA_PC_LIBDIR ${CMAKE_INSTALL_FULL_LIBDIR})
  set(DIBA_PC_INCLUDEDIR ${CMAKE_INSTALL_FULL_INCLUDEDIR})
else()
  file(RELATIVE_PATH up "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
  string(REGEX REPLACE "/$" "" up "${up}")
  set(DIBA_PC_PREFIX "\${pcfiledir}/${up}")
  set(DIBA_PC_LIBDIR "\${prefix}/${CMAKE_INSTALL_LIBDIR}")
  set(DIBA_PC_INCLUDEDIR "\${prefix}/${CMAKE_INSTALL_INCLUDEDIR}")
endif()
if(NOT BUILD_SHARED_LIBS AND CMAKE_THREAD_LIBS_INIT)
  set(DIBA_PC_STATIC_LIBS " ${CMAKE_THREAD_LIBS_INIT}")
elseif(NOT BUILD_SHARED_LIBS)
  set(DIBA_PC_STATIC_LIBS " -pthread")
endif()
configure_file(cmake/diba.pc.in ${generated}/diba.pc @ONLY)
install(FILES ${generated}/diba.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
