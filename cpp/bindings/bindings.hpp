// What the binding files share: arrays and the last line of checks.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "diba/bit_matrix.hpp"

using Floats = pybind11::array_t<float, pybind11::array::c_style>;
using Words = pybind11::array_t<std::uint64_t, pybind11::array::c_style>;

inline void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(what);
}

inline std::size_t extent(const pybind11::array& array, int axis) {
  return static_cast<std::size_t>(array.shape(axis));
}

// `words` as a matrix of bits with `cols` columns.
inline diba::BitView bit_view(const Words& words, std::size_t cols) {
  require(words.ndim() == 2 && extent(words, 1) == diba::words_for(cols),
          "words must have shape (rows, ceil(cols / 64))");
  return {words.data(), extent(words, 0), cols};
}

// Adds diba.Prepared and what goes with it to the module.
void bind_prepared(pybind11::module_& m);

// Adds diba.Layer and diba.PreparedMatrix.
void bind_layer(pybind11::module_& m);
