// What the binding files share: checks of arrays, pointers to their elements, the release of the GIL.
//
// This folder is the only place that knows Python. Each file binds one folder of cpp/src: it unwraps arrays, checks
// that they fit together, releases the GIL and calls the core. Argument rules and prose live in Python
// (_internal/check.py); the checks here are the last line of defence.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <utility>

#include "layout/bit_matrix.hpp"
#include "runtime/dispatch.hpp"
#include "runtime/parallel.hpp"

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

inline diba::MutableBitView mutable_bit_view(Words& words, std::size_t cols) {
  const diba::BitView view = bit_view(words, cols);
  return {words.mutable_data(), view.rows, view.cols};
}

// The length of a vector.
inline std::size_t length_of(const Floats& array, const char* what) {
  require(array.ndim() == 1, what);
  return extent(array, 0);
}

// The elements of an array that must have this shape, to read or to write: found before the GIL is released, as a
// read-only array is refused here.
inline const float* elements(const Floats& array, std::size_t length, const char* what) {
  require(array.ndim() == 1 && extent(array, 0) == length, what);
  return array.data();
}
inline const float* elements(const Floats& array, std::size_t rows, std::size_t cols, const char* what) {
  require(array.ndim() == 2 && extent(array, 0) == rows && extent(array, 1) == cols, what);
  return array.data();
}
inline float* elements(Floats& array, std::size_t length, const char* what) {
  elements(std::as_const(array), length, what);
  return array.mutable_data();
}
inline float* elements(Floats& array, std::size_t rows, std::size_t cols, const char* what) {
  elements(std::as_const(array), rows, cols, what);
  return array.mutable_data();
}

// Releases the GIL for as long as it lives; every call of the core is made with one.
//
// A daemon thread that comes back once the interpreter is finalizing is not let in again. Up to Python 3.13 it is ended
// by unwinding its stack, through destructors that may not be left that way and need the GIL: the process would abort.
// Here such a thread waits for the end of the process, as it does in Python 3.14.
class Unlocked {
 public:
  Unlocked() {
    diba::active();  // chosen under the GIL: a child forked by another thread never finds this half done
    state_ = PyEval_SaveThread();
  }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;
  ~Unlocked() noexcept(false) { return_to(state_); }

 private:
  struct Held {
    bool inside = false;
    ~Held() {
      if (!inside) diba::hold_thread();
    }
  };

  // A frame of its own, which is unwound before all others. It must not be noexcept, nor inlined into a function that
  // is: a compiler may leave out destructors where nothing is supposed to be thrown.
  PYBIND11_NOINLINE static void return_to(PyThreadState* state) noexcept(false) {
    Held held;
    PyEval_RestoreThread(state);
    held.inside = true;
  }

  PyThreadState* state_;
};

// Each adds to the module what its file binds.
void bind_file(pybind11::module_& m);
void bind_layout(pybind11::module_& m);
void bind_runtime(pybind11::module_& m);
void bind_product(pybind11::module_& m);
void bind_tensors(pybind11::module_& m);
void bind_solve(pybind11::module_& m);
